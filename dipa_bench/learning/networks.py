"""What training a network (N-DIPA) has of its own, beside the common loop."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from dipa_bench import devices
from dipa_bench.errors import Diverged
from dipa_bench.learning.cross_fitting import training_starts
from dipa_bench.learning.unrolling import TrainParameters
from dipa_bench.methods import FitContext, Iterative
from dipa_bench.parameters import Search, Value, frozen
from dipa_bench.preconditioners import Identity
from dipa_bench.preconditioners.networks import Network
from dipa_bench.tasks.base import Task

MEASURED = 64  # training images whose gradients are measured
FLOOR = 1e-3  # of the largest gradient: A A^T = I and the start A^T y make the first one rounding


class _Rate(TrainParameters):
    """How a network is trained; it starts as the identity."""

    learning_rate: Annotated[
        float,
        Field(gt=0, description="at the start"),
        Search(2e-4, 5e-3, log=True),
    ] = 1e-3


NetworkTrainParameters = frozen(_Rate, schedule="plateau")


def prepare(reconstructor: Iterative, task: Task, context: FitContext) -> None:
    """Gives a network what it needs before training, and notes how it will be trained.

    Args:
        reconstructor: with a network that is still the identity.
        task: the task.
        context: of the fit.
    """
    network = reconstructor.preconditioner
    context.notes["initial"] = "identity"
    if not isinstance(network, Network):  # a stranger's
        return
    if network.over_dense(task.shape):
        context.notes["larger_than_dense"] = True
    if network.normalise == "iteration":
        network.calibrate(gradient_scales(reconstructor, task, context))
    network.mixed = devices.mixes(task.device)
    context.notes["precision"] = "bfloat16 networks" if network.mixed else "full"


def conclude(reconstructor: Iterative) -> None:
    """Leaves a trained network in full precision: so it is stored, and so it is restored."""
    if isinstance(reconstructor.preconditioner, Network):
        reconstructor.preconditioner.mixed = False


@torch.no_grad()
def gradient_scales(reconstructor: Iterative, task: Task, context: FitContext) -> Tensor:
    """Root mean square of the data gradient at each iteration of the run without P, K numbers.

    Over the first training images, at the points that the same solver visits.

    Raises:
        Diverged: that run left the finite numbers.
    """
    count = min(context.budget.train_images or MEASURED, MEASURED)
    solver, plain = reconstructor.solver, Identity()
    images = task.images.train.first(count)
    first = training_starts(solver, images)
    state, scales = solver.start(task.measure(images), task.student, plain, first), []
    for _ in range(solver.iterations):
        state = solver.with_gradient(state)
        scales.append(state.gradient.square().mean().sqrt())
        state = solver.advance(state, plain)
    found = torch.stack(scales)
    if not torch.isfinite(found).all():
        raise Diverged("the run without P diverges: its gradients have no size to divide by")
    return found.clamp_min(FLOOR * found.max())


def published(task: Task) -> dict[str, Value]:
    """The paper's settings of a network, Adam and ReduceLROnPlateau; the learning rate is ours."""
    return task.published_solve() | {
        "train.learning_rate": 1e-3,
        "train.optimizer": "adam",
        "train.schedule": "plateau",
        "gradient.strategy": "full",
    }
