"""`convolutional`: a circular convolution per iteration, learned greedily."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

import torch
from pydantic import Field, field_validator
from torch import Tensor

from baselines.greedy import (
    PAPER,
    Criterion,
    Lesson,
    RidgeParameters,
    conjugate_gradients,
    learn,
    published,
)
from dipa_bench.errors import UserError
from dipa_bench.methods import FitContext, Iterative, Method
from dipa_bench.parameters import Search
from dipa_bench.preconditioners import Preconditioner, State
from dipa_bench.tasks.base import Task

CHUNK = 8  # images whose shifted copies are held at once
TOLERANCE = 1e-10  # of the conjugate gradients on the assembled equations


class ConvolutionalParameters(RidgeParameters):
    """The size of the kernels, beside what every greedy operator has."""

    kernel: Annotated[
        int,
        Field(ge=1, description="side of the kernel in pixels, odd; one for all channels"),
        Search(choices=(3, 5, 7, 9)),
    ] = 5

    @field_validator("kernel")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("a kernel has a middle: give an odd number")
        return value


class Convolutional(Preconditioner):
    """P_k g = sum over offsets o of kernel_k[o] g(. + o), circular, each channel by itself.

    The last kernel repeats beyond the fitted iterations.

    Args:
        iterations: how many kernels there are.
        size: their side in pixels, odd.
    """

    def __init__(self, iterations: int, size: int) -> None:
        super().__init__()
        self.register_buffer("kernels", plain(size).repeat(iterations, 1, 1))

    def forward(self, gradient: Tensor, state: State) -> Tensor:
        kernel = self.kernels[min(state.iteration, len(self.kernels) - 1)]
        margin = len(kernel) // 2
        rows = gradient.flatten(0, 1).unsqueeze(1)
        wrapped = torch.nn.functional.pad(rows, [margin] * 4, mode="circular")
        return torch.nn.functional.conv2d(wrapped, kernel[None, None]).view_as(gradient)


def plain(size: int) -> Tensor:
    """The kernel of the identity, size x size."""
    kernel = torch.zeros(size, size)
    kernel[size // 2, size // 2] = 1
    return kernel


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
    found = conjugate_gradients(lambda d: matrix @ d, right, TOLERANCE, 10 * taps)
    return criterion.plain * (start + found.view(size, size))


def _seen(copies: Tensor, criterion: Criterion) -> Tensor:
    """Rows whose inner products are those of the copies with respect to N; float64."""
    if criterion.objective == "distance":
        return copies.flatten(1).double()
    measured = criterion.physics.A(copies.flatten(0, 1)) / criterion.largest**0.5
    if measured.is_complex():
        measured = torch.view_as_real(measured)
    return measured.reshape(len(copies), -1).double()


def fit(task: Task, parameters: ConvolutionalParameters, context: FitContext) -> Iterative:
    """Learns the kernels one by one; see `baselines.greedy`.

    Raises:
        UserError: the kernel is larger than the images.
    """
    size, least = parameters.kernel, min(task.shape[1:])
    if size > least:
        raise UserError(f"kernel = {size} is larger than the images' {least} pixels: give less")
    operator = Convolutional(task.iterations, size).to(task.device, task.dtype)
    best = partial(best_kernel, size=size, ridge=parameters.ridge)
    return learn(
        task, parameters.solve, parameters.objective, context, operator, best, operator.kernels
    )


METHOD = Method(
    name="convolutional",
    title="Convolutional (greedy)",
    summary="one small circular kernel per iteration, minimising the next data term (or, "
    "objective=distance, the distance to the truth) on training images",
    operator="convolution",
    rule="greedy",
    learned=True,
    paper=PAPER,
    parameters=ConvolutionalParameters,
    fit=fit,
    published=published,
)
