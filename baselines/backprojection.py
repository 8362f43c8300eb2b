"""`bp-ls`: guidance that goes from back-projection to least squares over the iterations.

Garber, Tirer, Image restoration by denoising diffusion models with iteratively preconditioned
guidance, CVPR 2024, arXiv 2312.16519. Their W_k = (1 - delta_k) (A A^T + mu I)^-1 + delta_k c I in
the space of the measurements is, seen from the images,

P_k = (1 - delta_k) (A^T A + mu I)^-1 + delta_k c I, c = 1 / lambda_max(A^T A),

delta_k = abar^gamma with the cumulative products abar of the linear noise schedule of DDPM, taken
at K of its 1000 times as they take it: near 0 at first, 1 at the last iteration. Of their
algorithms this is IDPG's guidance, the one without injected noise, with the solver's own prior
strength in place of their falling one.

Fixed point: P_K is a multiple of I, so beyond K iterations it is that of the unpreconditioned
algorithm with step alpha c; on the way there the data term is weighed anew in every iteration. Cost
of an iteration: one (A^T A + mu I)^-1, as `hessian`'s.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from baselines import hessian
from baselines.hessian import HessianParameters, InverseHessian
from dipa_bench.methods import FitContext, Iterative, Method, relative
from dipa_bench.parameters import Search, Value
from dipa_bench.preconditioners import Preconditioner, State
from dipa_bench.tasks.base import Task

TIMES = 1000  # of the diffusion that the schedule is taken from
VARIANCES = (1e-4, 0.02)  # its first and last


class BackProjectionParameters(HessianParameters):
    """Damping and schedule, beside the solver's own."""

    gamma: Annotated[
        float,
        Field(gt=0, description="exponent of the schedule: the larger, the longer back-projection"),
        Search(1.0, 300.0, log=True),
    ] = 16.0


def schedule(iterations: int, gamma: float) -> Tensor:
    """delta_0 < ... < delta_(K-1) = 1, the weights of least squares, in float64.

    Args:
        iterations: K, from 1 to `TIMES`.
        gamma: their exponent.
    """
    products = (1 - torch.linspace(*VARIANCES, TIMES, dtype=torch.float64)).cumprod(0)
    times = torch.arange(iterations - 1) * TIMES // iterations
    return torch.cat([products[times].flip(0), products.new_ones(1)]) ** gamma


class BackProjection(Preconditioner):
    """(1 - delta_k) (A^T A + mu I)^-1 + delta_k / lambda_max I; the last repeats.

    Args:
        inverse: (A^T A + mu I)^-1.
        weights: delta_k, K of them, not falling.
        largest: lambda_max(A^T A).
    """

    def __init__(self, inverse: InverseHessian, weights: Tensor, largest: float) -> None:
        super().__init__()
        self.inverse = inverse
        self.register_buffer("weights", weights)
        self.largest = largest
        self.operator_calls = inverse.operator_calls

    def forward(self, gradient: Tensor, state: State) -> Tensor:
        weight = self.weights[min(state.iteration, len(self.weights) - 1)]
        return torch.lerp(self.inverse(gradient, state), gradient / self.largest, weight)

    def spectral_bound(self, largest: float) -> float:
        """That of the last P_k, which no other exceeds where largest is lambda_max."""
        weight = self.weights[-1].item()
        return (1 - weight) * self.inverse.spectral_bound(largest) + weight * largest / self.largest


def build(task: Task, parameters: BackProjectionParameters) -> BackProjection:
    """The operator for a task and its number of iterations."""
    weights = schedule(task.iterations, parameters.gamma)
    return BackProjection(hessian.build(task, parameters), weights, task.norm_squared())


def fit(task: Task, parameters: BackProjectionParameters, context: FitContext) -> Iterative:
    operator = build(task, parameters)
    context.notes["closed_form"] = hessian.has_closed_form(task.student, task.shape)
    return context.reconstructor(task, parameters.solve, operator)


def published(task: Task) -> dict[str, Value]:
    """The source's full step without momentum; lambda_max(P A^T A) is 1 (see `spectral_bound`)."""
    chosen = {"solve.step": 1.0, "solve.momentum": "none"}
    return relative(task.published_solve(), 1.0) | chosen


METHOD = Method(
    name="bp-ls",
    title="Back-projection to least squares",
    summary="P_k from (A^T A + mu I)^-1 to I / lambda_max over the iterations",
    operator="hessian",
    rule="scheduled",
    paper="Garber, Tirer, CVPR 2024, arXiv 2312.16519",
    fixed_point="as without P, beyond K iterations; until then re-weighted anew in every iteration",
    cost="as `hessian`: 3 operator calls, 1 denoiser call in closed form; as `hessian`",
    parameters=BackProjectionParameters,
    solver_free=True,
    fit=fit,
    published=published,
)
