"""Inner products, norms and conjugate gradients of each image of a batch by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import torch
from torch import Tensor

ROUNDING = 100  # times the precision of a point


def inner(a: Tensor, b: Tensor) -> Tensor:
    """<a, b> of each image, as B x 1 x 1 x 1."""
    return (a * b).flatten(1).sum(1).view(-1, 1, 1, 1)


def norm(images: Tensor) -> Tensor:
    """||x|| of each image, as B x 1 x 1 x 1."""
    return torch.linalg.vector_norm(images.flatten(1), dim=1).view(-1, 1, 1, 1)


def moved(step: Tensor, point: Tensor) -> Tensor:
    """Whether each image moved by more than rounding, B x 1 x 1 x 1.

    Args:
        step: difference of the last two points, B x C x H x W.
        point: the last.
    """
    return norm(step) > ROUNDING * torch.finfo(step.dtype).eps * norm(point)


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], right: Tensor, iterations: int
) -> Tensor:
    """x of M x = b after a fixed number of iterations from zero, for each image by itself.

    Right-hand sides are normalised, so that small ones lose nothing to the guards of divisions.

    Args:
        product: v -> M v for a symmetric positive definite M; called once in each iteration.
        right: b, B x C x H x W.
        iterations: N >= 1.
    """
    scale = norm(right)
    unit = right / scale.clamp_min(torch.finfo(right.dtype).tiny)
    *_, (found, _) = islice(iterates(product, unit), iterations)
    return scale * found


def iterates(product: Callable[[Tensor], Tensor], right: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Conjugate gradients' x_1, x_2, ... without end, each with its ||b - M x||^2 (B x 1 x 1 x 1).

    Args:
        product, right: as in `conjugate_gradients`; b of norm 1.
    """
    tiny = torch.finfo(right.dtype).tiny
    found, residual, direction = torch.zeros_like(right), right, right
    energy = inner(residual, residual)
    while True:
        image = product(direction)
        length = energy / inner(direction, image).clamp_min(tiny)
        found = found + length * direction
        residual = residual - length * image
        following = inner(residual, residual)
        yield found, following
        direction = residual + following / energy.clamp_min(tiny) * direction
        energy = following
