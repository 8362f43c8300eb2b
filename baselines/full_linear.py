"""`full-linear`: an unconstrained matrix per iteration, learned greedily."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from baselines.greedy import (
    PAPER,
    Criterion,
    Lesson,
    RidgeParameters,
    conjugate_gradients,
    expect,
    learn,
    published,
    tolerance,
)
from dipa_bench.errors import UserError
from dipa_bench.methods import FitContext, Iterative, Method
from dipa_bench.preconditioners import Preconditioner, State
from dipa_bench.tasks.base import Task

LARGEST = 4096  # pixels of an image
MEMORY = 2**31  # bytes of all matrices of one operator in float32
RANK = 1e-12  # eigenvalues below it, relative to the largest, are rounding
BLOCK = 256  # unit images measured at once


class FullLinear(Preconditioner):
    """P_k a dense matrix that every channel shares; the last repeats beyond the fitted iterations.

    Args:
        iterations: how many matrices there are.
        shape: (C, H, W) of the images; others are refused.
    """

    def __init__(self, iterations: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.register_buffer("matrices", torch.eye(shape[1] * shape[2]).repeat(iterations, 1, 1))

    def forward(self, gradient: Tensor, state: State) -> Tensor:
        expect(self.shape, gradient.shape[1:])
        matrix = self.matrices[min(state.iteration, len(self.matrices) - 1)]
        return (gradient.flatten(2) @ matrix.T).view_as(gradient)


@dataclass(frozen=True)
class Spectrum:
    """N = U diag(values) U^T on one channel, where every channel is measured alike; float64.

    Attributes:
        values: positive eigenvalues of A^T A / L.
        vectors: U, H W x len(values).
    """

    values: Tensor
    vectors: Tensor


@torch.no_grad()
def spectrum(physics: LinearPhysics, largest: float, like: Tensor) -> Spectrum | None:
    """The eigendecomposition of A^T A / L on one channel.

    Args:
        physics: A.
        largest: L.
        like: images of the shape, device and dtype, B x C x H x W.

    Returns:
        None where A mixes channels or treats them differently (complex images).
    """
    channels, height, width = like.shape[1:]
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(height, width, generator=generator).to(like)
    probes = torch.zeros(channels, channels, height, width).to(like)
    probes[range(channels), range(channels)] = probe
    seen = physics.A_adjoint(physics.A(probes))
    alike = torch.zeros_like(seen)
    alike[range(channels), range(channels)] = seen[0, 0]
    scale = seen.abs().max().item()
    if not torch.allclose(seen, alike, rtol=0, atol=1e-4 * scale):
        return None
    pixels = height * width
    columns = []
    for block in torch.eye(pixels, dtype=like.dtype, device=like.device).split(BLOCK):
        images = block.new_zeros(len(block), channels, height, width)
        images[:, 0] = block.view(-1, height, width)
        measured = physics.A(images)
        measured = torch.view_as_real(measured) if measured.is_complex() else measured
        columns.append(measured.flatten(1).double())
    values, vectors = thin(torch.cat(columns))
    return Spectrum(values / largest, vectors)


def thin(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Positive eigenvalues and eigenvectors of R R^T for R = `rows`, n x m, from its smaller side.

    Returns:
        r eigenvalues, n x r eigenvectors.
    """
    tall = rows.shape[0] > rows.shape[1]
    values, vectors = torch.linalg.eigh(rows.T @ rows if tall else rows @ rows.T)
    kept = values > RANK * values[-1]
    values, vectors = values[kept], vectors[:, kept]
    return values, (rows @ vectors) / values.sqrt() if tall else vectors


