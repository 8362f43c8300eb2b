"""`sr`: super-resolution; Gaussian blur, then decimation, all circular."""

from __future__ import annotations

from typing import Annotated

import torch
from deepinv.physics import Downsampling
from pydantic import Field

from dipa_bench.errors import UserError
from dipa_bench.parameters import Parameters
from dipa_bench.tasks.base import Operators, TaskSpec, TeacherSpec

SUPPORT = 9  # pixels on a side of the blur kernel


class SuperResolution(Parameters):
    """Options of the task."""

    factor: Annotated[int, Field(ge=2, le=16, description="the student's decimation factor")] = 4
    blur: Annotated[float, Field(gt=0, le=4, description="sigma of the Gaussian, pixels")] = 1.0


def gaussian(sigma: float, dtype: torch.dtype) -> torch.Tensor:
    """A normalised 9 x 9 Gaussian kernel, 1 x 1 x 9 x 9."""
    axis = torch.arange(SUPPORT, dtype=torch.float64) - SUPPORT // 2
    profile = torch.exp(-(axis**2) / (2 * sigma**2))
    kernel = profile[:, None] * profile[None, :]
    return (kernel / kernel.sum()).to(dtype)[None, None]


def physics(
    factor: int,
    blur: float,
    shape: tuple[int, int, int],
    device: torch.device,
    dtype: torch.dtype,
) -> Downsampling:
    """Blur and decimation by `factor`; 1 is the blur alone.

    The kernel is made in the wanted dtype because casting a finished `Downsampling` drops the
    imaginary part of its transfer function.
    """
    return Downsampling(
        img_size=shape,
        filter=gaussian(blur, dtype).to(device),
        factor=factor,
        padding="circular",
        device=device,
    )


def operators(
    options: SuperResolution,
    shape: tuple[int, int, int],
    device: torch.device,
    dtype: torch.dtype,
) -> Operators:
    """The student, and a teacher for every smaller factor."""
    smallest = max(SUPPORT, options.factor)
    if min(shape[1:]) < smallest:
        raise UserError(
            f"images of {shape[1]} x {shape[2]} pixels are too small for a {SUPPORT} x {SUPPORT} "
            f"blur and factor {options.factor}: use at least {smallest}"
        )

    def make(factor: int) -> Downsampling:
        return physics(factor, options.blur, shape, device, dtype)

    def teacher(factor: int) -> TeacherSpec:
        return TeacherSpec(float(factor), lambda: make(factor))

    return Operators(
        student=make(options.factor),
        teachers=tuple(teacher(factor) for factor in range(options.factor - 1, 0, -1)),
        axis="factor",
    )


SPEC = TaskSpec(
    name="sr",
    title="Super-resolution x4",
    summary="9 x 9 Gaussian blur (sigma 1), decimation by 4; teachers decimate by 3, 2, 1",
    options=SuperResolution,
    operators=operators,
    dataset="faces",
)
