"""Diagonal operators."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dipa_bench.learning.least_squares.problem import MOST, Criterion, Lesson, tolerance
from dipa_bench.linear_algebra import solve


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

    found = solve(normal, right, MOST, tolerance(gradients[0].dtype))
    return criterion.plain * (ones + found)
