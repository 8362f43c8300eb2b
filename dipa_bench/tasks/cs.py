"""`cs`: single-pixel camera; some coefficients of the 2-D Hadamard transform are measured."""

from __future__ import annotations

import math
from functools import cache
from typing import Annotated, Literal

import torch
from deepinv.physics import DecomposablePhysics, singlepixel
from pydantic import Field
from torch import Tensor

from dipa_bench.errors import UserError
from dipa_bench.parameters import Parameters
from dipa_bench.tasks.base import Geometry, Operators, TaskSpec, TeacherSpec

RATIOS = (0.5, 0.7, 0.9)  # of the published teachers

# Pixels up to which one way to transform is the quickest (CPU, float32, batches of 4 to 64;
# tests/benchmarks/hadamard.py): one m x n matrix, then one matrix on each side, then butterflies.
DENSE_UP_TO = 16**2
PRODUCTS_UP_TO = 1024**2

ORDERINGS = {
    "sequency": singlepixel.sequency_mask,
    "cake-cutting": singlepixel.cake_cutting_mask,
    "zig-zag": singlepixel.zig_zag_mask,
    "xy": singlepixel.xy_mask,
}


class SinglePixelOptions(Parameters):
    """Options of the task."""

    ratio: Annotated[
        float, Field(gt=0, lt=1, description="the student's nominal share of coefficients")
    ] = 0.2
    sampling: Annotated[
        Literal["sequency-rectangle", "sequency", "cake-cutting", "zig-zag", "xy"],
        Field(description="which ones: the published rectangle, or deepinv's exact-m orderings"),
    ] = "sequency-rectangle"


def rectangle_mask(shape: tuple[int, int, int], count: int) -> Tensor:
    """The mask of deepinv up to 0.3, with which DIPA's numbers were made, 1 x 1 x H x W.

    A rectangle of the ordered plane: the floor(sqrt(count)) first rows and as many columns as are
    left of `count`, at most all. It keeps more coefficients than `count` (448 instead of 204 at
    32 x 32 and ratio 0.2). The order, too, is that of those versions: it was meant as sequency, but
    decodes the Gray code where sequency encodes it, so that from the fifth row on it differs; with
    true sequency the published teachers come out up to 5 dB too high.

    Args:
        shape: (C, H, W) of the images.
        count: nominal number of coefficients, m.
    """
    _, height, width = shape
    rows = math.isqrt(count)
    plane = torch.zeros(1, 1, height, width)
    plane[..., :rows, : count - rows] = 1
    places = (singlepixel.get_permutation_list(side).argsort() for side in (height, width))
    for axis, place in zip((-2, -1), places, strict=True):
        plane = plane.index_select(axis, place)
    return plane


def sampling_mask(sampling: str, shape: tuple[int, int, int], ratio: float) -> Tensor:
    """Which coefficients (in natural Hadamard order) are measured, 1 x 1 x H x W of 0 and 1."""
    count = math.floor(shape[1] * shape[2] * ratio)
    if sampling == "sequency-rectangle":
        return rectangle_mask(shape, count)
    return ORDERINGS[sampling]((1, *shape[1:]), count)


