"""`identity` and `lmmse-identity`: the unpreconditioned algorithm, tuned.

The first is the row that all others are compared with. The second is a control: it always starts
from the LMMSE map of the training images, which a learned P has to beat.

Fixed point: the unpreconditioned algorithm's own. Cost of an iteration: two applications of A or
A^T and one of D; the LMMSE start is one matrix product more, without either.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dipa_bench.learning import lmmse
from dipa_bench.methods import FitContext, Iterative, Method, SolverOnly, published_solve
from dipa_bench.parameters import Parameters, Search, Value
from dipa_bench.preconditioners import Identity
from dipa_bench.solvers import SolveParameters
from dipa_bench.tasks.base import Task

FIXED_POINT = "as without P"
COST = "2 operator calls, 1 denoiser call"


class StartedFromLMMSE(SolveParameters):
    """The solver's own with one start.

    It is declared as a search among one, so that all rows draw the same other settings.
    """

    start: Annotated[
        Literal["lmmse"],
        Field(description="x_0: the LMMSE map of the training images"),
        Search(choices=("lmmse",)),
    ] = "lmmse"


class LMMSEIdentityParameters(Parameters):
    """The solver's settings but for the start."""

    solve: StartedFromLMMSE = StartedFromLMMSE()


def fit(
    task: Task, parameters: SolverOnly | LMMSEIdentityParameters, context: FitContext
) -> Iterative:
    return context.reconstructor(task, parameters.solve, Identity())


def published_from_lmmse(task: Task) -> dict[str, Value]:
    """The published solver settings with the start that is this row's own."""
    return published_solve(task) | {"solve.start": "lmmse"}


def without_map(task: Task) -> str | None:
    """Why there is no LMMSE map to start from, or None."""
    reason = lmmse.unavailable(task)
    return reason and f"{reason}: use identity, which has other starts"


METHOD = Method(
    name="identity",
    title="Identity",
    summary="no preconditioner: the solver itself, with its settings tuned",
    operator="identity",
    rule="none",
    fixed_point=FIXED_POINT,
    cost=COST,
    parameters=SolverOnly,
    solver_free=True,
    fit=fit,
    contains=("lmmse-identity",),
)

FROM_LMMSE = Method(
    name="lmmse-identity",
    title="Identity from LMMSE (control)",
    summary="no preconditioner: the tuned solver, always started from the LMMSE map",
    operator="identity",
    rule="none",
    fixed_point=FIXED_POINT,
    cost=COST,
    parameters=LMMSEIdentityParameters,
    solver_free=True,
    fit=fit,
    published=published_from_lmmse,
    skip=without_map,
)
