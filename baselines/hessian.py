"""`hessian`: P = (A^T A + mu I)^-1, the regularised Newton direction of the data term.

With step 1 and no momentum one step is exactly the proximal data step of half-quadratic splitting
(DPIR), which is therefore not listed again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from deepinv.physics import DecomposablePhysics, Downsampling, LinearPhysics
from pydantic import Field
from torch import Tensor

from dipa_bench.linear_algebra import conjugate_gradients
from dipa_bench.methods import FitContext, Iterative, Method, relative
from dipa_bench.parameters import Parameters, Search, Value
from dipa_bench.preconditioners import Preconditioner, State
from dipa_bench.solvers import SolveParameters
from dipa_bench.tasks.base import Task

TOLERANCE = 1e-5  # relative residual of the conjugate gradients
MOST = 500  # iterations of them
CLOSED = 1  # calls of the closed form: deepinv's prox_l2 takes A^T of the zero measurement


class HessianParameters(Parameters):
    """The damping, beside the solver's own."""

    solve: SolveParameters = SolveParameters()
    mu: Annotated[
        float,
        Field(gt=0, description="damping mu, relative to lambda_max(A^T A)"),
        Search(1e-3, 100.0, log=True),  # P is within 1% of a multiple of I at the end
    ] = 0.1


def has_closed_form(physics: LinearPhysics, shape: tuple[int, ...]) -> bool:
    """Whether deepinv inverts A^T A + mu I of this operator without iterations."""
    if isinstance(physics, Downsampling):
        divides = all(extent % physics.factor == 0 for extent in shape[-2:])
        return divides and physics.padding == "circular" and physics.filter is not None
    return isinstance(physics, DecomposablePhysics)


class InverseHessian(Preconditioner):
    """(A^T A + mu I)^-1 for the run's own A.

    Args:
        mu: absolute damping.
        operator_calls: of A or A^T in one application.
    """

    def __init__(self, mu: float, operator_calls: int = CLOSED) -> None:
        super().__init__()
        self.mu = mu
        self.operator_calls = operator_calls

    def forward(self, gradient: Tensor, state: State) -> Tensor:
        physics = state.physics
        if has_closed_form(physics, gradient.shape):
            zero = state.measurement.new_zeros(len(gradient), *state.measurement.shape[1:])
            return physics.prox_l2(gradient / self.mu, zero, gamma=1 / self.mu)
        return _solved(gradient, physics, self.mu)

    def spectral_bound(self, largest: float) -> float:
        return largest / (largest + self.mu)


def _solved(
    gradient: Tensor,
    physics: LinearPhysics,
    mu: float,
    applied: Callable[[], object] = lambda: None,
) -> Tensor:
    """(A^T A + mu I)^-1 g, to a relative residual of `TOLERANCE` for each image.

    deepinv's own conjugate gradients have an absolute epsilon in their denominators, which shrinks
    the answer to small right-hand sides.

    Args:
        gradient: g, B x C x H x W.
        physics: A.
        mu: absolute damping.
        applied: called at every application of A^T A.
    """

    def normal(v: Tensor) -> Tensor:
        applied()
        return physics.A_adjoint(physics.A(v)) + mu * v

    return conjugate_gradients(normal, gradient, MOST, TOLERANCE)


@torch.no_grad()
def calls_of_one_solve(task: Task, mu: float) -> int:
    """Applications of A or A^T that the conjugate gradients make on a training image's A^T y."""
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1

    gradient = task.student.A_adjoint(task.measure(task.images.train.first(1)))
    _solved(gradient, task.student, mu, count)
    return 2 * calls


def build(task: Task, parameters: HessianParameters) -> InverseHessian:
    """The operator for a task, what one application costs counted where it has no closed form."""
    mu = parameters.mu * task.norm_squared()
    closed = has_closed_form(task.student, task.shape)
    return InverseHessian(mu, CLOSED if closed else calls_of_one_solve(task, mu))


def fit(task: Task, parameters: HessianParameters, context: FitContext) -> Iterative:
    operator = build(task, parameters)
    context.notes["closed_form"] = has_closed_form(task.student, task.shape)
    return context.reconstructor(task, parameters.solve, operator)


def published(task: Task) -> dict[str, Value]:
    """The published solver settings; their absolute step in units of 1/lambda_max(P A^T A)."""
    largest = task.norm_squared()
    mu = HessianParameters().mu * largest
    return relative(task.published_solve(), InverseHessian(mu).spectral_bound(largest))


METHOD = Method(
    name="hessian",
    title="Hessian",
    summary="P = (A^T A + mu I)^-1: closed form where there is one, else conjugate gradients",
    operator="hessian",
    rule="analytic",
    fixed_point="another: the data term is re-weighted by P",
    cost=(
        "3 operator calls, 1 denoiser call, P in closed form (else 2 and 2 for each step of "
        "conjugate gradients); without the closed form one such solve"
    ),
    contains=("identity",),
    parameters=HessianParameters,
    solver_free=True,
    fit=fit,
    published=published,
)