class Best:
    """The minimiser of the criterion plus rho |D|^2.

    With S = sum_j g_j g_j^T, T = sum_j t_j g_j^T (channels as further images) the equation is
    N D S + rho D = T with rho = ridge * trace S. In the eigenbases of N and of S it is solved entry
    by entry; where A mixes the channels, by conjugate gradients.

    Args:
        ridge: relative to trace S.
        spectrum: of N; None where A mixes the channels. Read by the objective ``value`` only.
    """

    def __init__(self, ridge: float, spectrum: Spectrum | None) -> None:
        self.ridge = ridge
        self.spectrum = spectrum

    def __call__(self, lessons: Sequence[Lesson], criterion: Criterion) -> Tensor:
        """I + D, H W x H W, float64, as it is kept (in units of 1 / L)."""
        first = lessons[0].gradient
        pixels = first.shape[-2] * first.shape[-1]
        found = torch.eye(pixels, dtype=torch.float64, device=first.device)
        targets = criterion.targets(lessons)
        if targets is not None:
            found += self._deviation([lesson.gradient for lesson in lessons], targets, criterion)
        return criterion.plain * found

    def _deviation(
        self, gradients: Sequence[Tensor], targets: Sequence[Tensor], criterion: Criterion
    ) -> Tensor:
        g, t = _columns(gradients), _columns(targets)
        rho = self.ridge * g.square().sum().item()
        if criterion.objective == "value" and self.spectrum is None:
            return self._iteratively(gradients, t @ g.T, rho, criterion)
        sizes, basis = thin(g)
        shown = g.T @ basis
        if criterion.objective == "distance":
            return (t @ shown / (sizes + rho)) @ basis.T
        values, vectors = self.spectrum.values, self.spectrum.vectors
        entries = (vectors.T @ t) @ shown / (values[:, None] * sizes + rho)
        return vectors @ entries @ basis.T

    def _iteratively(
        self, gradients: Sequence[Tensor], right: Tensor, rho: float, criterion: Criterion
    ) -> Tensor:
        def normal(d: Tensor) -> Tensor:
            found = rho * d
            for gradient in gradients:
                turned = (gradient.flatten(2).double() @ d.T).view_as(gradient)
                seen = criterion.normal(turned.to(gradient.dtype))
                found += _columns([seen]) @ _columns([gradient]).T
            return found

        return conjugate_gradients(normal, right, tolerance(gradients[0].dtype))


def _columns(batches: Sequence[Tensor]) -> Tensor:
    """Every channel of every image as a column: H W x N C, float64."""
    return torch.cat([batch.flatten(2).flatten(0, 1) for batch in batches]).double().T


def too_large(task: Task) -> str | None:
    """Why the dense matrices cannot be had, or None."""
    pixels = task.shape[1] * task.shape[2]
    if pixels > LARGEST:
        return f"dense matrices for {pixels} pixels an image are too large (at most {LARGEST})"
    bytes_ = 4 * task.iterations * pixels**2
    if bytes_ > MEMORY:
        return (
            f"{task.iterations} dense matrices for {pixels} pixels take {bytes_ / 2**30:.1f} GiB "
            f"(at most {MEMORY / 2**30:.0f}): use fewer iterations"
        )
    return None


def fit(task: Task, parameters: RidgeParameters, context: FitContext) -> Iterative:
    """Learns the matrices one by one; see `baselines.greedy`.

    Raises:
        UserError: images too large for dense matrices.
    """
    if reason := too_large(task):
        raise UserError(reason)
    operator = FullLinear(task.iterations, task.shape).to(task.device, task.dtype)
    found = None
    if parameters.objective == "value":
        like = task.pixels(task.images.train.first(1))
        found = spectrum(task.student, task.largest(), like)
    best = Best(parameters.ridge, found)
    return learn(
        task, parameters.solve, parameters.objective, context, operator, best, operator.matrices
    )


METHOD = Method(
    name="full-linear",
    title="Full linear (greedy)",
    summary="one dense matrix per iteration, minimising the next data term (or, "
    "objective=distance, the distance to the truth) on training images, with a ridge",
    operator="dense",
    rule="greedy",
    learned=True,
    paper=PAPER,
    parameters=RidgeParameters,
    fit=fit,
    published=published,
    skip=too_large,
)
