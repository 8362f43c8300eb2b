"""`barzilai-borwein`: a control, not a preconditioner: one adaptive step length for each image.

Barzilai, Borwein, Two-point step size gradient methods, IMA J. Numer. Anal. 8, 1988. With the
differences s of the last two points and m of their data gradients, the step in place of
1 / lambda_max(A^T A) is

- ``bb1``: <s, s> / <s, m>;
- ``bb2``: <s, m> / <m, m>, never longer.

m = A^T A s, so both lie at or above 1 / lambda_max; they are kept below `cap` times as much, and
at or above a tenth of it, which only rounding passes. The first step, and that of an image that
does not move, is 1 / lambda_max. The solver's own step multiplies them all.

Fixed point: none in common with the unpreconditioned algorithm. D(x - tau grad f(x)) has another
for every tau, and with RED tau acts on the data term alone. Cost of an iteration: two or three
inner products, no application of A beyond the gradient's. Barzilai and Borwein have no momentum,
which the published settings follow; a search may add it.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from dipa_bench.linear_algebra import inner
from dipa_bench.methods import FitContext, Iterative, Method, relative
from dipa_bench.parameters import Parameters, Search, Value
from dipa_bench.preconditioners import Preconditioner, State
from dipa_bench.solvers import SolveParameters
from dipa_bench.tasks.base import Task

RULES = ("bb1", "bb2")
SHORTEST = 0.1  # in units of 1 / lambda_max


class BarzilaiBorweinParameters(Parameters):
    """The rule and its safeguard, beside the solver's own."""

    solve: SolveParameters = SolveParameters()
    rule: Annotated[
        Literal["bb1", "bb2"],
        Field(description="long (bb1) or short (bb2) step"),
        Search(choices=RULES),
    ] = "bb2"
    cap: Annotated[
        float,
        Field(ge=1, description="longest step, relative to 1/lambda_max(A^T A)"),
        Search(2.0, 100.0, log=True),
    ] = 10.0


class BarzilaiBorwein(Preconditioner):
    """tau_k lambda_max I, one tau_k for each image.

    It has the scale of I so that steps relative to lambda_max(A^T A) fit it.

    Args:
        rule: one of `RULES`.
        cap: longest tau_k, in units of 1 / lambda_max.
        largest: lambda_max(A^T A).
    """

    linear = False  # its factor is made of the run's points

    def __init__(self, rule: str, cap: float, largest: float) -> None:
        super().__init__()
        self.rule = rule
        self.cap = cap
        self.largest = largest

    def forward(self, gradient: Tensor, state: State) -> Tensor:
        if state.previous_gradient is None:
            return gradient
        moved = state.point - state.previous_point
        change = (state.gradient - state.previous_gradient) / self.largest
        along = inner(moved, change)
        if self.rule == "bb1":
            above, below = inner(moved, moved), along
        else:
            above, below = along, inner(change, change)
        still = (above <= 0) | (below < 0)
        longest = torch.full_like(above, self.cap)
        factor = torch.where(below > 0, above / below.clamp_min(_tiny(below)), longest)
        factor = factor.clamp(SHORTEST, self.cap)
        return torch.where(still, torch.ones_like(factor), factor) * gradient


def _tiny(like: Tensor) -> float:
    return torch.finfo(like.dtype).tiny


def fit(task: Task, parameters: BarzilaiBorweinParameters, context: FitContext) -> Iterative:
    operator = BarzilaiBorwein(parameters.rule, parameters.cap, task.norm_squared())
    return context.reconstructor(task, parameters.solve, operator)


def published(task: Task) -> dict[str, Value]:
    """The rule as it stands: the full step from the last difference, without momentum."""
    chosen = {"solve.step": 1.0, "solve.momentum": "none"}
    return relative(task.published_solve(), task.norm_squared()) | chosen


METHOD = Method(
    name="barzilai-borwein",
    title="Barzilai-Borwein",
    summary="one step length for each image and iteration, from the last two gradients (a control)",
    operator="none",
    rule="secant",
    paper="Barzilai, Borwein, IMA J. Numer. Anal. 8, 1988",
    fixed_point="none in common: every step length weighs the data term anew",
    cost="2 operator calls, 1 denoiser call",
    parameters=BarzilaiBorweinParameters,
    solver_free=True,
    fit=fit,
    published=published,
)
