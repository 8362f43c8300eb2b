"""The solver's hyper-parameters, searched alike for every method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from dipa_bench.parameters import Parameters, Search
from dipa_bench.priors.base import Prior
from dipa_bench.solvers.base import Solver
from dipa_bench.solvers.fista import REDFISTA, PnPFISTA


class SolveParameters(Parameters):
    """Step, prior strength, momentum and start of one reconstruction."""

    step: Annotated[
        float,
        Field(
            gt=0,
            description="step, relative to 1/lambda_max(P A^T A); without a prior all iterations "
            "stay bounded below 2 without momentum, below 4/3 with it",
        ),
        Search(0.03, 2.0),
    ] = 1.0
    strength: Annotated[
        float | None,
        Field(
            gt=0,
            description="strength of the prior, the geometric mean over the iterations, in its "
            "unit (sigma, or s of s D(v/s))",
        ),
        Search(ask="strength"),
    ] = None
    decay: Annotated[
        float,
        Field(
            gt=0,
            description="the prior's strength in the last iteration relative to the first, "
            "geometric between them; 1 for a constant one",
        ),
        Search(0.003, 3.0, log=True),
    ] = 1.0
    momentum: Annotated[
        Literal["textbook", "published", "none"],
        Field(description="momentum rule: Chambolle-Dossal, the published runs', or none"),
        Search(choices=("textbook", "published", "none")),
    ] = "textbook"
    start: Annotated[
        Literal["adjoint", "zero", "preconditioned", "lmmse"],
        Field(description="x_0: A^T y, 0, alpha P A^T y, or the LMMSE map of the training images"),
        Search(choices=("adjoint", "zero", "preconditioned", "lmmse")),
    ] = "adjoint"
    weight: Annotated[
        float,
        Field(gt=0, description="RED's lambda, relative to lambda_max(P A^T A)"),
        Search(0.01, 10.0, log=True, solver="red-fista"),
    ] = 1.0
    units: Annotated[
        Literal["relative", "absolute"],
        Field(description="whether step and weight are relative (as above) or absolute"),
    ] = "relative"


def build_solver(
    name: str,
    prior: Prior,
    parameters: SolveParameters,
    *,
    iterations: int,
    largest: float,
    bound: float | None = None,
    lmmse: Callable[[], Callable[[Tensor], Tensor]] | None = None,
) -> Solver:
    """A solver from its hyper-parameters.

    Args:
        name: ``pnp-fista`` or ``red-fista``.
        prior: the denoiser.
        parameters: strength must be set.
        iterations: K.
        largest: lambda_max(A^T A).
        bound: lambda_max(P A^T A) where it is known; steps and weights are relative to it, so that
            data and prior keep their balance whatever P does to the size of the gradient.
        lmmse: gives the map y -> x_0 of the start ``lmmse``; called only for that start.
    """
    unit = 1.0 if parameters.units == "absolute" else bound or largest
    options = {
        "step": parameters.step / unit,
        "strength": parameters.strength,
        "decay": parameters.decay,
        "iterations": iterations,
        "momentum": parameters.momentum,
        "start": lmmse() if parameters.start == "lmmse" else parameters.start,
    }
    if name == "red-fista":
        return REDFISTA(prior, weight=parameters.weight * unit, **options)
    return PnPFISTA(prior, **options)
