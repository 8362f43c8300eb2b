"""A plug-in in twenty lines: the direction of later iterations is damped."""

from typing import Annotated

from pydantic import Field

from dipa_bench.methods import FitContext, Iterative, Method, SolverOnly
from dipa_bench.parameters import Search
from dipa_bench.preconditioners import Preconditioner


class Damped(Preconditioner):
    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, gradient, state):
        return gradient / (1 + self.rate * state.iteration)


class DampedParameters(SolverOnly):
    rate: Annotated[float, Field(ge=0, description="of the damping"), Search(0.0, 1.0)] = 0.1


def fit(task, parameters: DampedParameters, context: FitContext) -> Iterative:
    return context.reconstructor(task, parameters.solve, Damped(parameters.rate))


METHOD = Method(
    name="damped",
    title="Damped steps",
    summary="steps that shrink as 1 / (1 + rate k)",
    operator="scalar",
    rule="analytic",
    parameters=DampedParameters,
    fit=fit,
)
