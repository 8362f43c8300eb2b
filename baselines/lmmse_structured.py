"""P = (A^T A + epsilon C^-1)^-1 with a structured covariance C: for images of any size.

P = R (R A^T A R + epsilon I)^-1 R with the symmetric root R of C, by conjugate gradients. C is
K (x) S: K between channels, S between pixels, all channels sharing S; tr C is the images' variance.

- ``stationary``: S = F* diag(s) F with the mean periodogram s of the centred training images.
- ``kronecker``: S = S_H (x) S_W / tr from the second moments of columns and of rows.

Complex images have one complex channel and, as in `covariance` of the dense one, no preferred
phase: their mean is zero and S Hermitian.

Cost of an application: 2 N applications of A or A^T, N fixed when fitted: as many iterations as
take P of a white image to a relative error of `TOLERANCE`, at most `MOST`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from dipa_bench.data.signals import is_complex
from dipa_bench.errors import UserError
from dipa_bench.linear_algebra import conjugate_gradients, iterates, norm
from dipa_bench.preconditioners import Preconditioner, State
from dipa_bench.tasks.base import Task
from dipa_bench.tasks.spectrum import lanczos

FLOOR = 1e-6  # of the mean variance of a pixel, added to what images do not fill
TOLERANCE = 1e-6
MOST = 100
BATCH = 256


class StructuredMoments(Preconditioner):
    """R (R A^T A R + epsilon I)^-1 R for the run's own A.

    Args:
        channels: K, c x c (1 x 1 for gray and complex images).
        size: (H, W) of the images; others are refused.
        epsilon: in the units of A^T A times C, > 0.
        iterations: N, of the conjugate gradients.
    """

    def __init__(
        self, channels: Tensor, size: tuple[int, int], epsilon: float, iterations: int = MOST
    ) -> None:
        super().__init__()
        self.register_buffer("channels", square_root(channels))
        self.size = tuple(size)
        self.epsilon = epsilon
        self.measured: float | None = None
        self.iterations = iterations

    @property
    def operator_calls(self) -> int:
        return 2 * self.iterations

    def spatial_root(self, images: Tensor) -> Tensor:
        """S^(1/2) of B x c x H x W real or complex numbers."""
        raise NotImplementedError

    def root(self, images: Tensor) -> Tensor:
        """C^(1/2) of B x C x H x W images."""
        found = self.spatial_root(as_numbers(images))
        if len(self.channels) > 1:
            found = torch.einsum("ij,bjhw->bihw", self.channels, found)
        return as_images(found)

    def inner_product(self, images: Tensor, state: State) -> Tensor:
        """(R A^T A R + epsilon I) of B x C x H x W images."""
        physics = state.physics
        normal = physics.A_adjoint(physics.A(self.root(images)))
        return self.root(normal) + self.epsilon * images

    def forward(self, gradient: Tensor, state: State) -> Tensor:
        if tuple(gradient.shape[-2:]) != self.size:
            raise UserError(
                f"this P was made for images of {self.size} pixels, not "
                f"{tuple(gradient.shape[-2:])}: fit it again at that size"
            )
        right = self.root(gradient)
        found = conjugate_gradients(lambda v: self.inner_product(v, state), right, self.iterations)
        return self.root(found)

    def spectral_bound(self, largest: float) -> float | None:
        return self.measured


class Stationary(StructuredMoments):
    """S = F* diag(s) F.

    Args:
        spectrum: s > 0, H x W.
        channels, epsilon, iterations: as in `StructuredMoments`.
    """

    def __init__(
        self, spectrum: Tensor, channels: Tensor, epsilon: float, iterations: int = MOST
    ) -> None:
        super().__init__(channels, spectrum.shape, epsilon, iterations)
        self.register_buffer("gain", spectrum.sqrt())

    def spatial_root(self, images: Tensor) -> Tensor:
        found = torch.fft.ifft2(self.gain * torch.fft.fft2(images))
        return found if images.is_complex() else found.real


class Kronecker(StructuredMoments):
    """S = S_H (x) S_W.

    Args:
        rows: S_H, H x H, Hermitian.
        columns: S_W, W x W, Hermitian.
        channels, epsilon, iterations: as in `StructuredMoments`.
    """

    def __init__(
        self,
        rows: Tensor,
        columns: Tensor,
        channels: Tensor,
        epsilon: float,
        iterations: int = MOST,
    ) -> None:
        super().__init__(channels, (len(rows), len(columns)), epsilon, iterations)
        for name, moments in (("rows", rows), ("columns", columns)):
            root = square_root(moments)  # real numbers, which a change of dtype leaves whole
            self.register_buffer(name, torch.view_as_real(root) if root.is_complex() else root)

    def spatial_root(self, images: Tensor) -> Tensor:
        if images.is_complex():
            rows, columns = map(torch.view_as_complex, (self.rows, self.columns))
            return rows @ images @ columns.mT
        return self.rows @ images @ self.columns.mT


KINDS = {"stationary": Stationary, "kronecker": Kronecker}


def square_root(matrix: Tensor) -> Tensor:
    """The Hermitian root of a Hermitian positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.mH


