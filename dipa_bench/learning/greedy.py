"""Greedy learning: one operator per iteration, each fitted on the iterates that the ones before led
to (Fahy, Golbabaee, Ehrhardt, arXiv 2406.00260v9).

The operator of iteration k minimises over the training images either the data term after its own
gradient step (objective ``value``) or the distance to the truth (``distance``); see
`dipa_bench.learning.least_squares` for the equations. The prior and the momentum are no part of
either, but the images are rolled forward with them. The ridge is the paper's pull towards plain
gradient descent; without it, ill-posed A make the operators that fit the data best useless.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from dipa_bench.learning.cross_fitting import training_starts
from dipa_bench.learning.least_squares import (
    LARGEST,
    Criterion,
    Lesson,
    Objective,
    energy,
    minimiser,
)
from dipa_bench.learning.rules import Maker, RuleSpec
from dipa_bench.methods import FitContext, Iterative, relative
from dipa_bench.parameters import Parameters, Search, Value, frozen
from dipa_bench.preconditioners import OperatorSpec, State
from dipa_bench.solvers import SolveParameters
from dipa_bench.tasks.base import Task

PAPER = "Fahy, Golbabaee, Ehrhardt, Greedy Learning to Optimize, arXiv 2406.00260v9"
BATCH = 64
READS: dict[Objective, str] = {"value": "measurements", "distance": "ground truth"}


class GreedyParameters(Parameters):
    """What is minimised, beside the solver's own parameters."""

    solve: SolveParameters = SolveParameters()
    objective: Annotated[
        Objective,
        Field(description="next data-term value, or distance to the truth (reads ground truth)"),
        Search(choices=("value", "distance")),
    ] = "value"
    ridge: Annotated[
        float,
        Field(
            gt=0,
            description="weight of |P - I|^2, relative to the least-squares problem's own; a "
            "scalar has none",
        ),
        Search(1e-8, 1.0, log=True),
    ] = 1e-2


def parameters_for(operator: OperatorSpec) -> type[GreedyParameters]:
    """A scalar has no ridge to search."""
    if not operator.single:
        return GreedyParameters
    return frozen(GreedyParameters, ridge=GreedyParameters().ridge)


@torch.no_grad()
def fit(task: Task, make: Maker, parameters: GreedyParameters, context: FitContext) -> Iterative:
    """Fits one operator after the other, each on the iterates that the ones before led to.

    They are kept in units of 1 / L, in which the solver's own step multiplies them (absolute where
    the solver's step is).

    Args:
        task: the task, of which the budget's training images are used.
        make: gives the operators.
        parameters: of the rule and the solver.
        context: of the fit.
    """
    solve, objective = parameters.solve, parameters.objective
    best = minimiser(make(1), parameters.ridge, objective, task)
    operator = make(task.iterations).requires_grad_(False)
    stored = operator.numbers
    reconstructor = context.reconstructor(task, solve, operator)
    solver, physics, largest = reconstructor.solver, task.student, task.norm_squared()
    unit = largest if solve.units == "relative" else 1.0
    images = task.images.train.first(context.budget.train_images)
    measured = task.measure(images).split(BATCH)
    truths = task.pixels(images).split(BATCH)
    at_zero = [physics.A_adjoint(y) for y in measured]
    criterion = Criterion(physics, largest, objective, energy(at_zero), unit)

    shared = solve.start == "preconditioned"
    if shared:  # x_0 is a step from zero with P_0 itself, so that step is the one to fit
        parts = zip(at_zero, measured, truths, strict=True)
        lessons = [Lesson(torch.zeros_like(g), -g, -y, truth) for g, y, truth in parts]
        stored[0] = best(lessons, criterion)
    firsts = training_starts(solver, images)
    firsts = [None] * len(measured) if firsts is None else firsts.split(BATCH)
    pairs = zip(measured, firsts, strict=True)
    states = [solver.start(y, physics, operator, first) for y, first in pairs]
    for iteration in range(task.iterations):
        states = [solver.with_gradient(state) for state in states]
        if iteration or not shared:
            stored[iteration] = best(_lessons(states, truths), criterion)
        states = [solver.advance(state, operator) for state in states]
    return reconstructor


def _lessons(states: Sequence[State], truths: Sequence[Tensor]) -> list[Lesson]:
    pairs = zip(states, truths, strict=True)
    return [Lesson(s.point, s.gradient, s.residual, truth) for s, truth in pairs]


def published(operator: OperatorSpec, task: Task) -> dict[str, Value]:
    """The learned operators as they are; all else as published for the solver."""
    return relative(task.published_solve(), task.norm_squared()) | {"solve.step": 1.0}


RULE = RuleSpec(
    name="greedy",
    title="Greedy",
    summary="one for each iteration, minimising the next data term (or, objective=distance, the "
    "distance to the truth) on training images",
    parameters=parameters_for,
    fit=fit,
    published=published,
    cost="2 operator calls, 1 denoiser call; one least-squares problem for each iteration",
    paper=PAPER,
    affine=True,
    supervision=lambda parameters: READS[parameters.objective],
    each=lambda parameters: True,
    largest=LARGEST,
)
