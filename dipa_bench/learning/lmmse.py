"""The affine map with the least mean squared error over the training images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dipa_bench.data.images import ImageSet
from dipa_bench.data.signals import is_complex
from dipa_bench.errors import UserError
from dipa_bench.learning.cross_fitting import CrossFitted
from dipa_bench.metrics import psnr
from dipa_bench.tasks.base import Task

RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
LARGEST = 8192  # rows of the measurement covariance, float64: 512 MiB


@dataclass(frozen=True)
class LMMSE:
    """x = mean + W (y - A mean).

    Attributes:
        matrix: W, n x m.
        mean: of the training images, C x H x W.
        measured_mean: A mean, in the measurement's shape.
        ridge: the share of the mean measurement variance added to the covariance's diagonal.
    """

    matrix: Tensor
    mean: Tensor
    measured_mean: Tensor
    ridge: float

    def __call__(self, measurement: Tensor) -> Tensor:
        """The estimate for a batch of measurements, B x C x H x W."""
        centred = (measurement - self.measured_mean).flatten(1)
        return self.mean + (centred @ self.matrix.T).view(-1, *self.mean.shape)


def fit(task: Task, count: int | None = None) -> LMMSE:
    """W = C_xy (C_yy + (noise^2 + ridge v) I)^-1 from the training images' second moments.

    C_xy and C_yy come from the clean images and A, so no noise is drawn; v is the mean variance of
    a measurement, and the ridge is the best of `RIDGES` on the validation images. Complex images
    are tried as they are and in four quarter turns of their phase, which makes the map
    complex-linear; the better on validation images stays.

    Args:
        task: the task.
        count: how many training images are used; None for all.

    Raises:
        UserError: the measurements are complex numbers, or too many for a dense covariance; or the
            images are all alike.
    """
    return _chosen(task, task.images.train.first(count))[0]


def cross_fitted(task: Task, count: int | None = None) -> CrossFitted:
    """The map of `fit`, with maps of the same ridge for training images (see `CrossFitted`).

    Args, Raises: as of `fit`.
    """
    images = task.images.train.first(count)
    whole, turned = _chosen(task, images)

    def part(rest: ImageSet) -> LMMSE:
        pixels = task.pixels(rest)
        return next(_candidates(task, quarter_turns(pixels) if turned else pixels, [whole.ridge]))

    return CrossFitted(task, images, whole, part)


def _chosen(task: Task, images: ImageSet) -> tuple[LMMSE, bool]:
    """The map with the best ridge, and whether it was fitted on quarter turns."""
    if reason := unavailable(task):
        raise UserError(f"{reason}: use another start")
    pixels = task.pixels(images)
    if not (pixels - pixels[:1]).any():
        raise UserError("an LMMSE map needs at least two different training images: give more")
    validation = task.images.validation
    truth, observed = task.pixels(validation), task.measure(validation)
    versions = {False: pixels}
    if is_complex(pixels):
        versions[True] = quarter_turns(pixels)
    found = (
        (candidate, turned)
        for turned, version in versions.items()
        for candidate in _candidates(task, version)
    )
    return max(found, key=lambda pair: psnr(pair[0](observed), truth).mean().item())


def quarter_turns(images: Tensor) -> Tensor:
    """x, ix, -x and -ix of complex images, 4N x 2 x H x W: zero mean and no preferred phase."""
    turned = torch.stack((-images[:, 1], images[:, 0]), dim=1)
    return torch.cat((images, turned, -images, -turned))


@torch.no_grad()
def unavailable(task: Task) -> str | None:
    """Why no dense covariance of the measurements can be had, or None."""
    measured = task.student.A(task.pixels(task.images.train.first(1)))
    if not measured.is_complex() and measured[0].numel() <= LARGEST:
        return None
    return (
        f"the LMMSE map needs real measurements, at most {LARGEST} per image (here "
        f"{measured[0].numel()}{' complex' if measured.is_complex() else ''})"
    )


@torch.no_grad()
def _candidates(task: Task, images: Tensor, ridges: Sequence[float] = RIDGES) -> Iterator[LMMSE]:
    """The maps of some ridges, from the moments of N x C x H x W images in float64."""
    measured, images = task.student.A(images).double(), images.double()
    mean, measured_mean = images.mean(0), measured.mean(0)
    x, y = (images - mean).flatten(1), (measured - measured_mean).flatten(1)
    cross, covariance = x.T @ y / len(x), y.T @ y / len(y)
    variance = covariance.diagonal().mean()
    eye = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    for ridge in ridges:
        damped = covariance + (task.noise**2 + ridge * variance) * eye
        weights = torch.linalg.solve(damped, cross.T).T
        yield LMMSE(
            weights.to(task.dtype), mean.to(task.dtype), measured_mean.to(task.dtype), ridge
        )
