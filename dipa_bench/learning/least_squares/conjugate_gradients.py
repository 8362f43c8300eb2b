"""Conjugate gradients on normal equations in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

MOST = 300  # iterations


def conjugate_gradients(
    normal: Callable[[Tensor], Tensor], target: Tensor, tolerance: float, most: int = MOST
) -> Tensor:
    """The least-norm solution of a consistent N d = b by conjugate gradients from zero.

    Every iterate lowers d^T N d / 2 - d^T b, so that stopping early is safe.

    Args:
        normal: d -> N d, symmetric and positive semi-definite.
        target: b, of any shape; float64.
        tolerance: residual, relative to |b|, at which to stop.
        most: iterations at most.
    """
    solution = torch.zeros_like(target)
    residual, direction = target.clone(), target.clone()
    left = first = residual.square().sum()
    for _ in range(most):
        if left <= tolerance**2 * first:
            break
        image = normal(direction)
        curvature = (direction * image).sum()
        if curvature <= 0:
            break
        step = left / curvature
        solution += step * direction
        residual -= step * image
        before, left = left, residual.square().sum()
        direction = residual + (left / before) * direction
    return solution


def tolerance(dtype: torch.dtype) -> float:
    """What conjugate gradients can reach when the operator works in `dtype`."""
    return max(1e-10, 100 * torch.finfo(dtype).eps)
