"""A convolutional network whose blocks look at several scales at once."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from dipa_bench.parameters import Search
from dipa_bench.preconditioners.base import Shape
from dipa_bench.preconditioners.networks.base import (
    PAPER,
    Chain,
    NetworkParameters,
    zeroed,
)
from dipa_bench.preconditioners.networks.embedding import Modulate
from dipa_bench.preconditioners.spec import OperatorSpec


class MultiScaleParameters(NetworkParameters):
    width: Annotated[
        int, Field(ge=1, description="features of a pixel"), Search(choices=(8, 16, 32))
    ] = 16
    depth: Annotated[int, Field(ge=1, description="blocks"), Search(choices=(1, 2, 4, 8))] = 2
    branches: Annotated[
        int,
        Field(ge=1, le=5, description="kernels side by side: 3 x 3, 5 x 5, 7 x 7, ... pixels"),
        Search(choices=(2, 3)),
    ] = 3


class MultiScale(Chain):
    """3x3 conv -> blocks of parallel kernels (after Li et al. 2018) -> 3x3 conv."""

    def __init__(self, shape: Shape, parameters: MultiScaleParameters, copies: int = 1) -> None:
        super().__init__(shape, parameters, copies)
        width = parameters.width
        self.first = nn.Conv2d(self.channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            Block(width, parameters.branches, self.embedding) for _ in range(parameters.depth)
        )
        self.last = zeroed(nn.Conv2d(width, self.channels, 3, padding=1))


class Block(nn.Module):
    """h + mix(GELU([conv_3 h, conv_5 h, ...])) + embedded iteration, B x width x H x W.

    Args:
        width: features, of every branch too.
        branches: how many kernels; `mix` is a 1x1 convolution.
        embedding: whether it is told the iteration.
    """

    def __init__(self, width: int, branches: int, embedding: bool) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(width, width, 3 + 2 * branch, padding="same") for branch in range(branches)
        )
        self.activation = nn.GELU()
        self.mix = nn.Conv2d(branches * width, width, 1)
        self.modulate = Modulate(width, embedding)

    def forward(self, hidden: Tensor, embedded: Tensor | None) -> Tensor:
        found = torch.cat([branch(hidden) for branch in self.branches], dim=1)
        return self.modulate(hidden + self.mix(self.activation(found)), embedded)


SPEC = OperatorSpec(
    name="multiscale",
    title="MultiScale CNN",
    summary="a CNN with kernels of several sizes of gradient and iteration",
    build=MultiScale,
    parameters=MultiScaleParameters,
    paper=f"{PAPER}; Li et al. 2018 (MSRN, ECCV)",
    linear=False,
)
