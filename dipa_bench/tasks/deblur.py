"""`deblur`: a Gaussian blur without decimation, circular; the ill-conditioned task."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dipa_bench.errors import UserError
from dipa_bench.parameters import Parameters
from dipa_bench.tasks.base import Geometry, Operators, TaskSpec, TeacherSpec
from dipa_bench.tasks.sr import SUPPORT, SeparableDownsampling, check_size

SHARPEST = 0.05  # pixels; below 0.2 the blur is the identity to 5 digits
SHARES = (0.75, 0.5, 0.25)  # of the student's blur, for the teachers


class DeblurOptions(Parameters):
    """Options of the task."""

    blur: Annotated[
        float, Field(ge=0.2, le=4, description="the student's sigma of the Gaussian, pixels")
    ] = 1.6


def operators(options: DeblurOptions, geometry: Geometry) -> Operators:
    """The student, and a teacher for any smaller blur."""
    check_size(geometry)

    def teacher(blur: float) -> TeacherSpec:
        if not SHARPEST <= blur < options.blur:
            raise UserError(
                f"teacher blur {blur:g}: give at least {SHARPEST} and less than the student's "
                f"{options.blur:g}"
            )
        return TeacherSpec(blur, lambda: SeparableDownsampling(geometry, 1, blur))

    return Operators(
        student=SeparableDownsampling(geometry, 1, options.blur),
        teachers=tuple(teacher(round(share * options.blur, 6)) for share in SHARES),
        axis="blur",
        other=teacher,
    )


SPEC = TaskSpec(
    name="deblur",
    title="Deblurring",
    summary=f"{SUPPORT} x {SUPPORT} Gaussian blur (sigma 1.6), ill-conditioned; teachers blur less",
    options=DeblurOptions,
    operators=operators,
    dataset="faces",
)
