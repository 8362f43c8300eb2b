"""Reconstructing measurements that come as arrays with the operator of a run."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from dipa_bench.data.signals import COMPLEX
from dipa_bench.errors import UserError, brief
from dipa_bench.execution.context import StudyContext
from dipa_bench.runs.restore import LearnedRun
from dipa_bench.tasks.base import Task


def as_measurements(named: Mapping[str, np.ndarray], task: Task, cure: str = "") -> Tensor:
    """Measurements as a batch.

    Args:
        named: what messages call each, and its values: of the measurement's shape without the
            batch, without leading axes of length 1 if one likes; complex where the first axis is
            real and imaginary part.
        task: whose student measured.
        cure: what to do about another shape, for the message.

    Raises:
        UserError: one of another shape or kind, or not finite.
    """
    with torch.no_grad():
        like = task.student.A(task.pixels(task.images.train.first(1))[:1])
    return torch.cat([_as_one(values, like, task, name, cure) for name, values in named.items()])


def _as_one(values: np.ndarray, like: Tensor, task: Task, name: str, cure: str) -> Tensor:
    wanted = tuple(like.shape[1:])
    parts = wanted[:1] == (COMPLEX,) and task.shape[0] == COMPLEX and not like.is_complex()
    if parts and np.iscomplexobj(values):
        values = np.stack((values.real, values.imag))
    if np.iscomplexobj(values) and not like.is_complex():
        raise UserError(f"measurement {name} is complex, those of {task.name} are real: give y")
    if values.dtype.kind not in "biufc" or _squeezed(values.shape) != _squeezed(wanted):
        also = f", or complex {wanted[1:]}" if parts else ""
        raise UserError(
            f"measurement {name} is {values.dtype} of shape {values.shape}: this operator measures "
            f"{wanted}{also}{cure}"
        )
    if not np.isfinite(values).all():
        raise UserError(f"measurement {name} has values that are not finite: mend it")
    return torch.from_numpy(np.ascontiguousarray(values)).reshape(like.shape).to(like)


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without leading axes of length 1."""
    while shape[:1] == (1,):
        shape = shape[1:]
    return shape


@torch.no_grad()
def estimate(run: LearnedRun, context: StudyContext, measured: Tensor) -> Tensor:
    """What a run makes of measurements.

    Args:
        run: whose operator it is.
        context: of the run, or one with the task at another size (`restore.at_shape`).
        measured: a batch of the task's measurements.

    Returns:
        Images, B x C x H x W.

    Raises:
        UserError: the operator cannot be used there, or what it gives is not finite.
    """
    made = run.reconstructor if context is run.context else run.at(context)
    try:
        found = made.run(measured, context.task.student).estimate
    except RuntimeError as error:  # an operator that met a shape it does not check, or no memory
        raise UserError(f"{run.entry.name} cannot run on it: {brief(error)}") from None
    if not torch.isfinite(found).all():
        raise UserError(f"{run.entry.name} left the finite numbers: is y = A x, x in [0, 1]?")
    return found
