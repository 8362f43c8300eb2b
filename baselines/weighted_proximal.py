"""`weighted-proximal`: RED with an inexact proximal step on the data term, in a metric B_k (WPM).

Hong, Yavneh, Zibulevsky, Solving RED with weighted proximal methods, IEEE SPL 27, 2020, arXiv
1905.13052. With h(x) = 1/2 ||A x - y||^2 and r(x) = x - D(x),

x+ = prox^B_(a h)(z - a B^-1 lambda r(z)) = z - (A^T A + B / a)^-1 (grad h(z) + lambda r(z)):

the right-hand side is RED's whole gradient, so that whatever B is, and however few conjugate
gradients take the inverse, a point where it vanishes stays where it is. B_k is

- ``scalar``: lambda I; with a = 1 RED's fixed-point method, (A^T A + lambda I) x+ = A^T y +
  lambda D(z);
- ``sr1``: lambda times the modified SR1 update of r, from the differences s of the last two points
  and m of r there, as Hong, Xu, Chun, Hernandez-Garcia, Fessler have it (IEEE TCI 2025, arXiv
  2505.04820): with tau, u and rho of `sr1`, theta_1 = 2e-6 and theta_2 = 2e2 in units of lambda,
  B = (tau I + u u^T / rho)^-1 = I / tau - u u^T / (tau^2 rho + tau <u, u>), for each image by
  itself. Beyond theirs, B >= `LEAST` / tau, which single precision needs. The first step, and that
  of an image that does not move, has lambda I.

Fixed point: that of the unpreconditioned RED with the same lambda and strength. Cost of an
iteration: 2 + 2 N applications of A or A^T for N inner iterations, and one of D.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from baselines.sr1 import PUBLISHED, SR1
from dipa_bench.linear_algebra import conjugate_gradients, inner, moved, norm
from dipa_bench.methods import FitContext, Iterative, Method, relative
from dipa_bench.parameters import Parameters, Search, Value
from dipa_bench.preconditioners import Preconditioner, State
from dipa_bench.solvers import REDFISTA, SolveParameters
from dipa_bench.solvers.base import descend
from dipa_bench.tasks.base import Task

LEAST = 1e-4  # eigenvalue of tau B


class ProximalSettings(SolveParameters):
    """The solver's own, its step in the units of the metric."""

    step: Annotated[
        float,
        Field(gt=0, description="a, relative to 1/lambda where B is lambda I; stable to 2"),
        Search(0.03, 4 / 3),
    ] = 1.0
    units: Annotated[
        Literal["relative"],
        Field(description="step and weight are relative to lambda and lambda_max(A^T A)"),
    ] = "relative"


class WeightedProximalParameters(Parameters):
    """The metric and the effort of its inverse, beside the solver's own."""

    solve: ProximalSettings = ProximalSettings()
    metric: Annotated[
        Literal["scalar", "sr1"],
        Field(description="B: lambda I, or the modified SR1 update of lambda (x - D(x))"),
        Search(choices=("scalar", "sr1")),
    ] = "scalar"
    inner: Annotated[
        int,
        Field(ge=1, le=200, description="conjugate gradient iterations N in one step"),
        Search(2, 15, log=True),
    ] = 10


class ProximalStep(Preconditioner):
    """(A^T A + B_k / a)^-1 of RED's whole gradient; the memory is lambda (z - D(z)).

    Args:
        metric: ``scalar`` or ``sr1``.
        weight: lambda, absolute.
        step: a.
        iterations: N, of the conjugate gradients.
    """

    linear = False  # a fixed number of conjugate gradients is not, nor is SR1

    def __init__(self, metric: str, weight: float, step: float, iterations: int) -> None:
        super().__init__()
        self.metric = metric
        self.scale = weight / step
        self.iterations = iterations
        self.operator_calls = 2 * iterations
        self._secant = SR1(PUBLISHED, weight)

    def forward(self, gradient: Tensor, state: State) -> Tensor:
        physics, metric = state.physics, self.metric_at(gradient, state)

        def product(v: Tensor) -> Tensor:
            return physics.A_adjoint(physics.A(v)) + self.scale * metric(v)

        return conjugate_gradients(product, gradient, self.iterations)

    def remember(self, gradient: Tensor, state: State) -> Tensor:
        return gradient - state.gradient

    def metric_at(self, gradient: Tensor, state: State) -> Callable[[Tensor], Tensor]:
        """v -> B v / lambda.

        Args:
            gradient: RED's whole.
            state: with the data term's.
        """
        if self.metric == "scalar" or state.memory is None:
            return lambda v: v
        tiny = torch.finfo(gradient.dtype).tiny
        s = state.point - state.previous_point
        m = (gradient - state.gradient - state.memory) / self._secant.largest
        here = moved(s, state.point)
        s, m = s * here, m * here
        tau, u, inverse = self._secant.update(s, m)
        size = norm(u)
        unit = u / size.clamp_min(tiny)
        stretched = inverse * size * size
        share = (stretched / (tau + stretched)).clamp_max(1 - LEAST)
        return lambda v: (v - share * inner(unit, v) * unit) / tau


class WholeGradientRED(REDFISTA):
    """x_(k+1) = z_k - alpha P(grad f(z_k) + lambda (z_k - D(z_k; strength))).

    P acts on both terms, so that it leaves the fixed point where it is.
    """

    def update(self, point: Tensor, direction: Tensor, iteration: int) -> Tensor:
        return descend(point, direction, self.step_size)

    def proceed(self, state: State, preconditioner: Preconditioner) -> tuple[State, Tensor]:
        pull = self.weight * (
            state.point - self.prior(state.point, self.strength_at(state.iteration))
        )
        whole = state.gradient + pull
        direction = preconditioner(whole, state)
        memory = preconditioner.remember(whole, state)
        return replace(self.step(state, direction), memory=memory), direction


def fit(task: Task, parameters: WeightedProximalParameters, context: FitContext) -> Iterative:
    """The solver and its metric; nothing is learned."""
    solve = parameters.solve
    weight = solve.weight * task.norm_squared()
    solver = WholeGradientRED(
        task.prior,
        weight=weight,
        step=1.0,
        strength=solve.strength,
        decay=solve.decay,
        iterations=task.iterations,
        momentum=solve.momentum,
        start=context.lmmse(task) if solve.start == "lmmse" else solve.start,
    )
    return Iterative(solver, ProximalStep(parameters.metric, weight, solve.step, parameters.inner))


def published(task: Task) -> dict[str, Value]:
    """SR1 with a full step and without momentum; strength and weight as for the other methods."""
    chosen = {"solve.step": 1.0, "solve.momentum": "none", "metric": "sr1", "inner": 15}
    return relative(task.published_solve(), task.norm_squared()) | chosen


def needs_red(task: Task) -> str | None:
    """Why the method does not apply, or None."""
    if task.solver == "red-fista":
        return None
    return f"solves RED's equation, not that of {task.solver}: --set problem.solver=red-fista"


METHOD = Method(
    name="weighted-proximal",
    title="Weighted proximal",
    summary="RED with a proximal data step in a scalar or SR1 metric; keeps RED's fixed point",
    operator="diagonal plus rank one",
    rule="secant",
    paper="Hong, Yavneh, Zibulevsky, IEEE SPL 27, 2020, arXiv 1905.13052",
    fixed_point="as without P",
    cost="2 + 2 N operator calls for N inner iterations, 1 denoiser call",
    parameters=WeightedProximalParameters,
    fit=fit,
    published=published,
    skip=needs_red,
)