def butterflies(images: Tensor) -> Tensor:
    """The orthonormal Hadamard transform of the last axis (a power of two), in natural order."""
    size, half = images.shape[-1], 1
    found = images.reshape(-1, size)
    while half < size:
        pairs = found.view(-1, size // (2 * half), 2, half)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        found = torch.stack((first + second, first - second), dim=2).view(-1, size)
        half *= 2
    return found.view_as(images) / math.sqrt(size)


class SinglePixel(DecomposablePhysics):
    """y = the measured coefficients of the orthonormal 2-D Hadamard transform, B x C x m.

    The same map as deepinv's `SinglePixelCamera(fast=True)` with that mask, whose measurements are
    B x C x H x W with zeros where nothing was measured; closed forms are deepinv's.

    Args:
        mask: 1 x 1 x H x W of 0 and 1, in natural order.
        geometry: shape, device and dtype.
    """

    def __init__(self, mask: Tensor, geometry: Geometry) -> None:
        height, width = geometry.shape[1:]
        super().__init__(device=geometry.device)
        self.register_buffer("mask", mask.to(geometry.device, geometry.dtype))
        self.register_buffer("kept", mask.flatten().nonzero()[:, 0].to(geometry.device))
        sides = [
            butterflies(torch.eye(side, dtype=torch.float64)).to(geometry.device, geometry.dtype)
            for side in (height, width)
        ]
        pixels = height * width
        dense = torch.kron(*sides)[self.kept] if pixels <= DENSE_UP_TO else None
        self.register_buffer("dense", dense)
        self.sides = pixels <= PRODUCTS_UP_TO
        if self.sides:
            self.register_buffer("rows", sides[0])
            self.register_buffer("columns", sides[1])

    def V_adjoint(self, x: Tensor, **parameters: object) -> Tensor:  # noqa: N802, deepinv's name
        """All coefficients, B x C x H x W."""
        if self.sides:
            return self.rows @ (x @ self.columns)
        return butterflies(x.flatten(-2)).view_as(x)

    def V(self, y: Tensor, **parameters: object) -> Tensor:  # noqa: N802
        """The transform is its own inverse."""
        return self.V_adjoint(y)

    @property
    def largest_eigenvalue(self) -> float:
        """lambda_max(A^T A): the rows are orthonormal."""
        return 1.0

    def U(self, x: Tensor, **parameters: object) -> Tensor:  # noqa: N802
        """The measured ones of all coefficients, B x C x H x W to B x C x m."""
        return x.flatten(-2)[..., self.kept]

    def U_adjoint(self, y: Tensor, **parameters: object) -> Tensor:  # noqa: N802
        """Zeros where nothing was measured, B x C x m to B x C x H x W."""
        full = y.new_zeros(*y.shape[:-1], self.mask.numel())
        return full.index_copy(-1, self.kept, y).view(*y.shape[:-1], *self.mask.shape[-2:])

    def A(self, x: Tensor, **parameters: object) -> Tensor:  # noqa: N802
        """B x C x H x W to B x C x m."""
        if self.dense is not None:
            return x.flatten(-2) @ self.dense.mT
        return self.U(self.V_adjoint(x))

    def A_adjoint(self, y: Tensor, **parameters: object) -> Tensor:  # noqa: N802
        """B x C x m to B x C x H x W."""
        if self.dense is not None:
            return (y @ self.dense).view(*y.shape[:-1], *self.mask.shape[-2:])
        return self.V(self.U_adjoint(y))


def operators(options: SinglePixelOptions, geometry: Geometry) -> Operators:
    """The student, and a teacher for any larger ratio up to 1.

    Raises:
        UserError: sides that are no powers of two, or a ratio that measures nothing.
    """
    height, width = geometry.shape[1:]
    if any(side & (side - 1) for side in (height, width)):
        raise UserError(
            f"images of {height} x {width} pixels: the Hadamard transform needs powers of two, "
            "e.g. --set problem.size=32"
        )
    if options.sampling == "cake-cutting" and height != width:
        raise UserError(f"cake-cutting needs square images, not {height} x {width}")

    @cache
    def mask(ratio: float) -> Tensor:
        return sampling_mask(options.sampling, geometry.shape, ratio)

    def make(ratio: float) -> SinglePixel:
        if not mask(ratio).any():
            raise UserError(
                f"ratio {ratio} of {height} x {width} pixels measures nothing: raise "
                "problem.options.ratio"
            )
        return SinglePixel(mask(ratio), geometry)

    def admits(ratio: float) -> bool:
        return options.ratio < ratio <= 1 and mask(ratio).sum() > measured

    def teacher(ratio: float) -> TeacherSpec:
        if not admits(ratio):
            raise UserError(
                f"teacher ratio {ratio}: give one above the student's {options.ratio}, at most 1, "
                f"that measures more than its {measured} coefficients"
            )
        return TeacherSpec(ratio, lambda: make(ratio))

    student = make(options.ratio)
    measured = student.kept.numel()
    return Operators(
        student=student,
        teachers=tuple(teacher(ratio) for ratio in (*RATIOS, 1.0) if admits(ratio)),
        axis="ratio",
        other=teacher,
        facts={
            "measurements": measured,
            "measured share": measured / (height * width),
            "nominal share": options.ratio,
        },
    )


SPEC = TaskSpec(
    name="cs",
    title="Single-pixel compressed sensing",
    summary="20% of the Hadamard coefficients (as a rectangle: 44%); teachers measure more",
    options=SinglePixelOptions,
    operators=operators,
    dataset="digits",
)
