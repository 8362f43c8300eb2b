"""Any operator that is linear in its numbers, by conjugate gradients through autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dipa_bench.learning.least_squares.problem import Criterion, Lesson, tolerance
from dipa_bench.linear_algebra import solve
from dipa_bench.preconditioners import LinearOperator

MOST = 60  # iterations: each applies A^T A and the operator to all lessons; every one improves


def best_numbers(
    lessons: Sequence[Lesson], criterion: Criterion, operator: LinearOperator, ridge: float
) -> Tensor:
    """The identity's numbers + d with sum_j B_j^T N B_j d + rho d = sum_j B_j^T t_j.

    B_j d is the operator's act on g_j; B_j^T comes from automatic differentiation.

    Args:
        lessons: the training images where the operator is to act.
        criterion: what is minimised.
        operator: still the identity; its numbers are read, not changed.
        ridge: rho, relative to |B e|^2 of one random unit e, which is near its mean.

    Returns:
        One entry of `operator.numbers`, float64, as it is kept.
    """
    start = operator.numbers.detach()[0].double()
    targets = criterion.targets(lessons)
    if targets is None:
        return criterion.plain * start
    gradients = [lesson.gradient for lesson in lessons]

    def back(gradient: Tensor, image: Tensor) -> Tensor:
        """B^T image; B is linear, so where it is differentiated does not matter."""
        with torch.enable_grad():
            point = torch.zeros_like(start).requires_grad_()
            seen = operator.act(gradient.double(), point)
            return torch.autograd.grad(seen, point, image.double())[0]

    def ahead(gradient: Tensor, d: Tensor) -> Tensor:
        return operator.act(gradient.double(), d)

    def normal(d: Tensor) -> Tensor:
        found = rho * d
        for gradient in gradients:
            image = ahead(gradient, d).to(gradient.dtype)
            found += back(gradient, criterion.normal(image))
        return found

    probe = torch.randn(start.shape, generator=torch.Generator().manual_seed(0)).to(start)
    probe /= probe.norm()
    rho = ridge * sum(ahead(g, probe).square().sum().item() for g in gradients)
    right = sum(back(g, t) for g, t in zip(gradients, targets, strict=True))
    found = solve(normal, right, MOST, tolerance(gradients[0].dtype))
    return criterion.plain * (start + found)
