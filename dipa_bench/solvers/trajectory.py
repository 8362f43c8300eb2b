"""What a run leaves behind, and the recorder that follows it image by image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dipa_bench.preconditioners import State

BUFFER = 2**22  # numbers held until their curves are computed: 16 MiB of float32


@dataclass(frozen=True)
class Curves:
    """Per-image curves of one run; row k belongs to x_k, row 0 to the start.

    Attributes:
        mse: mean squared error against the reference, (K + 1) x B; NaN without a reference.
        residual: ||A x_k - y||, (K + 1) x B.
        step_norm: ||x_k - x_(k-1)||, (K + 1) x B; 0 in row 0.
    """

    mse: Tensor
    residual: Tensor
    step_norm: Tensor


@dataclass(frozen=True)
class Trajectory:
    """The outcome of one run.

    Attributes:
        estimate: the reconstruction x_K, B x C x H x W.
        operator_calls: applications of A or A^T, each image counted as one run.
        denoiser_calls: applications of the prior, likewise.
        curves: what happened on the way, if it was asked for.
    """

    estimate: Tensor
    operator_calls: int = 0
    denoiser_calls: int = 0
    curves: Curves | None = None


class Recorder:
    """Follows a run and turns it into curves, in one tensor allocated beforehand.

    An iteration costs two copies into a buffer; the arithmetic is done for many iterations at a
    time, whenever the buffer is full and at the end.

    The residual at x_k costs no operator call: the solver knows A z - y at the extrapolated points
    z_k = x_k + m_(k-1) (x_k - x_(k-1)), and A is linear, so
    A x_k - y = [(A z_k - y) + m_(k-1) (A x_(k-1) - y)] / (1 + m_(k-1)).

    Args:
        iterations: K.
        reference: the true images, B x C x H x W, or None.
    """

    def __init__(self, iterations: int, reference: Tensor | None) -> None:
        self._rows = iterations + 1
        self._reference = reference
        self._curves: Tensor | None = None

    @torch.no_grad()
    def observe(self, state: State, momentum: float) -> None:
        """Records x_k from a state whose residual was taken.

        Args:
            state: of iteration k.
            momentum: m_(k-1), by which z_k went beyond x_k; 0 at the start.
        """
        self._write(state.iterate.detach(), state.residual.detach(), momentum)

    @torch.no_grad()
    def finish(self, state: State) -> Curves:
        """Records x_K, whose residual needs the one operator call of its own."""
        last = state.iterate.detach()
        self._write(last, state.physics.A(last) - state.measurement, 0.0)
        self._flush()
        squares, residual, step_norm = self._curves
        return Curves(squares / last[0].numel(), residual.sqrt(), step_norm.sqrt())

    def _allocate(self, iterate: Tensor, residual: Tensor) -> None:
        batch = len(iterate)
        self._curves = iterate.new_zeros(3, self._rows, batch)
        if self._reference is None:
            self._curves[0] = torch.nan
        held = min(self._rows, 1 + BUFFER // iterate.numel())
        # Row 0 of a buffer is the last row of the one before it.
        self._iterates = iterate.new_zeros(held + 1, *iterate.shape)
        self._residuals = residual.new_zeros(held + 1, *residual.shape)
        self._iterates[0], self._done, self._filled = iterate, 0, 0

    def _write(self, iterate: Tensor, residual: Tensor, momentum: float) -> None:
        if self._curves is None:
            self._allocate(iterate, residual)
        elif self._filled == len(self._iterates) - 1:
            self._flush()
        before, row = self._filled, self._filled + 1
        self._iterates[row] = iterate
        weight = momentum / (1 + momentum)
        torch.lerp(residual, self._residuals[before], weight, out=self._residuals[row])
        self._filled = row

    def _flush(self) -> None:
        """Writes the buffer's rows to the curves and keeps the last one."""
        count = self._filled
        rows = slice(self._done, self._done + count)
        iterates = self._iterates[1 : count + 1]
        if self._reference is not None:
            self._curves[0, rows] = _squares(iterates - self._reference)
        self._curves[1, rows] = _squares(self._residuals[1 : count + 1])
        self._curves[2, rows] = _squares(iterates - self._iterates[:count])
        self._iterates[0] = self._iterates[count].clone()
        self._residuals[0] = self._residuals[count].clone()
        self._done, self._filled = self._done + count, 0


def _squares(batches: Tensor) -> Tensor:
    """Sum of squared magnitudes per row and image: R x B x ... to R x B."""
    flat = torch.view_as_real(batches) if batches.is_complex() else batches
    return torch.linalg.vector_norm(flat.flatten(2), dim=2).square()
