"""Inner products, norms and conjugate gradients, of each item of a batch by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor

ROUNDING = 100  # times the precision of a point


def inner(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of each item, with the batch's number of dimensions: B x 1 x ... x 1."""
    return (a * b).reshape(len(a), -1).sum(1).view(-1, *[1] * (a.ndim - 1))


def norm(batch: Tensor) -> Tensor:
    """||x|| of each item, B x 1 x ... x 1."""
    sizes = torch.linalg.vector_norm(batch.reshape(len(batch), -1), dim=1)
    return sizes.view(-1, *[1] * (batch.ndim - 1))


def moved(step: Tensor, point: Tensor) -> Tensor:
    """Whether each item moved by more than rounding, B x 1 x ... x 1.

    Args:
        step: difference of the last two points, B x ....
        point: the last.
    """
    return norm(step) > ROUNDING * torch.finfo(step.dtype).eps * norm(point)


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    right: Tensor,
    iterations: int,
    tolerance: float = 0.0,
) -> Tensor:
    """x of M x = b by conjugate gradients from zero, for each item of a batch by itself.

    Every iterate lowers <x, M x> / 2 - <b, x>, so that stopping early is safe; where M is singular
    and the system consistent they tend to the solution of least norm. Right-hand sides are
    normalised, so that small ones lose nothing to the range of floating point.

    Args:
        product: v -> M v for a symmetric, positive semi-definite M; once in each iteration.
        right: b, B x ... of any shape.
        iterations: N >= 1.
        tolerance: of the residual relative to ||b||: an item that is there stays, and the
            iterations end with the last one. At 0 all N are made.
    """
    scale = norm(right)
    unit = right / scale.clamp_min(torch.finfo(right.dtype).tiny)
    for found, energy in islice(iterates(product, unit, tolerance), iterations):  # noqa: B007
        if tolerance and not energy.any():
            break
    return scale * found


def solve(
    product: Callable[[Tensor], Tensor], right: Tensor, iterations: int, tolerance: float
) -> Tensor:
    """`conjugate_gradients` of one system, whose b is not one of a batch but of any shape."""
    return conjugate_gradients(lambda v: product(v[0])[None], right[None], iterations, tolerance)[0]


def iterates(
    product: Callable[[Tensor], Tensor], right: Tensor, tolerance: float = 0.0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Conjugate gradients' x_1, x_2, ... without end, each with its ||b - M x||^2 (B x 1 x ...).

    An item whose residual is within the tolerance, or without curvature in its direction, as
    rounding leaves it at the end, stays: its residual counts as zero.

    Args:
        product, right, tolerance: as in `conjugate_gradients`; b of norm 1.
    """
    found, residual, direction = torch.zeros_like(right), right, right
    energy = inner(residual, residual)
    while True:
        image = product(direction)
        curvature = inner(direction, image)
        going = curvature > 0
        length = torch.where(going, energy, 0) / torch.where(going, curvature, 1)
        found = found + length * direction
        residual = residual - length * image
        following = inner(residual, residual)
        going = going & (following > tolerance**2)
        residual, following = torch.where(going, residual, 0), torch.where(going, following, 0)
        yield found, following
        direction = residual + following / torch.where(energy > 0, energy, 1) * direction
        energy = following
