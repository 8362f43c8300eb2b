"""DIPA: a student's operator learned from a teacher's reconstructions and gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from dipa_bench import devices
from dipa_bench.learning import losses
from dipa_bench.learning.teachers import Targets
from dipa_bench.learning.unrolling import Batch, TrainParameters, train
from dipa_bench.methods import FitContext, Iterative, Method
from dipa_bench.parameters import Parameters, Search, Value
from dipa_bench.preconditioners import Dense
from dipa_bench.solvers import SolveParameters
from dipa_bench.tasks.base import Task

COPIES = 5  # of P while it is trained: itself, its gradient, Adam's two moments, the best so far
PAPER = "DIPA, Gualdron-Hurtado et al. 2026, arXiv 2605.15456"


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
    weight_target: Annotated[float, Field(ge=0, description="weight of L_imit or L_sup")] = 1.0
    weight_mismatch: Annotated[
        float,
        Field(ge=0, description="weight lambda_R of R(P)"),
        Search(1e-5, 1e-1, log=True),
    ] = 1e-3


class LDIPAParameters(Parameters):
    """L-DIPA: trained inside the very algorithm that will use it, so solver settings are shared."""

    solve: SolveParameters = SolveParameters()
    channels: Annotated[
        Literal["shared", "joint"],
        Field(description="of complex or colour images: one matrix for each channel, or over all"),
    ] = "shared"
    train: TrainParameters = TrainParameters()
    distill: DistillParameters = DistillParameters()


def distillation_loss(
    reconstructor: Iterative,
    targets: Targets,
    normals: tuple[Tensor, Tensor] | None,
    parameters: DistillParameters,
    task: Task,
) -> Callable[[Batch], Tensor]:
    """The loss w_grad L_grad + w_target (L_imit or L_sup) + lambda_R R(P) of one batch.

    L_grad is taken at the two final reconstructions, with the last iteration's k.

    Args:
        reconstructor: the student; gradients flow through all its iterations.
        targets: of the teacher, for every training image; they carry no gradient.
        normals: A_s^T A_s x and A_t^T A_t x of every training image, for R; None leaves R out.
        parameters: weights.
        task: gives the student's operator.
    """
    solver, operator = reconstructor.solver, reconstructor.preconditioner
    physics = task.student

    def loss(batch: Batch) -> Tensor:
        estimate = reconstructor.run(batch.measurement, physics).estimate
        target = targets.estimates[batch.index] if parameters.target == "imit" else batch.truth
        total = parameters.weight_target * losses.imitation(estimate, target)
        if parameters.weight_gradient or normals:
            final = replace(
                solver.start(batch.measurement, physics, operator),
                iteration=solver.iterations - 1,
                iterate=estimate,
                point=estimate,
            )
            final = solver.linearise(final)
        if parameters.weight_gradient:
            direction = operator(final.gradient, final)
            total = total + parameters.weight_gradient * losses.gradient_alignment(
                direction, targets.gradients[batch.index]
            )
        if normals:
            student, teacher = (normal[batch.index] for normal in normals)
            total = total + parameters.weight_mismatch * losses.operator_mismatch(
                operator(student, final), teacher, solver.step_size, targets.step
            )
        return total

    return loss


def fit_ldipa(task: Task, parameters: LDIPAParameters, context: FitContext) -> Iterative:
    """Learns a dense P by distillation.

    Returns:
        The solver with the P of the best epoch (epoch 0, the identity, included).
    """
    operator = Dense(task.shape, joint=parameters.channels == "joint")
    reconstructor = context.reconstructor(task, parameters.solve, operator)
    images = task.images.train.first(context.budget.train_images)
    label = parameters.distill.teacher
    published = parameters.solve.units == "absolute"
    settings = (
        context.teachers.published(task) if published else context.teachers.tuned(task, label)
    )
    targets = context.teachers.targets(task, label, images, settings)
    context.notes |= {
        "teacher.step": settings.step,
        "teacher.strength": settings.strength,
        "teacher.units": settings.units,
    }
    normals = None
    if parameters.distill.weight_mismatch:
        with torch.no_grad():
            truth = task.pixels(images)
            normals = tuple(
                physics.A_adjoint(physics.A(truth))
                for physics in (task.student, task.teacher(label))
            )
    loss = distillation_loss(reconstructor, targets, normals, parameters.distill, task)
    train(reconstructor, loss, images, parameters.train, task, context)
    return reconstructor


def published_ldipa(task: Task) -> dict[str, Value]:
    """The paper's settings; its learning rates are lost, so the rate is ours."""
    return task.published_solve() | {
        "distill.teacher": task.labels[-1],
        "distill.target": "imit",
        "distill.weight_gradient": 1.0,
        "distill.weight_mismatch": 1e-3,
        "train.learning_rate": 1e-4,
    }


def too_large(task: Task) -> str | None:
    """Why a dense P cannot be trained for images of this size, or None."""
    numbers = (task.shape[1] * task.shape[2]) ** 2
    needed = COPIES * numbers * torch.finfo(task.dtype).bits // 8
    free = devices.available_memory(task.device)
    if needed <= free:
        return None
    return (
        f"training a dense P of {numbers:,} numbers takes {needed / 2**30:,.0f} GiB, of which "
        f"{free / 2**30:,.0f} are free: lower problem.size"
    )


LDIPA = Method(
    name="ldipa",
    title="L-DIPA",
    summary="dense P, distilled from a better-conditioned teacher by unrolling",
    operator="dense",
    rule="distilled",
    learned=True,
    stochastic=True,
    unrolled=True,
    paper=PAPER,
    parameters=LDIPAParameters,
    fit=fit_ldipa,
    published=published_ldipa,
    skip=too_large,
)
