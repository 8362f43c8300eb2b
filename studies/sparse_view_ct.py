"""Sparse-view CT for the task `custom`: an example of operators of one's own; see ct.toml."""

from __future__ import annotations

from deepinv.physics import Tomography

from dipa_bench.errors import UserError
from dipa_bench.tasks.base import Geometry, Operators, TeacherSpec

VIEWS = 12  # projections that the student has
MORE_VIEWS = (24, 60)  # that the teachers have


def operators(geometry: Geometry) -> Operators:
    """Parallel-beam projections over half a turn, scaled to lambda_max(A^T A) = 1."""
    _, height, width = geometry.shape
    if height != width:
        raise UserError(f"the projections need square images, not {height} x {width}")

    def scan(views: int) -> Tomography:
        return Tomography(
            angles=views,
            img_width=width,
            normalize=True,
            device=geometry.device,
            dtype=geometry.dtype,
        )

    return Operators(
        student=scan(VIEWS),
        teachers=tuple(TeacherSpec(float(n), lambda n=n: scan(n)) for n in MORE_VIEWS),
        axis="views",
        facts={"views": VIEWS},
    )
