"""`mri`: accelerated Cartesian MRI; columns of k-space are left out, with one coil or several.

Images are complex throughout (two channels); gray ones get a simulated smooth phase.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from deepinv.physics import MRI, LinearPhysics, MultiCoilMRI
from deepinv.physics.generator import (
    EquispacedMaskGenerator,
    GaussianMaskGenerator,
    RandomMaskGenerator,
)
from pydantic import Field
from torch import Tensor

from dipa_bench import digests
from dipa_bench.data.complex import complex_images
from dipa_bench.data.images import Splits
from dipa_bench.errors import UserError
from dipa_bench.parameters import Parameters
from dipa_bench.tasks.base import Geometry, Operators, PublishedSettings, TaskSpec, TeacherSpec

ACCELERATIONS = (3.0, 2.0, 1.0)  # of the published teachers
GENERATORS = {
    "gaussian": GaussianMaskGenerator,
    "uniform": EquispacedMaskGenerator,
    "random": RandomMaskGenerator,
}
DISTANCE = 1.5  # of the coils from the centre, in half widths of the image


class MRIOptions(Parameters):
    """Options of the task."""

    acceleration: Annotated[
        float, Field(gt=1, le=32, description="AF of the student: 1 / share of columns")
    ] = 4.0
    mask: Annotated[
        Literal["gaussian", "uniform", "random"],
        Field(description="how columns outside the centre are drawn"),
    ] = "gaussian"
    center: Annotated[
        float, Field(ge=0, lt=1, description="share of columns that are always measured")
    ] = 0.08
    coils: Annotated[
        int, Field(ge=1, le=64, description="1, or that many simulated receive coils")
    ] = 1
    phase: Annotated[
        Literal["smooth", "none"],
        Field(description="what gray images get: a simulated smooth phase, or none"),
    ] = "smooth"


def column_mask(options: MRIOptions, acceleration: float, geometry: Geometry) -> Tensor:
    """Which columns of k-space are measured, W values of 0 and 1 (zero frequency in the middle).

    Drawn once from the geometry's seed, another for each acceleration.

    Raises:
        UserError: the centre alone is more than the acceleration leaves.
    """
    width = geometry.shape[2]
    if acceleration == 1:
        return torch.ones(width)
    centre, kept = int(options.center * width), int(width // acceleration)
    if kept <= centre or kept < 1:
        raise UserError(
            f"acceleration {acceleration:g} leaves {kept} of {width} columns, of which the centre "
            f"takes {centre}: lower problem.options.acceleration or problem.options.center"
        )
    seed = digests.seed(geometry.seed, "mask", options.mask, acceleration, width)
    generator = GENERATORS[options.mask](
        img_size=(1, 1, width),
        acceleration=acceleration,
        center_fraction=options.center,
        rng=torch.Generator().manual_seed(seed),
    )
    return generator.step()["mask"][0, 0, 0]


def coil_maps(coils: int, shape: tuple[int, int]) -> Tensor:
    """Sensitivities of a birdcage of coils around the image, coils x H x W, complex128.

    The usual simulation (magnitude 1 / distance, phase the angle; sigpy's `birdcage_maps`), scaled
    so that the squared magnitudes add up to 1 at every pixel.

    Args:
        coils: how many, evenly spaced on a circle.
        shape: (H, W).
    """
    height, width = shape
    angle = 2 * math.pi * torch.arange(coils, dtype=torch.float64)[:, None, None] / coils
    down = (torch.arange(height, dtype=torch.float64)[:, None] - height / 2) / (height / 2)
    right = (torch.arange(width, dtype=torch.float64) - width / 2) / (width / 2)
    from_down, from_right = down - DISTANCE * angle.sin(), right - DISTANCE * angle.cos()
    phase = torch.atan2(from_right, -from_down) - angle
    maps = torch.polar(1 / torch.hypot(from_down, from_right), phase)
    return maps / torch.linalg.vector_norm(maps, dim=0)


def operators(options: MRIOptions, geometry: Geometry) -> Operators:
    """The student, and a teacher for any smaller acceleration down to 1.

    Raises:
        UserError: images that are not complex, or more acceleration than there are columns.
    """
    height, width = geometry.shape[1:]
    maps = None
    if options.coils > 1:
        kind = torch.complex128 if geometry.dtype == torch.float64 else torch.complex64
        maps = coil_maps(options.coils, (height, width)).to(geometry.device, kind)

    def make(columns: Tensor) -> LinearPhysics:
        mask = columns.to(geometry.device, geometry.dtype).expand(2, height, width)
        if maps is None:
            return MRI(mask=mask, device=geometry.device)
        return MultiCoilMRI(mask=mask, coil_maps=maps, device=geometry.device)

    def admits(acceleration: float) -> bool:
        return 1 <= acceleration < options.acceleration and width // acceleration > measured

    def teacher(acceleration: float) -> TeacherSpec:
        if not admits(acceleration):
            raise UserError(
                f"teacher acceleration {acceleration:g}: give at least 1 and less than the "
                f"student's {options.acceleration:g}, with more than its {measured} columns"
            )
        return TeacherSpec(acceleration, lambda: make(column_mask(options, acceleration, geometry)))

    columns = column_mask(options, options.acceleration, geometry)
    measured = int(columns.sum())
    return Operators(
        student=make(columns),
        teachers=tuple(teacher(value) for value in ACCELERATIONS if admits(value)),
        axis="acceleration",
        other=teacher,
        facts={
            "mask columns": " ".join(str(place) for place in columns.nonzero()[:, 0].tolist()),
            "measured share": columns.mean().item(),
        },
    )


def prepare(images: Splits, options: MRIOptions) -> Splits:
    """Complex images."""
    return complex_images(images, options.phase)


SPEC = TaskSpec(
    name="mri",
    title="Accelerated MRI",
    summary="1 of 4 columns of k-space (Gaussian mask), complex images; teachers measure more",
    options=MRIOptions,
    operators=operators,
    dataset="brain",
    prepare=prepare,
    published=PublishedSettings(optimizer="adamw"),
)
