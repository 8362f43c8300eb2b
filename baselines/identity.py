"""`identity`: the unpreconditioned algorithm, tuned; the row that all others are compared with."""

from dipa_bench.methods import FitContext, Iterative, Method, SolverOnly
from dipa_bench.preconditioners import Identity
from dipa_bench.tasks.base import Task


def fit(task: Task, parameters: SolverOnly, context: FitContext) -> Iterative:
    return context.reconstructor(task, parameters.solve, Identity())


METHOD = Method(
    name="identity",
    title="Identity",
    summary="no preconditioner: the solver itself, with its settings tuned",
    operator="identity",
    rule="none",
    parameters=SolverOnly,
    fit=fit,
)
