"""What a run leaves behind, and the recorder that follows it image by image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dipa_bench.preconditioners import State


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
    """Writes the curves of a run into one tensor allocated beforehand, on the run's device.

    The residual at x_k costs no operator call: the solver knows A z - y at the extrapolated points
    z_k = x_k + m_(k-1) (x_k - x_(k-1)), and A is linear, so
    A x_k - y = [(A z_k - y) + m_(k-1) (A x_(k-1) - y)] / (1 + m_(k-1)).

    Args:
        iterations: K.
        reference: the true images, B x C x H x W, or None.
    """

    def __init__(self, iterations: int, reference: Tensor | None) -> None:
        self._iterations = iterations
        self._reference = reference
        self._rows: Tensor | None = None
        self._residual: Tensor | None = None
        self._iterate: Tensor | None = None

    @torch.no_grad()
    def observe(self, state: State, momentum: float) -> None:
        """Records x_k from a state whose residual was taken.

        Args:
            state: of iteration k.
            momentum: m_(k-1), by which z_k went beyond x_k; 0 at the start.
        """
        residual = state.residual.detach()
        if self._residual is not None and momentum:
            residual = torch.lerp(residual, self._residual, momentum / (1 + momentum))
        self._write(state.iteration, state.iterate.detach(), residual)

    @torch.no_grad()
    def finish(self, state: State) -> Curves:
        """Records x_K, whose residual needs the one operator call of its own."""
        last = state.iterate.detach()
        self._write(state.iteration, last, state.physics.A(last) - state.measurement)
        mse, residual, step_norm = self._rows
        size = last[0].numel()
        return Curves(mse / size, residual.sqrt(), step_norm.sqrt())

    def _write(self, row: int, iterate: Tensor, residual: Tensor) -> None:
        if self._rows is None:
            self._rows = iterate.new_zeros(3, self._iterations + 1, iterate.shape[0])
            if self._reference is None:
                self._rows[0] = torch.nan
        if self._reference is not None:
            self._rows[0, row] = _squares(iterate - self._reference)
        self._rows[1, row] = _squares(residual)
        if self._iterate is not None:
            self._rows[2, row] = _squares(iterate - self._iterate)
        self._iterate, self._residual = iterate, residual


def _squares(batch: Tensor) -> Tensor:
    """Sum of squared magnitudes per image."""
    flat = batch.flatten(1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).flatten(1)
    return torch.linalg.vector_norm(flat, dim=1).square()
