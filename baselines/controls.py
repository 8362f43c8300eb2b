"""`adjoint` and `bicubic`: what no iteration at all gives."""

from __future__ import annotations

import torch
from deepinv.physics import LinearPhysics
from torch import Tensor

from dipa_bench.methods import Direct, FitContext, Method, NoParameters, nothing_published
from dipa_bench.tasks.base import Task

REACH = 2  # neighbours that a bicubic kernel needs on each side


def back_project(measurement: Tensor, physics: LinearPhysics) -> Tensor:
    """A^T y, the published start."""
    return physics.A_adjoint(measurement)


def bicubic(measurement: Tensor, physics: LinearPhysics) -> Tensor:
    """Bicubic interpolation of a decimated image, on the grid from which it was decimated.

    Sample (i, j) sits at pixel (factor i, factor j) and the border wraps around, as the operator's
    does (exactly so where the factor divides the size); `torch.nn.functional.interpolate` would
    shift the picture by (factor - 1) / 2 pixels. The kernel is torch's, with a = -0.75.

    Args:
        measurement: B x C x h x w.
        physics: a decimation with `factor` and `imsize`.
    """
    height, width = physics.imsize[-2:]
    wrapped = torch.nn.functional.pad(measurement, [REACH] * 4, mode="circular")

    def axis(size: int, samples: int) -> Tensor:
        place = torch.arange(size, device=measurement.device, dtype=measurement.dtype)
        place = place / physics.factor + REACH
        return 2 * place / (samples - 1) - 1

    rows, columns = axis(height, wrapped.shape[-2]), axis(width, wrapped.shape[-1])
    grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
    return torch.nn.functional.grid_sample(
        wrapped,
        grid.expand(len(measurement), -1, -1, -1),
        mode="bicubic",
        padding_mode="border",
        align_corners=True,
    )


def _needs_decimation(task: Task) -> str | None:
    if getattr(task.student, "factor", 1) > 1 and hasattr(task.student, "imsize"):
        return None
    return f"bicubic interpolation needs a decimated image; {task.name} measures something else"


def _fit_adjoint(task: Task, parameters: NoParameters, context: FitContext) -> Direct:
    return Direct(back_project, operator_calls=1)


def _fit_bicubic(task: Task, parameters: NoParameters, context: FitContext) -> Direct:
    return Direct(bicubic)


ADJOINT = Method(
    name="adjoint",
    title="Adjoint (control)",
    summary="A^T y, where the published runs start",
    operator="none",
    rule="none",
    fixed_point="none: no iteration",
    cost="none: 1 operator call in all",
    parameters=NoParameters,
    fit=_fit_adjoint,
    published=nothing_published,
)

BICUBIC = Method(
    name="bicubic",
    title="Bicubic (control)",
    summary="interpolation of the decimated image, aligned with its grid",
    operator="none",
    rule="none",
    fixed_point="none: no iteration",
    cost="none: one interpolation",
    parameters=NoParameters,
    fit=_fit_bicubic,
    published=nothing_published,
    skip=_needs_decimation,
)
