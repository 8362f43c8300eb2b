"""Preconditioning operators inside deepinv's own optimisation loop.

`deepinv.optim.BaseOptim` and `optim_builder` take an iterator; these put a P into its data step::

    from deepinv.optim import L2, PnP, optim_builder

    optim_builder(PreconditionedPGD(P), max_iter=20, data_fidelity=L2(), prior=PnP(denoiser),
                  params_algo={"stepsize": alpha, "g_param": sigma})
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from deepinv.optim import L2, DataFidelity, Prior
from deepinv.optim.optim_iterators import OptimIterator
from deepinv.physics import LinearPhysics
from torch import Tensor

from dipa_bench.preconditioners import Preconditioner, State


class _Preconditioned(OptimIterator):
    """x_(k+1) = step(x_k, P(grad f(x_k))).

    The run's state goes from iteration to iteration beside deepinv's own, so that operators of
    single iterations and those that remember find what they need. deepinv's Anderson acceleration
    keeps none of it: there every iteration is a first one.

    Args:
        operator: P.
        options: of deepinv's `OptimIterator`.
    """

    def __init__(self, operator: Preconditioner, **options: Any) -> None:
        super().__init__(**options)
        self.operator = operator

    def step(self, x: Tensor, direction: Tensor, prior: Prior, params: dict[str, Any]) -> Tensor:
        """x_(k+1) from x_k and the preconditioned gradient, both B x C x H x W."""
        raise NotImplementedError

    def forward(
        self,
        X: dict[str, Any],  # noqa: N803, deepinv's name
        cur_data_fidelity: DataFidelity,
        cur_prior: Prior,
        cur_params: dict[str, Any],
        y: Tensor,
        physics: LinearPhysics,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """One iteration, as deepinv calls it: {"est": (x, z), "cost": F} and the state."""
        x = X["est"][0]
        state = _linearised(X.get("state"), x, cur_data_fidelity, y, physics)
        direction = self.operator(state.gradient, state)
        memory = self.operator.remember(state.gradient, state)
        found = self.step(x, direction, cur_prior, cur_params)
        found = self.relaxation_step(found, x, cur_params["beta"])
        cost = None
        if self.has_cost and self.cost_fn is not None:
            cost = self.cost_fn(found, cur_data_fidelity, cur_prior, cur_params, y, physics)
        following = replace(
            state,
            iteration=state.iteration + 1,
            previous_point=state.point,
            previous_gradient=state.gradient,
            memory=memory,
        )
        return {"est": (found, found), "cost": cost, "state": following}


class PreconditionedPGD(_Preconditioned):
    """x_(k+1) = prox(x_k - stepsize P(grad f(x_k))): PnP with `deepinv.optim.PnP` as the prior.

    Equal to `dipa_bench.solvers.PnPFISTA` without momentum for the same absolute step.
    """

    def step(self, x: Tensor, direction: Tensor, prior: Prior, params: dict[str, Any]) -> Tensor:
        moved = x - params["stepsize"] * direction
        weight = params["lambda"] * params["stepsize"]
        return prior.prox(moved, params["g_param"], gamma=weight)


class PreconditionedGD(_Preconditioned):
    """x_(k+1) = x_k - stepsize [P(grad f(x_k)) + lambda grad g(x_k)]: RED with `deepinv.optim.RED`.

    Equal to `dipa_bench.solvers.REDFISTA` without momentum for the same absolute step and weight.
    """

    def step(self, x: Tensor, direction: Tensor, prior: Prior, params: dict[str, Any]) -> Tensor:
        pull = params["lambda"] * prior.grad(x, params["g_param"])
        return x - params["stepsize"] * (direction + pull)


def _linearised(
    before: State | None, x: Tensor, fidelity: DataFidelity, y: Tensor, physics: LinearPhysics
) -> State:
    """The state at x with its gradient; its residual too where the data term is least squares."""
    state = State(0, x, x, y, physics) if before is None else before
    residual = None
    if isinstance(fidelity, L2):
        residual = physics.A(x) - y
        gradient = fidelity.norm * physics.A_adjoint(residual)
    else:
        gradient = fidelity.grad(x, y, physics)
    return replace(state, iterate=x, point=x, residual=residual, gradient=gradient)
