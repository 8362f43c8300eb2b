"""`scalar`: one greedily learned step per iteration (Fahy, Golbabaee, Ehrhardt).

The step of iteration k minimises the data term at the next iterate over the training images,
alpha_k = sum_j ||g_j||^2 / sum_j ||A g_j||^2 (or, objective ``distance``, the distance to the true
images), and the images are rolled forward with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from baselines.greedy import (
    NEGLIGIBLE,
    PAPER,
    Criterion,
    GreedyParameters,
    Lesson,
    energy,
    learn,
    published,
)
from dipa_bench.methods import FitContext, Iterative, Method
from dipa_bench.preconditioners import Preconditioner, State
from dipa_bench.tasks.base import Task


class ScalarSteps(Preconditioner):
    """P_k = s_k I; the last step repeats beyond the fitted iterations.

    Args:
        iterations: how many steps there are.
    """

    def __init__(self, iterations: int) -> None:
        super().__init__()
        self.register_buffer("steps", torch.ones(iterations))

    def forward(self, gradient: Tensor, state: State) -> Tensor:
        return self.steps[min(state.iteration, len(self.steps) - 1)] * gradient


def greedy_step(energy: float, curvature: float, size: float, otherwise: float) -> float:
    """Energy / curvature, and `otherwise` for gradients that vanish.

    Args:
        energy: sum of ||g_j||^2.
        curvature: sum of g_j^T A^T A g_j.
        size: what counts as large, in the unit of `energy`.
        otherwise: an absolute step.
    """
    return energy / curvature if energy > NEGLIGIBLE * size and curvature > 0 else otherwise


def best_step(lessons: Sequence[Lesson], criterion: Criterion) -> float:
    """The minimising step, as it is kept.

    Value: sum ||g_j||^2 / sum ||A g_j||^2. Distance: sum <g_j, x_j - x*_j> / sum ||g_j||^2, which
    may be negative.
    """
    gradients = [lesson.gradient for lesson in lessons]
    size, otherwise = criterion.size, 1 / criterion.largest
    slopes = energy(gradients)
    if criterion.objective == "distance":
        if criterion.negligible(lessons):
            return criterion.plain
        errors = (lesson.gradient * (lesson.point - lesson.truth) for lesson in lessons)
        return criterion.unit * sum(error.sum().item() for error in errors) / slopes
    physics = criterion.physics
    curvature = sum(physics.A(gradient).abs().square().sum().item() for gradient in gradients)
    return criterion.unit * greedy_step(slopes, curvature, size, otherwise)


def fit(task: Task, parameters: GreedyParameters, context: FitContext) -> Iterative:
    """Learns the steps one by one, each on the iterates that the ones before led to.

    They are kept in units of 1 / lambda_max(A^T A), in which the solver's own step multiplies them.
    """
    operator = ScalarSteps(task.iterations).to(task.device, task.dtype)
    return learn(
        task,
        parameters.solve,
        parameters.objective,
        context,
        operator,
        best_step,
        operator.steps,
    )


METHOD = Method(
    name="scalar",
    title="Scalar steps (greedy)",
    summary="one step per iteration, minimising the next data term (or, objective=distance, the "
    "distance to the truth) on training images",
    operator="scalar",
    rule="greedy",
    learned=True,
    paper=PAPER,
    parameters=GreedyParameters,
    fit=fit,
    published=published,
)
