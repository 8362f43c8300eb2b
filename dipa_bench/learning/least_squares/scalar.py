"""One number."""

from __future__ import annotations

from collections.abc import Sequence

from dipa_bench.learning.least_squares.problem import NEGLIGIBLE, Criterion, Lesson, energy


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
