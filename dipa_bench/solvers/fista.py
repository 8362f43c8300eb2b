"""PnP-FISTA and RED-FISTA."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dipa_bench.priors.base import Prior
from dipa_bench.solvers.base import Solver, descend
from dipa_bench.solvers.number import Number


class PnPFISTA(Solver):
    """x_(k+1) = D(z_k - alpha P(grad f(z_k)); strength), DIPA (4)."""

    def update(self, point: Tensor, direction: Tensor, iteration: int) -> Tensor:
        return self.prior(
            descend(point, direction, self.step_at(iteration)), self.strength_at(iteration)
        )


class REDFISTA(Solver):
    """x_(k+1) = z_k - alpha [P(grad f(z_k)) + lambda (z_k - D(z_k; strength))], DIPA (5).

    Args:
        weight: lambda > 0, absolute.
    """

    settings = (*Solver.settings, "weight")

    def __init__(self, prior: Prior, *, weight: Number, **options: Any) -> None:
        super().__init__(prior, **options)
        self.weight = weight

    def update(self, point: Tensor, direction: Tensor, iteration: int) -> Tensor:
        pull = self.weight * (point - self.prior(point, self.strength_at(iteration)))
        return descend(point, direction + pull, self.step_at(iteration))
