"""`unrolled-identity`: no preconditioner, but one learned step and strength for each iteration.

What a learned P gains over the tuned identity need not come from P: training through the unrolled
iteration also fits the step of every iteration. This control is trained by the same gradients, on
the same images, and learns nothing but 2 K numbers: the factors on the tuned step and strength
(Gregor and LeCun 2010, "Learning fast approximations of sparse coding", for the idea of unrolling).

Fixed point: none in general, every iteration has another step and strength. Cost of an iteration:
as of the identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from dipa_bench.errors import UserError
from dipa_bench.learning.objective import DistillParameters, distillation_loss
from dipa_bench.learning.strategies import GradientParameters, describe
from dipa_bench.learning.unrolling import TrainParameters, train
from dipa_bench.methods import FitContext, Iterative, Method, untrainable
from dipa_bench.parameters import Parameters, Search, Value
from dipa_bench.preconditioners import Identity
from dipa_bench.solvers import SolveParameters
from dipa_bench.solvers.schedule import Schedule
from dipa_bench.tasks.base import Task

SUPERVISED = DistillParameters(target="sup", weight_gradient=0.0, weight_mismatch=0.0)


class ScheduleTrainParameters(TrainParameters):
    """How the factors are trained: few numbers take larger steps than an operator."""

    learning_rate: Annotated[
        float, Field(gt=0, description="at the start"), Search(3e-3, 1e-1, log=True)
    ] = 2e-2


class UnrolledParameters(Parameters):
    """The settings that the factors multiply, and their training."""

    solve: SolveParameters = SolveParameters()
    train: ScheduleTrainParameters = ScheduleTrainParameters()
    gradient: GradientParameters = GradientParameters()


@dataclass(frozen=True)
class Unrolled(Iterative):
    """The solver with its schedule, which is what was learned."""

    @property
    def module(self) -> Schedule:
        return self.solver.schedule


def untrained(task: Task, parameters: UnrolledParameters, context: FitContext) -> Unrolled:
    """The tuned identity, its schedule still at 1."""
    solver = context.reconstructor(task, parameters.solve, Identity()).solver
    solver.schedule = Schedule(task.iterations).to(task.device, task.dtype)
    return Unrolled(solver, Identity())


def fit(task: Task, parameters: UnrolledParameters, context: FitContext) -> Unrolled:
    """Trains the factors towards the true images."""
    if not task.prior.differentiable:
        raise UserError(untrainable(task.prior))
    made = untrained(task, parameters, context)
    context.notes["initial"] = "identity"
    loss = distillation_loss(made, None, None, SUPERVISED, parameters.gradient, task)
    context.notes["gradient_strategy"] = describe(parameters.gradient, task.iterations)
    images = task.images.train.first(context.budget.train_images)
    train(made, loss, images, parameters.train, task, context)
    return made


def restore(
    task: Task, parameters: UnrolledParameters, state: Mapping[str, Tensor], context: FitContext
) -> Unrolled:
    """With the stored factors; a run of more iterations repeats the last."""
    made = untrained(task, parameters, context)
    learned = Schedule(len(state["steps"]))
    learned.load_state_dict(state)
    made.solver.schedule = learned.to(task.device, task.dtype).requires_grad_(False)
    return made


def published(task: Task) -> dict[str, Value]:
    """Nothing is published: the published solver settings, trained from there."""
    return task.published_solve()


METHOD = Method(
    name="unrolled-identity",
    title="Identity, unrolled (control)",
    summary="no preconditioner: one step and one strength for each iteration, learned by unrolling",
    operator="identity",
    rule="supervised",
    parameters=UnrolledParameters,
    fit=fit,
    learned=True,
    supervision="ground truth",
    stochastic=True,
    unrolled=True,
    fixed_point="none: each iteration has its own step and strength",
    cost="2 operator calls, 1 denoiser call; all iterations forwards and back for each image and "
    "epoch",
    published=published,
    restore=restore,
)
