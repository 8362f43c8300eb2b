"""`sr`: super-resolution; Gaussian blur, then decimation, all circular."""

from __future__ import annotations

from typing import Annotated

import torch
from deepinv.physics import Downsampling
from pydantic import Field
from torch import Tensor

from dipa_bench.errors import UserError
from dipa_bench.parameters import Parameters
from dipa_bench.tasks.base import Geometry, Operators, TaskSpec, TeacherSpec

SUPPORT = 9  # pixels on a side of the blur kernel


class SuperResolution(Parameters):
    """Options of the task."""

    factor: Annotated[
        int, Field(ge=1, le=16, description="the student's decimation factor; 1 blurs only")
    ] = 4
    blur: Annotated[float, Field(ge=0.05, le=4, description="sigma of the Gaussian, pixels")] = 1.0
    teacher_blur: Annotated[
        float | None,
        Field(ge=0.05, le=4, description="the teachers' sigma; the student's if unset"),
    ] = None


def gaussian(sigma: float) -> Tensor:
    """The normalised 1-D profile of the 9 x 9 Gaussian kernel, float64."""
    axis = torch.arange(SUPPORT, dtype=torch.float64) - SUPPORT // 2
    profile = torch.exp(-(axis**2) / (2 * sigma**2))
    return profile / profile.sum()


def blur_and_decimate(profile: Tensor, size: int, factor: int) -> Tensor:
    """The h x size matrix of a circular 1-D blur that keeps every `factor`-th sample from 0 on."""
    matrix = torch.zeros(len(range(0, size, factor)), size, dtype=profile.dtype)
    for row, centre in enumerate(range(0, size, factor)):
        for offset, weight in enumerate(profile):
            matrix[row, (centre + offset - SUPPORT // 2) % size] += weight
    return matrix


class SeparableDownsampling(Downsampling):
    """deepinv's `Downsampling` with a separable symmetric kernel, as two small matrix products.

    y = R x C^T with R and C of `blur_and_decimate`: the same map as deepinv's convolution and
    decimation, some thirty times faster at these sizes. Everything else (attributes, and where the
    factor divides the size the closed-form proximal step) is deepinv's.

    The parent's kernel is made in the wanted dtype because casting a finished `Downsampling` drops
    the imaginary part of its transfer function.

    Args:
        geometry: shape of the images, device and dtype.
        factor: of the decimation; 1 is the blur alone.
        blur: sigma of the Gaussian, pixels.
    """

    def __init__(self, geometry: Geometry, factor: int, blur: float) -> None:
        profile = gaussian(blur)
        kernel = (profile[:, None] * profile).to(geometry.device, geometry.dtype)[None, None]
        super().__init__(
            img_size=geometry.shape,
            filter=kernel,
            factor=factor,
            padding="circular",
            device=geometry.device,
        )
        for name, size in zip(("rows", "columns"), geometry.shape[1:], strict=True):
            matrix = blur_and_decimate(profile, size, factor).to(geometry.device, geometry.dtype)
            self.register_buffer(name, matrix)

    def A(self, x: Tensor, **parameters: object) -> Tensor:  # noqa: N802, deepinv's name
        """B x C x H x W to B x C x h x w."""
        return self.rows @ (x @ self.columns.mT)

    @property
    def largest_eigenvalue(self) -> float:
        """lambda_max(A^T A): that of a Kronecker product is the product of its factors'."""
        norms = [torch.linalg.matrix_norm(side.double(), 2) for side in (self.rows, self.columns)]
        return (norms[0] * norms[1]).square().item()

    def A_adjoint(self, y: Tensor, **parameters: object) -> Tensor:  # noqa: N802
        """B x C x h x w to B x C x H x W."""
        return self.rows.mT @ y @ self.columns


def check_size(geometry: Geometry, factor: int = 1) -> None:
    """Raises `UserError` for images that are smaller than the blur or the decimation."""
    height, width = geometry.shape[1:]
    smallest = max(SUPPORT, factor)
    if min(height, width) < smallest:
        raise UserError(
            f"images of {height} x {width} pixels are too small for a {SUPPORT} x {SUPPORT} "
            f"blur and factor {factor}: use at least {smallest}"
        )


def operators(options: SuperResolution, geometry: Geometry) -> Operators:
    """The student, and a teacher for every smaller factor; for factor 1 one with half the blur."""
    check_size(geometry, options.factor)
    blur = options.blur if options.teacher_blur is None else options.teacher_blur
    if options.factor == 1 and options.teacher_blur is None:
        blur = options.blur / 2

    def teacher(factor: int) -> TeacherSpec:
        return TeacherSpec(float(factor), lambda: SeparableDownsampling(geometry, factor, blur))

    return Operators(
        student=SeparableDownsampling(geometry, options.factor, options.blur),
        teachers=tuple(teacher(factor) for factor in range(max(options.factor - 1, 1), 0, -1)),
        axis="factor",
    )


SPEC = TaskSpec(
    name="sr",
    title="Super-resolution",
    summary="9 x 9 Gaussian blur (sigma 1), decimation (by 4); teachers decimate by less",
    options=SuperResolution,
    operators=operators,
    dataset="faces",
)
