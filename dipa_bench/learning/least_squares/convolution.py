"""Circular convolutions with one small kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dipa_bench.learning.least_squares.problem import Criterion, Lesson
from dipa_bench.linear_algebra import solve
from dipa_bench.preconditioners.linear import plain

CHUNK = 8  # images whose shifted copies are held at once
TOLERANCE = 1e-10  # of the conjugate gradients on the assembled equations


def shifted(images: Tensor, size: int) -> Tensor:
    """Copies g(. + o) for each offset o of a kernel, row by row: size^2 x B x C x H x W."""
    margin = size // 2
    offsets = [(i - margin, j - margin) for i in range(size) for j in range(size)]
    return torch.stack([images.roll((-down, -right), (-2, -1)) for down, right in offsets])


def best_kernel(lessons: Sequence[Lesson], criterion: Criterion, size: int, ridge: float) -> Tensor:
    """The identity + d, where d solves the normal equations, assembled from the shifted gradients.

    Args:
        lessons: the training images where the kernel is to act.
        criterion: what is minimised.
        size: side of the kernel.
        ridge: relative to the equations' trace.

    Returns:
        size x size, float64, as it is kept (in units of 1 / L).
    """
    start = plain(size).to(lessons[0].gradient.device, torch.float64)
    targets = criterion.targets(lessons)
    if targets is None:
        return criterion.plain * start
    taps = size * size
    matrix, right = start.new_zeros(taps, taps), start.new_zeros(taps)
    for lesson, target in zip(lessons, targets, strict=True):
        parts = zip(lesson.gradient.split(CHUNK), target.split(CHUNK), strict=True)
        for gradient, aim in parts:
            copies = shifted(gradient, size)
            right += copies.flatten(1).double() @ aim.flatten().double()
            seen = _seen(copies, criterion)
            matrix += seen @ seen.T
    matrix.diagonal().add_(ridge * matrix.trace())
    found = solve(lambda d: matrix @ d, right, 10 * taps, TOLERANCE)
    return criterion.plain * (start + found.view(size, size))


def _seen(copies: Tensor, criterion: Criterion) -> Tensor:
    """Rows whose inner products are those of the copies with respect to N; float64."""
    if criterion.objective == "distance":
        return copies.flatten(1).double()
    measured = criterion.physics.A(copies.flatten(0, 1)) / criterion.largest**0.5
    if measured.is_complex():
        measured = torch.view_as_real(measured)
    return measured.reshape(len(copies), -1).double()
