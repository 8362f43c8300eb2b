"""Greedy learning: one operator per iteration, each fitted on the iterates that the ones before led
to (Fahy, Golbabaee, Ehrhardt, arXiv 2406.00260v9).

The operator of iteration k minimises over the training images j either the data term after its own
gradient step, sum_j f_j(z_j - G g_j) with f_j(x) = |A x - y_j|^2 / 2 (objective ``value``), or the
distance to the truth, sum_j |z_j - G g_j - x*_j|^2 (``distance``). The prior and the momentum are
no part of either, but the images are rolled forward with them.

G = (I + D) / L with L = lambda_max(A^T A) and D linear in its parameters d, D g_j = B_j d. Both are
least squares in d with the normal equations

    sum_j B_j^T N B_j d = sum_j B_j^T t_j,    t_j = A^T (r_j - A g_j / L),    N = A^T A / L  (value)
                                              t_j = L (z_j - x*_j) - g_j,     N = I       (distance)

for the residual r_j = A z_j - y_j, and of all solutions the one of least norm is taken: what the
training gradients do not span gets the plain step of size 1 / L. A ridge rho |d|^2 is added, the
paper's pull towards plain gradient descent; without it, ill-posed A make the operators that fit the
data best useless.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from deepinv.physics import LinearPhysics
from pydantic import Field
from torch import Tensor

from dipa_bench.errors import UserError
from dipa_bench.methods import FitContext, Iterative, relative
from dipa_bench.parameters import Parameters, Search, Value
from dipa_bench.preconditioners import Preconditioner, State
from dipa_bench.solvers import SolveParameters
from dipa_bench.tasks.base import Task

PAPER = "Fahy, Golbabaee, Ehrhardt, Greedy Learning to Optimize, arXiv 2406.00260v9"
BATCH = 64
NEGLIGIBLE = 1e-12  # gradients this small, relative to A^T y, teach nothing (squared norms)
SOLVED = 1e-10  # |t|^2 this small, relative to |g|^2, is what rounding leaves of the plain step
MOST = 300  # conjugate gradient iterations

Objective = Literal["value", "distance"]


class GreedyParameters(Parameters):
    """What is minimised, beside the solver's own parameters."""

    solve: SolveParameters = SolveParameters()
    objective: Annotated[
        Objective,
        Field(description="next data-term value, or distance to the truth (reads ground truth)"),
    ] = "value"


class RidgeParameters(GreedyParameters):
    """The paper's pull towards plain gradient descent, for operators with many numbers."""

    ridge: Annotated[
        float,
        Field(gt=0, description="weight of |P - I|^2, relative to the least-squares problem's own"),
        Search(1e-8, 1.0, log=True),
    ] = 1e-2


@dataclass(frozen=True)
class Lesson:
    """One batch of training images where an operator is to be fitted, each B x C x H x W.

    Attributes:
        point: z, where the gradient was taken.
        gradient: A^T (A z - y).
        residual: A z - y, in the measurement's shape.
        truth: the true images x*; read by the objective ``distance`` only.
    """

    point: Tensor
    gradient: Tensor
    residual: Tensor
    truth: Tensor


@dataclass(frozen=True)
class Criterion:
    """The least-squares problem of one operator.

    Attributes:
        physics: A.
        largest: L = lambda_max(A^T A).
        objective: ``value`` or ``distance``.
        size: sum of |A^T y_j|^2, by which gradients are called negligible.
        unit: what absolute steps are multiplied by where they are kept: L, or 1 for a solver with
            absolute steps.
    """

    physics: LinearPhysics
    largest: float
    objective: Objective
    size: float
    unit: float

    @property
    def plain(self) -> float:
        """The step 1 / L as it is kept: 1, or 1 / L for a solver with absolute steps."""
        return self.unit / self.largest

    def normal(self, images: Tensor) -> Tensor:
        """N v, in the dtype of v (the operator works in that of the task)."""
        if self.objective == "distance":
            return images
        return self.physics.A_adjoint(self.physics.A(images)) / self.largest

    def target(self, lesson: Lesson) -> Tensor:
        """t = what the plain step leaves to do, B x C x H x W, in the units of a gradient."""
        if self.objective == "distance":
            return self.largest * (lesson.point - lesson.truth) - lesson.gradient
        left = lesson.residual - self.physics.A(lesson.gradient) / self.largest
        return self.physics.A_adjoint(left)

    def negligible(self, lessons: Sequence[Lesson]) -> bool:
        """Whether the gradients are no more than rounding."""
        return energy([lesson.gradient for lesson in lessons]) <= NEGLIGIBLE * self.size

    def targets(self, lessons: Sequence[Lesson]) -> list[Tensor] | None:
        """t of each batch; None where there is nothing to learn and the plain step is kept."""
        if self.negligible(lessons):
            return None
        found = [self.target(lesson) for lesson in lessons]
        slopes = energy([lesson.gradient for lesson in lessons])
        return found if energy(found) > SOLVED * slopes else None


