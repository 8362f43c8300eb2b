"""The loss of one batch: which of DIPA's terms, at which weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from dipa_bench.learning import losses
from dipa_bench.learning.strategies import GradientParameters, Unrolled, unroll
from dipa_bench.learning.teachers import Targets
from dipa_bench.learning.unrolling import Batch
from dipa_bench.methods import Iterative
from dipa_bench.parameters import Parameters, Search
from dipa_bench.preconditioners import State
from dipa_bench.tasks.base import Task

ROUNDING = 1e-4  # of the largest gradient of a run, in norm


class DistillParameters(Parameters):
    """The teacher, and the weights of the losses."""

    teacher: Annotated[
        float | None,
        Field(description="label of the teacher (sr: its factor)"),
        Search(ask="teacher"),
    ] = None
    target: Annotated[
        Literal["imit", "sup"],
        Field(description="imitate the teacher's reconstruction (imit) or the truth (sup)"),
        Search(choices=("imit", "sup")),
    ] = "imit"
    weight_gradient: Annotated[
        float,
        Field(ge=0, description="weight of L_grad; the published 1 drowns a mean over pixels"),
        Search(1e-4, 1.0, log=True),
    ] = 1e-3
    alignment: Annotated[
        Literal["end", "along"],
        Field(
            description="L_grad at the two final reconstructions (end), or as the mean over the "
            "iterations that carry gradients (along)"
        ),
    ] = "end"
    weight_target: Annotated[float, Field(ge=0, description="weight of L_imit or L_sup")] = 1.0
    weight_mismatch: Annotated[
        float,
        Field(ge=0, description="weight lambda_R of R(P)"),
        Search(1e-5, 1e-1, log=True),
    ] = 1e-3


@dataclass(frozen=True)
class Mismatch:
    """What R(P) compares, for every training image x.

    Attributes:
        student: A_s^T A_s x, N x C x H x W.
        teacher: A_t^T A_t x.
        step: the teacher's absolute step alpha_t.
    """

    student: Tensor
    teacher: Tensor
    step: float


def distillation_loss(
    reconstructor: Iterative,
    targets: Targets | None,
    mismatch: Mismatch | None,
    parameters: DistillParameters,
    gradient: GradientParameters,
    task: Task,
) -> Callable[[Batch], Tensor]:
    """The loss w_grad L_grad + w_target (L_imit or L_sup) + lambda_R R(P) of one batch.

    L_grad with ``alignment=end`` is taken at the two final reconstructions, with the last
    iteration's k; with ``along`` gradients that are rounding beside the run's largest do not count.
    R is the mean over the operators, where there is one for each iteration.

    Args:
        reconstructor: the student.
        targets: of the teacher, for every training image; they carry no gradient. None where
            neither L_imit nor L_grad has a weight; with a path where ``alignment=along``.
        mismatch: for R; None leaves it out.
        parameters: weights.
        gradient: through which iterations gradients flow.
        task: gives the student's operator.
    """
    solver, operator = reconstructor.solver, reconstructor.preconditioner
    physics, last = task.student, reconstructor.solver.iterations - 1

    def at_end(batch: Batch, run: Unrolled) -> Tensor:
        state = State(last, run.estimate, run.estimate, batch.measurement, physics)
        state = solver.with_gradient(state)
        direction = operator(state.gradient, state)
        return losses.gradient_alignment(direction, targets.gradients[batch.index])

    def along(batch: Batch, run: Unrolled) -> Tensor:
        path = targets.path[batch.index][:, run.iterations.start :]
        made = torch.stack(run.directions, dim=1)
        told = sizeable(made.detach()) & sizeable(path)
        if not told.any():
            return made.new_zeros(())
        return losses.gradient_alignment(made[told], path[told])

    def regularisation(batch: Batch) -> Tensor:
        student, teacher = mismatch.student[batch.index], mismatch.teacher[batch.index]
        state = State(0, student, student, batch.measurement, physics)
        terms = [
            losses.operator_mismatch(
                operator(student, replace(state, iteration=k)),
                teacher,
                solver.step_size,
                mismatch.step,
            )
            for k in range(operator.copies)
        ]
        return torch.stack(terms).mean()

    alignment = at_end if parameters.alignment == "end" else along

    def loss(batch: Batch) -> Tensor:
        run = unroll(solver, operator, batch.measurement, physics, gradient, batch.first)
        target = batch.truth if parameters.target == "sup" else targets.estimates[batch.index]
        total = parameters.weight_target * losses.imitation(run.estimate, target)
        if parameters.weight_gradient:
            total = total + parameters.weight_gradient * alignment(batch, run)
        if mismatch:
            total = total + parameters.weight_mismatch * regularisation(batch)
        return total

    return loss


def sizeable(directions: Tensor) -> Tensor:
    """Which of B x K x C x H x W directions are more than rounding beside the run's largest, B x K.

    The first gradient is 0 where A A^T = I and the start is A^T y: it has no angle.
    """
    norms = directions.flatten(2).norm(dim=2)
    return norms > ROUNDING * norms.amax(dim=1, keepdim=True)
