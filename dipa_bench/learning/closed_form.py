"""Closed-form operators: one P from second moments of the training images, without unrolling.

P is to solve P u_j = v_j in the least-squares sense over the training images x_j, with a pull
towards the identity (a ridge):

- target ``mismatch``: u = A_s^T A_s x, v = alpha_t A_t^T A_t x. It minimises DIPA's R(P), (12), up
  to its size: the student's step is not in it.
- target ``truth``: u = A_s^T y, v = x, with the noise of the training measurements: one step from
  zero is the linear least-squares estimate, as P A_s^T = C A_s^T (A_s C A_s^T + eps I)^-1 is.

The size of P is then chosen such that the spectral radius of P A^T A is lambda_max(A^T A), as that
of the identity. P A^T A is not symmetric, and where its spectrum is not in the right half plane no
step is stable: little ridges can lead there, and the choice of the ridge by validation images leads
away.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from dipa_bench.data.images import ImageSet
from dipa_bench.learning.least_squares import LARGEST, Criterion, Lesson, energy, minimiser
from dipa_bench.learning.rules import Maker, RuleSpec
from dipa_bench.learning.unrolling import validate
from dipa_bench.methods import FitContext, Iterative, relative
from dipa_bench.parameters import Parameters, Search, Value, frozen
from dipa_bench.preconditioners import LinearOperator, OperatorSpec, State
from dipa_bench.solvers import SolveParameters
from dipa_bench.tasks.base import Task

Target = Literal["mismatch", "truth"]
READS: dict[Target, str] = {"mismatch": "teacher", "truth": "ground truth"}
POWER = 200  # iterations of the power method at most
STEADY, CONVERGED = 8, 3e-7  # it is over once so many radii agree to this part of them
RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


class ClosedFormParameters(Parameters):
    """What P is to map the gradients to, beside the solver's own parameters."""

    solve: SolveParameters = SolveParameters(start="zero")
    target: Annotated[
        Target,
        Field(description="the teacher's A^T A x (mismatch: least R), or x itself (truth)"),
        Search(choices=("mismatch", "truth")),
    ] = "truth"
    teacher: Annotated[
        float | None,
        Field(description="label of the teacher (sr: its factor); target=truth has none"),
        Search(ask="teacher"),
    ] = None
    ridge: Annotated[
        float | None,
        Field(
            gt=0,
            description="weight of |P - I|^2, relative to the least-squares problem's own; by "
            "default the best of six on validation images",
        ),
    ] = None


def parameters_for(operator: OperatorSpec) -> type[ClosedFormParameters]:
    """A scalar has nothing to search: of one size, it is the identity."""
    if not operator.single:
        return ClosedFormParameters
    plain = ClosedFormParameters()
    return frozen(ClosedFormParameters, target=plain.target, teacher=plain.teacher)


@torch.no_grad()
def lesson(
    task: Task,
    target: Target,
    label: float,
    units: str,
    context: FitContext,
    images: ImageSet | None = None,
) -> Lesson:
    """All u_j and v_j of training images as one lesson of the objective ``distance``.

    Args:
        task: the task.
        target: ``mismatch`` or ``truth``.
        label: of the teacher, for ``mismatch``.
        units: of the student's steps, which decide on the teacher's.
        context: gives the budget and the teachers.
        images: those to learn from; None for the budget's training images.
    """
    if images is None:
        images = task.images.train.first(context.budget.train_images)
    truth = task.pixels(images)
    student = task.student
    if target == "truth":
        measured = task.measure(images)
        return Lesson(truth, student.A_adjoint(measured), measured, torch.zeros_like(truth))
    teacher, measured = task.teacher(label), student.A(truth)
    settings = context.teachers.settings(task, label, units)
    wanted = context.teachers.step(task, label, settings) * teacher.A_adjoint(teacher.A(truth))
    return Lesson(wanted, student.A_adjoint(measured), measured, torch.zeros_like(truth))


@torch.no_grad()
def best_numbers(operator: LinearOperator, given: Lesson, ridge: float, task: Task) -> Tensor:
    """The numbers of the operator, of the kind of `operator`, that maps u to v; normalised later.

    Args:
        operator: of an affine kind, still the identity.
        given: u and v.
        ridge: relative to the problem's own scale.
        task: gives lambda_max(A^T A).
    """
    largest, scale = task.norm_squared(), energy([given.gradient])
    criterion = Criterion(task.student, largest, "distance", scale, largest)
    best = minimiser(operator, ridge, "distance", task)
    return torch.as_tensor(best([given], criterion))


@torch.no_grad()
def normalise(operator: LinearOperator, task: Task) -> None:
    """Scales P such that the spectral radius of P A^T A is lambda_max(A^T A); by power iteration.

    Leaves a P alone of which P A^T A is 0.
    """
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, *task.shape, generator=generator).to(task.device, task.dtype)
    physics, radius = task.student, 0.0
    state = State(0, image, image, image, physics)
    before: list[float] = []
    for _ in range(POWER):
        image = operator(physics.A_adjoint(physics.A(image)), state)
        radius = image.norm().item()
        if radius == 0:
            return
        image = image / radius
        before = [*before[1 - STEADY :], radius]
        if len(before) == STEADY and max(before) - min(before) <= CONVERGED * radius:
            break
    operator.scale(task.norm_squared() / radius)


def choose_ridge(
    reconstructor: Iterative, solve: Callable[[float], None], task: Task, context: FitContext
) -> None:
    """Leaves the operator with the ridge of `RIDGES` that has the best validation PSNR.

    Args:
        reconstructor: with the operator.
        solve: (ridge) -> sets the operator.
        task: the task.
        context: gives the budget's validation images, and takes the ridge as a note.
    """
    images = task.images.validation.first(context.budget.validation_images)
    operator = reconstructor.preconditioner
    best, state = -math.inf, None
    for ridge in RIDGES:
        solve(ridge)
        quality = validate(reconstructor, task, images)
        if state is None or quality > best:
            best, state = quality, copy.deepcopy(operator.state_dict())
            context.notes["ridge"] = ridge
    operator.load_state_dict(state)


@torch.no_grad()
def fit(
    task: Task, make: Maker, parameters: ClosedFormParameters, context: FitContext
) -> Iterative:
    """One P for all iterations, in closed form or by conjugate gradients."""
    operator = make(1).requires_grad_(False)
    label = task.label_or_default(parameters.teacher)
    given = lesson(task, parameters.target, label, parameters.solve.units, context)
    reconstructor = context.reconstructor(task, parameters.solve, operator)

    def solve(ridge: float) -> None:
        operator.numbers.copy_(best_numbers(make(1), given, ridge, task))
        normalise(operator, task)

    if parameters.ridge is None:
        choose_ridge(reconstructor, solve, task, context)
    else:
        solve(parameters.ridge)
    return reconstructor


def published(operator: OperatorSpec, task: Task) -> dict[str, Value]:
    """Nothing is: the published solver settings, from zero (see `baselines.lmmse`)."""
    return relative(task.published_solve(), task.norm_squared()) | {"solve.start": "zero"}


RULE = RuleSpec(
    name="closed-form",
    title="Closed form",
    summary="one for all iterations, from second moments of the training images: least R(P), or "
    "least squares to the truth",
    parameters=parameters_for,
    fit=fit,
    published=published,
    cost="2 operator calls, 1 denoiser call; one least-squares problem",
    affine=True,
    supervision=lambda parameters: READS[parameters.target],
    largest=LARGEST,
)
