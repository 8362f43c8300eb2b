"""`custom`: operators that the user builds in Python, any deepinv `LinearPhysics`.

``problem.options.operators = "module:function"`` names a function of a `Geometry` that returns
either the pair (student, teacher) or an `Operators`. A package of its own rather registers a
`TaskSpec` under the entry point group ``dipa_bench.tasks``.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from deepinv.physics import LinearPhysics
from pydantic import Field
from torch import Tensor

from dipa_bench import imports
from dipa_bench.data.complex import complex_images, real_images
from dipa_bench.data.images import Splits
from dipa_bench.errors import UserError, brief
from dipa_bench.parameters import Parameters
from dipa_bench.tasks.base import Geometry, Operators, TaskSpec, TeacherSpec

MISMATCH = 1e-3  # relative, between <A x, y> and <x, A^T y>


class CustomOptions(Parameters):
    """Options of the task."""

    operators: Annotated[
        str, Field(description="module:function of a Geometry; (student, teacher) or Operators")
    ] = ""
    images: Annotated[
        Literal["real", "complex"], Field(description="what the operators act on")
    ] = "real"
    phase: Annotated[
        Literal["smooth", "none"], Field(description="of gray images that become complex")
    ] = "smooth"


def operators(options: CustomOptions, geometry: Geometry) -> Operators:
    """What the user's function builds, checked.

    Raises:
        UserError: no function named, it fails, or what it gives is no linear physics with an
            adjoint.
    """
    if not options.operators:
        raise UserError(
            "task 'custom' has no operators: name them, "
            "--set problem.options.operators=module:function"
        )
    function = imports.attribute(options.operators, "operators")
    try:
        made = function(geometry)
    except UserError:
        raise
    except Exception as error:  # a user's function may fail in any way
        raise UserError(f"operators {options.operators!r} fail ({brief(error)})") from None
    if not isinstance(made, Operators):
        made = _pair(made, options.operators)
    check(made.student, geometry, f"student of {options.operators!r}")
    for teacher in made.teachers:
        check(teacher.build(), geometry, f"teacher {teacher.label:g} of {options.operators!r}")
    identity = f"{made.identity} {imports.source_digest(function)}"
    return Operators(made.student, made.teachers, made.axis, made.other, made.facts, identity)


def _pair(made: object, name: str) -> Operators:
    """Operators from a pair of physics."""
    if not (isinstance(made, tuple) and len(made) == 2):
        kind = type(made).__name__
        raise UserError(
            f"operators {name!r} gave a {kind}: return (student, teacher), or Operators"
        )
    student, teacher = made
    return Operators(student, (TeacherSpec(1.0, lambda: teacher),), axis="teacher")


@torch.no_grad()
def check(physics: LinearPhysics, geometry: Geometry, name: str) -> None:
    """Tries `physics` on two random images.

    Raises:
        UserError: it is no linear physics, fails, changes the dtype, mixes the batch's images, is
            not linear or zero, or its adjoint is none: <A x, y> and <x, A^T y> differ.
    """
    if not isinstance(physics, LinearPhysics):
        kind = type(physics).__name__
        raise UserError(f"{name} is a {kind}: give a deepinv LinearPhysics")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *geometry.shape, generator=generator).to(geometry.device, geometry.dtype)
    try:
        measured = physics.A(x)
        y = torch.randn(measured.shape, generator=generator).to(measured)
        back, alone = physics.A_adjoint(y), physics.A(x[:1])
    except Exception as error:
        raise UserError(
            f"{name} fails on images of shape {geometry.shape} ({brief(error)}): mend A or "
            "A_adjoint, or choose another --set problem.size"
        ) from None
    if back.shape != x.shape or back.dtype != x.dtype or measured.dtype != x.dtype:
        raise UserError(
            f"{name}: A_adjoint gives {tuple(back.shape)} {back.dtype} (measured "
            f"{measured.dtype}) for images {tuple(x.shape)} {x.dtype}: the two must agree"
        )
    forth, size = (measured * y).sum(), measured.norm() * y.norm() + x.norm() * back.norm()
    difference = ((forth - (x * back).sum()).abs() / size.clamp_min(1e-30)).item()
    if difference > MISMATCH:
        raise UserError(
            f"{name}: A_adjoint is not the adjoint of A (<Ax, y> and <x, A^T y> differ by a "
            f"relative {difference:.2g}): mend it"
        )

    def same(one: Tensor, other: Tensor) -> bool:
        return torch.allclose(one, other, rtol=1e-3, atol=1e-4 * other.abs().max().item())

    if not same(alone, measured[:1]):
        raise UserError(f"{name}: A of an image depends on the others of its batch: mend it")
    for what, function, v, image in (
        ("A", physics.A, x, measured),
        ("A_adjoint", physics.A_adjoint, y, back),
    ):
        if not same(function(3 - 2 * v), function(torch.full_like(v, 3)) - 2 * image):
            raise UserError(f"{name}: {what} is not linear: give a linear operator")
        if function(torch.zeros_like(v)).any():
            raise UserError(f"{name}: {what} of zero is not zero: give a linear operator")
    if not torch.isfinite(measured).all() or not measured.any():
        raise UserError(f"{name}: A of random images is zero or not finite: mend it")


def prepare(images: Splits, options: CustomOptions) -> Splits:
    """Images as the options want them."""
    if options.images == "complex":
        return complex_images(images, options.phase)
    return real_images(images)


SPEC = TaskSpec(
    name="custom",
    title="Your own operators",
    summary="module:function that builds a student and a teacher, any deepinv LinearPhysics",
    options=CustomOptions,
    operators=operators,
    dataset="faces",
    prepare=prepare,
)