def as_numbers(images: Tensor) -> Tensor:
    """B x C x H x W images; complex ones as B x 1 x H x W complex numbers."""
    return torch.complex(images[:, :1], images[:, 1:]) if is_complex(images) else images


def as_images(numbers: Tensor) -> Tensor:
    """The inverse of `as_numbers`."""
    return torch.cat([numbers.real, numbers.imag], 1) if numbers.is_complex() else numbers


def centred(images: Tensor) -> Iterator[Tensor]:
    """N x C x H x W images less their mean in batches, as float64 numbers.

    Complex ones have no mean, and are scaled so that |x|^2 is the variance of a real number.
    """
    if is_complex(images):
        yield from (as_numbers(block.double()) / math.sqrt(2) for block in images.split(BATCH))
    else:
        mean = images.mean(0, dtype=torch.float64)
        yield from (block.double() - mean for block in images.split(BATCH))


def floored(moments: Tensor) -> Tensor:
    """A matrix with `FLOOR` of its mean diagonal added to it."""
    mean = moments.diagonal().real.mean()
    return moments + FLOOR * mean * torch.eye(len(moments)).to(moments)


@torch.no_grad()
def moments_of(images: Tensor, kind: str) -> tuple[tuple[Tensor, ...], Tensor, float]:
    """The parts of S, K and the mean variance of a pixel, in float64.

    Args:
        images: N x C x H x W.
        kind: ``stationary`` (one part, the spectrum) or ``kronecker`` (S_H and S_W).
    """
    blocks = list(centred(images))
    count = len(images) * blocks[0].shape[1]
    height, width = images.shape[2:]
    between = sum(torch.einsum("bihw,bjhw->ij", block, block.conj()) for block in blocks).real
    total = between.trace().item() / count  # variance of a channel, summed over its pixels
    variance = total / (height * width)
    channels = floored(between * (len(between) / between.trace()))
    if kind == "stationary":
        spectra = (torch.fft.fft2(block, norm="ortho").abs().square() for block in blocks)
        spectrum = sum(each.sum((0, 1)) for each in spectra) / count
        return (spectrum + FLOOR * variance,), channels, variance
    rows = sum((block @ block.mH).sum((0, 1)) for block in blocks) / count
    columns = sum((block.mT @ block.conj()).sum((0, 1)) for block in blocks) / count
    return (floored(rows), floored(columns) / total), channels, variance


@torch.no_grad()
def build(task: Task, images: Tensor, kind: str, damping: float) -> StructuredMoments:
    """The operator for a task, its cost and lambda_max(P A^T A) measured.

    Args:
        task: whose student is A.
        images: that C is taken from, N x C x H x W.
        kind: one of `KINDS`.
        damping: epsilon, relative to lambda_max(A^T A) times a pixel's variance.
    """
    parts, channels, variance = moments_of(images, kind)
    epsilon = damping * task.norm_squared() * variance
    operator = KINDS[kind](*parts, channels, epsilon).to(task.device, task.dtype)
    zero = torch.zeros(1, *task.shape, device=task.device, dtype=task.dtype)
    state = State(0, zero, zero, task.student.A(zero), task.student)
    greatest = lanczos(
        lambda v: operator.inner_product(v, state) - epsilon * v,
        task.shape,
        task.device,
        task.dtype,
    )
    operator.measured = greatest / (greatest + epsilon)
    operator.iterations, operator.linear = iterations_for(operator, state, greatest)
    return operator


def iterations_for(operator: StructuredMoments, state: State, greatest: float) -> tuple[int, bool]:
    """Iterations after which P of a white image is known to `TOLERANCE`, at most `MOST`.

    At `MOST` the conjugate gradients are stopped early: P is an approximation then, by up to tens
    of per cent where the damping is small, and not linear.

    The error of a solution is at most ||r|| / epsilon, the solution at least ||b|| / (t + epsilon).

    Args:
        operator: P.
        state: with the operator A.
        greatest: t, the largest eigenvalue of R A^T A R.

    Returns:
        How many, and whether they suffice.
    """
    drawn = torch.randn(state.point.shape, generator=torch.Generator().manual_seed(0))
    right = operator.root(drawn.to(state.point))
    wanted = TOLERANCE * operator.epsilon / (greatest + operator.epsilon)
    steps = iterates(lambda v: operator.inner_product(v, state), right / norm(right))
    for count, (_, energy) in enumerate(islice(steps, MOST), start=1):
        if energy.item() ** 0.5 <= wanted:
            return count, True
    return MOST, False
