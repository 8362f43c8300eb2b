"""`restormer`: a transformer that restores a first picture made from the measurement.

The network is deepinv's Restormer (Zamir et al., CVPR 2022, arXiv 2111.09881) without pretrained
weights; it adds its output to its input. The first picture is the bicubic interpolation of a
decimated image, on the grid from which it was decimated, and elsewhere A^T y / lambda_max(A^T A).

Its paper trains with the mean absolute error; here it is the squared one, as for all other rows.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from deepinv.models import Restormer
from deepinv.physics import LinearPhysics
from pydantic import Field
from torch import Tensor

from baselines.controls import bicubic
from baselines.end_to_end import EndToEndParameters, Network, end_to_end
from dipa_bench.parameters import Search
from dipa_bench.tasks.base import Task

BLOCKS, REFINEMENT = (4, 6, 6, 8), 4  # of the published network, by scale
MULTIPLE = 8  # of pixels on a side: it halves images three times


class RestormerParameters(EndToEndParameters):
    """Sizes of the network."""

    width: Annotated[
        int,
        Field(ge=1, le=256, description="channels of the first scale, doubled at each"),
        Search(choices=(8, 12, 16)),
    ] = 8
    depth: Annotated[
        float,
        Field(gt=0, le=2, description="of the published blocks, 4, 6, 6, 8 and 4, rounded up"),
        Search(choices=(0.125, 0.25)),
    ] = 0.125


class Restored(Network):
    """A Restormer behind a first picture.

    Args:
        channels: of the images.
        interpolates: whether the first picture is the bicubic one.
        largest: lambda_max(A^T A) of the operator that it is used with.
        parameters: sizes.
    """

    def __init__(
        self, channels: int, interpolates: bool, largest: float, parameters: RestormerParameters
    ) -> None:
        super().__init__()
        self.interpolates, self.largest = interpolates, largest
        self.operator_calls = 0 if interpolates else 1
        *blocks, refinement = (math.ceil(parameters.depth * n) for n in (*BLOCKS, REFINEMENT))
        self.network = Restormer(
            channels,
            channels,
            dim=parameters.width,
            num_blocks=blocks,
            num_refinement_blocks=refinement,
            pretrained=None,
        )

    def first(self, measurement: Tensor, physics: LinearPhysics) -> Tensor:
        """What the network starts from, B x C x H x W."""
        if self.interpolates:
            return bicubic(measurement, physics)
        return physics.A_adjoint(measurement) / self.largest

    def forward(self, measurement: Tensor, physics: LinearPhysics) -> Tensor:
        image = self.first(measurement, physics)
        height, width = image.shape[-2:]
        rest = [0, -width % MULTIPLE, 0, -height % MULTIPLE]
        padded = torch.nn.functional.pad(image, rest, mode="replicate")
        return self.network.forward_restormer(padded)[..., :height, :width]


def build(task: Task, parameters: RestormerParameters) -> Restored:
    interpolates = hasattr(task.student, "factor") and hasattr(task.student, "imsize")
    return Restored(task.shape[0], interpolates, task.norm_squared(), parameters)


METHOD = end_to_end(
    name="restormer",
    title="Restormer (end to end)",
    summary="a transformer on the bicubic interpolation of a decimated image, or on A^T y",
    paper="Restormer, Zamir et al. 2022, arXiv 2111.09881",
    cost="none: one pass of the network in all (and 1 operator call where nothing is decimated)",
    parameters=RestormerParameters,
    build=build,
    published={
        "width": 48,
        "depth": 1.0,
        "train.learning_rate": 3e-4,
        "train.optimizer": "adamw",
        "train.weight_decay": 1e-4,
    },
)
