"""Dense matrices, shared by all channels or over all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from dipa_bench.learning.least_squares.problem import MOST, Criterion, Lesson, tolerance
from dipa_bench.linear_algebra import solve

RANK = 1e-12  # eigenvalues below it, relative to the largest, are rounding
BLOCK = 256  # unit images measured at once


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
        joint: whether the matrix is over all channels instead of shared by them.
    """

    def __init__(self, ridge: float, spectrum: Spectrum | None, joint: bool = False) -> None:
        self.ridge = ridge
        self.spectrum = spectrum
        self.joint = joint

    def __call__(self, lessons: Sequence[Lesson], criterion: Criterion) -> Tensor:
        """I + D, n x n, float64, as it is kept (in units of 1 / L)."""
        first = lessons[0].gradient
        side = first[0].numel() // (1 if self.joint else first.shape[1])
        found = torch.eye(side, dtype=torch.float64, device=first.device)
        targets = criterion.targets(lessons)
        if targets is not None:
            found += self._deviation([lesson.gradient for lesson in lessons], targets, criterion)
        return criterion.plain * found

    def _deviation(
        self, gradients: Sequence[Tensor], targets: Sequence[Tensor], criterion: Criterion
    ) -> Tensor:
        g, t = self._columns(gradients), self._columns(targets)
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
                turned = (d @ self._columns([gradient])).T.reshape(gradient.shape)
                seen = criterion.normal(turned.to(gradient.dtype))
                found += self._columns([seen]) @ self._columns([gradient]).T
            return found

        return solve(normal, right, MOST, tolerance(gradients[0].dtype))

    def _columns(self, batches: Sequence[Tensor]) -> Tensor:
        """Every image, or every channel of every image, as a column: n x N or H W x N C."""
        rows = [batch.flatten(1) if self.joint else batch.flatten(2) for batch in batches]
        return torch.cat([part.reshape(-1, part.shape[-1]) for part in rows]).double().T
