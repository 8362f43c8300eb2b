"""What the end-to-end networks of the DIPA paper's Table 7 share.

A network maps a measurement and its operator to an image; it has no prior of its own and is trained
towards the truth. Its numbers depend neither on the operator nor on the measurement's shape, so
that it can be tried at a setting that it was not trained for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from deepinv.physics import LinearPhysics
from pydantic import Field
from torch import Tensor, nn

from dipa_bench.errors import UserError
from dipa_bench.learning.unrolling import TrainParameters, train
from dipa_bench.methods import Direct, FitContext, Method
from dipa_bench.parameters import Parameters, Search, Value
from dipa_bench.tasks.base import Task


class EndToEndTrainParameters(TrainParameters):
    """How a network is trained: as an operator is, with larger steps."""

    learning_rate: Annotated[
        float,
        Field(gt=0, description="at the start"),
        Search(3e-4, 1e-2, log=True),
    ] = 2e-3


class EndToEndParameters(Parameters):
    """Base of a network's parameters; each adds its own sizes."""

    train: EndToEndTrainParameters = EndToEndTrainParameters()


class Network(nn.Module):
    """A map from measurements to images; subclasses override `forward`.

    Attributes:
        operator_calls: applications of A or A^T (or of its transform alone) to an image.
    """

    operator_calls: int = 0

    def forward(self, measurement: Tensor, physics: LinearPhysics) -> Tensor:
        """y to B x C x H x W, every image by itself."""
        raise NotImplementedError

    def loss(self, measurement: Tensor, physics: LinearPhysics, truth: Tensor) -> Tensor:
        """What training minimises: the mean squared error, and what a subclass adds."""
        return nn.functional.mse_loss(self(measurement, physics), truth)


Build = Callable[[Task, Any], Network]
"""(task, parameters) -> the untrained network for images of the task's channels, on the CPU."""


def end_to_end(
    *,
    name: str,
    title: str,
    summary: str,
    paper: str,
    cost: str,
    parameters: type[EndToEndParameters],
    build: Build,
    published: dict[str, Value],
    skip: Callable[[Task], str | None] = lambda task: None,
) -> Method:
    """The method that trains a network end to end.

    Args:
        name, title, summary, paper, cost, parameters, skip: see `Method`.
        build: makes the network; it draws from torch's global generator.
        published: the sizes and training of the network's own paper, as flat parameters.
    """

    def fit(task: Task, parameters: Any, context: FitContext) -> Direct:
        made = _reconstructor(task, parameters, context)
        network = made.module
        train(
            made,
            lambda batch: network.loss(batch.measurement, task.student, batch.truth),
            task.images.train.first(context.budget.train_images),
            parameters.train,
            task,
            context,
        )
        return made

    def restore(
        task: Task, parameters: Any, state: Mapping[str, Tensor], context: FitContext
    ) -> Direct:
        made = _reconstructor(task, parameters, context)
        try:
            made.module.load_state_dict(state)
        except RuntimeError:
            raise UserError(
                f"the stored numbers of {name!r} do not fit images of {task.shape[0]} channels: "
                "give images of as many channels and the sizes that it was trained with"
            ) from None
        made.module.requires_grad_(False)
        return made

    def _reconstructor(task: Task, parameters: Any, context: FitContext) -> Direct:
        if reason := skip(task):
            raise UserError(reason)
        with context.drawing():
            network = build(task, parameters)
        network = network.to(task.device, task.dtype)
        return Direct(network, network.operator_calls, module=network)

    return Method(
        name=name,
        title=title,
        summary=summary,
        operator="none",
        rule="end-to-end",
        learned=True,
        supervision="ground truth",
        stochastic=True,
        paper=paper,
        fixed_point="none: no iteration of a solver",
        cost=cost,
        parameters=parameters,
        fit=fit,
        published=lambda task: dict(published),
        skip=skip,
        restore=restore,
    )