@torch.no_grad()
def learn(
    task: Task,
    solve: SolveParameters,
    objective: Objective,
    context: FitContext,
    operator: Preconditioner,
    best: Callable[[Sequence[Lesson], Criterion], Tensor | float],
    stored: Tensor,
) -> Iterative:
    """Fits one operator after the other, each on the iterates that the ones before led to.

    They are kept in units of 1 / L, in which the solver's own step multiplies them (absolute where
    the solver's step is).

    Args:
        task: the task, of which the budget's training images are used.
        solve: the solver's parameters.
        objective: ``value`` or ``distance``.
        context: of the fit.
        operator: the preconditioner, whose iteration k uses ``stored[k]``.
        best: the minimiser for one iteration, as it is kept (`Criterion.unit`).
        stored: a buffer of `operator`, K x ...; written row by row.
    """
    reconstructor = context.reconstructor(task, solve, operator)
    solver, physics, largest = reconstructor.solver, task.student, task.largest()
    unit = largest if solve.units == "relative" else 1.0
    images = task.images.train.first(context.budget.train_images)
    measured = task.measure(images).split(BATCH)
    truths = task.pixels(images).split(BATCH)
    at_zero = [physics.A_adjoint(y) for y in measured]
    criterion = Criterion(physics, largest, objective, energy(at_zero), unit)

    shared = solve.start == "preconditioned"
    if shared:  # x_0 is a step from zero with P_0 itself, so that step is the one to fit
        parts = zip(at_zero, measured, truths, strict=True)
        lessons = [Lesson(torch.zeros_like(g), -g, -y, truth) for g, y, truth in parts]
        stored[0] = best(lessons, criterion)
    states = [solver.start(y, physics, operator) for y in measured]
    for iteration in range(task.iterations):
        states = [solver.linearise(state) for state in states]
        if iteration or not shared:
            stored[iteration] = best(_lessons(states, truths), criterion)
        states = [solver.advance(state, operator) for state in states]
    return reconstructor


def _lessons(states: Sequence[State], truths: Sequence[Tensor]) -> list[Lesson]:
    pairs = zip(states, truths, strict=True)
    return [Lesson(s.point, s.gradient, s.residual, truth) for s, truth in pairs]


def energy(batches: Sequence[Tensor]) -> float:
    """Sum of squares over all batches."""
    return sum(batch.square().sum().item() for batch in batches)


def conjugate_gradients(
    normal: Callable[[Tensor], Tensor], target: Tensor, tolerance: float, most: int = MOST
) -> Tensor:
    """The least-norm solution of a consistent N d = b by conjugate gradients from zero.

    Every iterate lowers d^T N d / 2 - d^T b, so that stopping early is safe.

    Args:
        normal: d -> N d, symmetric and positive semi-definite.
        target: b, of any shape; float64.
        tolerance: residual, relative to |b|, at which to stop.
        most: iterations at most.
    """
    solution = torch.zeros_like(target)
    residual, direction = target.clone(), target.clone()
    left = first = residual.square().sum()
    for _ in range(most):
        if left <= tolerance**2 * first:
            break
        image = normal(direction)
        curvature = (direction * image).sum()
        if curvature <= 0:
            break
        step = left / curvature
        solution += step * direction
        residual -= step * image
        before, left = left, residual.square().sum()
        direction = residual + (left / before) * direction
    return solution


def tolerance(dtype: torch.dtype) -> float:
    """What conjugate gradients can reach when the operator works in `dtype`."""
    return max(1e-10, 100 * torch.finfo(dtype).eps)


def expect(shape: tuple[int, ...], found: tuple[int, ...]) -> None:
    """Refuses images of another shape than an operator was fitted for.

    Raises:
        UserError: they are.
    """
    if tuple(found) != tuple(shape):
        raise UserError(
            f"this P was fitted for images of shape {tuple(shape)}, not {tuple(found)}: fit it "
            "again at that size"
        )


def published(task: Task) -> dict[str, Value]:
    """The learned operators as they are; all else as published for the solver."""
    return relative(task.published_solve(), task.largest()) | {"solve.step": 1.0}
