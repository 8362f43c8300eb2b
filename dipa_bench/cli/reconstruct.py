"""`dipa-bench reconstruct`: a run's operator on a user's picture or measurement."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dipa_bench.cli.console import RESULTS, add_row, new_table, wide_console
from dipa_bench.data.images import SMALLEST, ImageSet, Splits
from dipa_bench.data.picture import read_picture
from dipa_bench.data.signals import COMPLEX, magnitude
from dipa_bench.errors import UserError, brief
from dipa_bench.execution.context import StudyContext
from dipa_bench.metrics import psnr, ssim
from dipa_bench.runs import restore
from dipa_bench.runs.reconstruction import as_measurements, estimate
from dipa_bench.runs.restore import LearnedRun
from dipa_bench.tasks.base import Task

WRITTEN = (".png", ".npy")
NATIVE = ("0", "native")


@dataclass(frozen=True)
class Request:
    """What `reconstruct` was asked for.

    Attributes:
        image: file of a picture, or of a measurement.
        output: file to write; None for ``<stem>-<method>.png`` in this folder.
        size: pixels on a side, ``native``, or None for the run's.
        noise: standard deviation of the simulated noise; None for that of the run's tests.
        seed: of the noise; None for the study's.
        measurement: whether `image` holds a measurement.
    """

    image: Path
    output: Path | None = None
    size: str | None = None
    noise: float | None = None
    seed: int | None = None
    measurement: bool = False


def reconstruct_image(
    run: str, request: Request, device: str = "auto", tracking_uri: str | None = None
) -> None:
    """Reconstructs a picture's simulated measurement, or a real one, and writes the result."""
    if not request.image.is_file():
        raise UserError(f"no file {request.image}: give a picture, or a measurement")
    if request.measurement and (request.noise is not None or request.seed is not None):
        raise UserError("a measurement has its own noise: leave out --noise and --seed")
    found = restore.load(run, RESULTS, device, tracking_uri)
    output = _output(request, found.entry.name)
    images = _blank(found, request) if request.measurement else _pictured(found, request)
    context = restore.at_shape(found, images)
    if request.measurement:
        measured, truth = read_measurement(request.image, context.task), None
    else:
        measured = _measured(context.task, images.train, request)
        truth = context.task.pixels(images.train)
    estimates = _estimates(found, context, images, measured)
    _write(output, estimates[found.entry.name][0].cpu())
    _report(estimates, truth)
    print(f"wrote {output}")


def _output(request: Request, method: str) -> Path:
    """Where to write."""
    stem = request.image.name.removesuffix(".gz")
    output = request.output or Path(f"{Path(stem).stem}-{method.replace('/', '-')}.png")
    if output.suffix.lower() not in WRITTEN:
        raise UserError(f"--output {output}: give a name in .png (8 bit) or .npy (as computed)")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}")
    if output.is_dir():
        raise UserError(f"--output {output} is a folder: give a file's name")
    if output.exists() and output.samefile(request.image):
        raise UserError(f"--output {output} is the input itself: give another name")
    return output


def _side(run: LearnedRun, size: str | None) -> int | None:
    """Pixels on a side of the square; None for a picture's own size."""
    if size in NATIVE:
        return None
    if size is None:
        return run.study.problem.size
    if not size.isdecimal() or int(size) < SMALLEST:
        raise UserError(f"--size {size}: give at least {SMALLEST} pixels on a side, or native")
    return int(size)


def _only(pixels: Tensor, name: str) -> Splits:
    """One image in the place of all splits."""
    parts = [ImageSet(pixels[None], (name,), (split,)) for split in ("a", "b", "c")]
    return Splits(*parts)


def _pictured(run: LearnedRun, request: Request) -> Splits:
    """The picture as the run's task wants its images."""
    side = _side(run, request.size)
    pixels = read_picture(request.image, side, run.study.problem.color)
    return run.task.spec.prepare(_only(pixels, request.image.name), run.task.options)


def _blank(run: LearnedRun, request: Request) -> Splits:
    """Stands for the unknown picture behind a measurement."""
    side = _side(run, request.size)
    if side is None:
        raise UserError("a measurement does not say the size of its image: give --size in pixels")
    return _only(torch.zeros(run.task.shape[0], side, side), request.image.name)


def _measured(task: Task, images: ImageSet, request: Request) -> Tensor:
    """y = A x + w with the noise of the run's tests, or what was asked for."""
    tested = task.tested
    noise = tested.noise if request.noise is None else request.noise
    seed = tested.seed if request.seed is None else request.seed
    return replace(tested, noise=noise, seed=seed).measure(images)


def read_measurement(path: Path, task: Task) -> Tensor:
    """A measurement as a batch of one.

    Args:
        path: a `.npy` file: an array as `as_measurements` takes it.
        task: whose student measured.

    Raises:
        UserError: not readable, of another shape, or not finite.
    """
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(
            f"measurement {path} cannot be read as .npy ({brief(error, kind=False)}): save it with "
            "numpy.save"
        ) from None
    return as_measurements({str(path): values}, task, "; another image size is --size")


@torch.no_grad()
def _estimates(
    run: LearnedRun, context: StudyContext, images: Splits, measured: Tensor
) -> dict[str, Tensor]:
    """What A^T y, the tuned identity (where the study has one) and the run make of a measurement.

    Raises:
        UserError: the run's operator cannot be used there.
    """
    found = {"back-projection A^T y": context.task.student.A_adjoint(measured)}
    identity = restore.tuned_identity(run)
    if identity is not None and identity.entry.name != run.entry.name:
        name = f"{identity.entry.name}, tuned"
        try:
            found[name] = estimate(identity, restore.at_shape(identity, images), measured)
        except UserError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    found[run.entry.name] = estimate(run, context, measured)
    return found


def _report(found: Mapping[str, Tensor], truth: Tensor | None) -> None:
    """PSNR and SSIM of each estimate; nothing of a measurement, whose image is not known."""
    if truth is None:
        return
    table = new_table("", "PSNR [dB]", "SSIM")
    for name, image in found.items():
        quality = psnr(image, truth).item(), ssim(image, truth).item()
        add_row(table, name, f"{quality[0]:.2f}", f"{quality[1]:.3f}")
    wide_console().print(table)


def _write(path: Path, estimate: Tensor) -> None:
    """One C x H x W image: as 8-bit PNG clipped to [0, 1] (complex ones as magnitude), or as .npy.

    A .npy file holds H x W, H x W x 3, or complex H x W, in the precision of the run.
    """
    if path.suffix.lower() == ".npy":
        plain = estimate.movedim(0, -1).contiguous()
        plain = torch.view_as_complex(plain) if len(estimate) == COMPLEX else plain.squeeze(-1)
        with path.open("wb") as file:
            np.save(file, plain.numpy())
        return
    from skimage.io import imsave

    shown = magnitude(estimate[None])[0].clamp(0, 1).movedim(0, -1).squeeze(-1)
    imsave(path, (255 * shown).round().to(torch.uint8).numpy(), check_contrast=False)
