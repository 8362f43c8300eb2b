"""`pointwise`: a diagonal operator per iteration, learned greedily."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from baselines.greedy import (
    PAPER,
    Criterion,
    Lesson,
    RidgeParameters,
    conjugate_gradients,
    expect,
    learn,
    published,
    tolerance,
)
from dipa_bench.methods import FitContext, Iterative, Method
from dipa_bench.preconditioners import Preconditioner, State
from dipa_bench.tasks.base import Task


class Pointwise(Preconditioner):
    """P_k = diag(p_k); the last one repeats beyond the fitted iterations.

    Args:
        iterations: how many there are.
        shape: (C, H, W) of the images; others are refused.
    """

    def __init__(self, iterations: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.register_buffer("factors", torch.ones(iterations, *shape))

    def forward(self, gradient: Tensor, state: State) -> Tensor:
        expect(self.factors.shape[1:], gradient.shape[1:])
        return self.factors[min(state.iteration, len(self.factors) - 1)] * gradient


def best_factors(lessons: Sequence[Lesson], criterion: Criterion, ridge: float) -> Tensor:
    """p = 1 + d with (sum_j g_j g_j^T o N + rho) d = sum_j g_j o t_j.

    Closed form for ``distance``, conjugate gradients for ``value``.

    Args:
        lessons: the training images where p is to act.
        criterion: what is minimised.
        ridge: rho, relative to the mean of sum_j g_j o g_j.

    Returns:
        C x H x W, float64, as it is kept (in units of 1 / L).
    """
    gradients = [lesson.gradient for lesson in lessons]
    ones = torch.ones_like(gradients[0][0], dtype=torch.float64)
    targets = criterion.targets(lessons)
    if targets is None:
        return criterion.plain * ones
    pairs = list(zip(gradients, targets, strict=True))
    right = sum((g.double() * t.double()).sum(0) for g, t in pairs)
    squares = sum(g.double().square().sum(0) for g in gradients)
    rho = ridge * squares.mean()
    if criterion.objective == "distance":
        return criterion.plain * (ones + right / (squares + rho))

    def normal(d: Tensor) -> Tensor:
        batches = (g * criterion.normal(g * d.to(g.dtype)) for g in gradients)
        return sum(batch.sum(0, dtype=torch.float64) for batch in batches) + rho * d

    found = conjugate_gradients(normal, right, tolerance(gradients[0].dtype))
    return criterion.plain * (ones + found)


def fit(task: Task, parameters: RidgeParameters, context: FitContext) -> Iterative:
    """Learns the diagonals one by one; see `baselines.greedy`."""
    operator = Pointwise(task.iterations, task.shape).to(task.device, task.dtype)
    return learn(
        task,
        parameters.solve,
        parameters.objective,
        context,
        operator,
        partial(best_factors, ridge=parameters.ridge),
        operator.factors,
    )


METHOD = Method(
    name="pointwise",
    title="Pointwise (greedy)",
    summary="one diagonal per iteration, minimising the next data term (or, objective=distance, "
    "the distance to the truth) on training images",
    operator="pointwise",
    rule="greedy",
    learned=True,
    paper=PAPER,
    parameters=RidgeParameters,
    fit=fit,
    published=published,
)
