"""What a run leaves behind, and the recorder that follows it image by image."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from dipa_bench.data.signals import is_complex, magnitude
from dipa_bench.preconditioners import State
from dipa_bench.solvers.number import Number

CURVES = ("mse", "residual", "step_norm")


@dataclass(frozen=True)
class Curves:
    """Per-image curves of one run; row k belongs to x_k, row 0 to the start.

    Attributes:
        mse: mean squared error against the reference (of complex images that of the magnitudes),
            (K + 1) x B; NaN without a reference. Like each of the three NaN throughout where it was
            not asked for.
        residual: ||A x_k - y||, (K + 1) x B.
        step_norm: ||x_k - x_(k-1)||, (K + 1) x B; 0 in row 0.
    """

    mse: Tensor
    residual: Tensor
    step_norm: Tensor

    def split(self, count: int) -> list[Curves]:
        """Those of consecutive parts of the batch, `count` images each."""
        parts = (curve.split(count, dim=1) for curve in (self.mse, self.residual, self.step_norm))
        return [Curves(*part) for part in zip(*parts, strict=True)]


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

    The residual at x_k costs no operator call: the solver knows A z - y at the extrapolated points
    z_k = x_k + m_(k-1) (x_k - x_(k-1)), and A is linear, so
    A x_k - y = [(A z_k - y) + m_(k-1) (A x_(k-1) - y)] / (1 + m_(k-1)).

    Args:
        iterations: K.
        reference: the true images, B x C x H x W, or None.
        wanted: which of `CURVES` to follow; the others stay NaN.
    """

    def __init__(
        self, iterations: int, reference: Tensor | None, wanted: Collection[str] = CURVES
    ) -> None:
        self._rows = iterations + 1
        self._reference = None
        if reference is not None and "mse" in wanted:
            self._reference = magnitude(reference)
        self._wanted = frozenset(wanted)
        self._norms: Tensor | None = None

    def observe(self, state: State, momentum: Number) -> None:
        """Records x_k from a state whose residual was taken.

        Args:
            state: of iteration k.
            momentum: m_(k-1), by which z_k went beyond x_k; 0 at the start.
        """
        residual = None
        if "residual" in self._wanted:
            residual = state.residual.detach()
            if isinstance(momentum, Tensor):  # one per image, as B x 1 x 1 x 1
                share = (momentum / (1 + momentum)).view(-1, *[1] * (residual.dim() - 1))
                residual = torch.lerp(residual, self._residual, share.to(residual.dtype))
            elif momentum:
                residual = torch.lerp(residual, self._residual, momentum / (1 + momentum))
        self._write(state.iteration, state.iterate.detach(), residual)

    def finish(self, state: State) -> Curves:
        """Records x_K, whose residual needs the one operator call of its own."""
        last, residual = state.iterate.detach(), None
        if "residual" in self._wanted:
            with torch.no_grad():
                residual = state.physics.A(last) - state.measurement
        self._write(state.iteration, last, residual)
        error, residual_norm, step_norm = self._norms
        return Curves(error.square() / magnitude(last)[0].numel(), residual_norm, step_norm)

    def _write(self, row: int, iterate: Tensor, residual: Tensor | None) -> None:
        if self._norms is None:
            self._norms = iterate.new_full((3, self._rows, len(iterate)), torch.nan)
            self._error, self._residual_norm, self._step_norm = map(torch.unbind, self._norms)
            self._difference = torch.empty_like(iterate, memory_format=torch.contiguous_format)
            self._flat = self._difference.flatten(1)
            self._iterate = iterate
        if self._reference is not None and is_complex(iterate):
            error = (magnitude(iterate) - self._reference).flatten(1)
            torch.linalg.vector_norm(error, dim=1, out=self._error[row])
        elif self._reference is not None:
            torch.sub(iterate, self._reference, out=self._difference)
            torch.linalg.vector_norm(self._flat, dim=1, out=self._error[row])
        if residual is not None:
            flat = torch.view_as_real(residual) if residual.is_complex() else residual
            torch.linalg.vector_norm(flat.flatten(1), dim=1, out=self._residual_norm[row])
            self._residual = residual
        if "step_norm" in self._wanted:
            torch.sub(iterate, self._iterate, out=self._difference)
            torch.linalg.vector_norm(self._flat, dim=1, out=self._step_norm[row])
            self._iterate = iterate
