"""ConvNeXt, the network of N-DIPA."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torchvision.models.convnext import CNBlock

from dipa_bench.parameters import Search
from dipa_bench.preconditioners.base import Shape
from dipa_bench.preconditioners.networks.base import (
    PAPER,
    Network,
    NetworkParameters,
    zeroed,
)
from dipa_bench.preconditioners.networks.embedding import Modulate
from dipa_bench.preconditioners.spec import OperatorSpec


class ConvNeXtParameters(NetworkParameters):
    """The defaults are small; the paper's 858,758 numbers are width 128, depth 5, kernel 7."""

    width: Annotated[
        int, Field(ge=1, description="features of a pixel"), Search(choices=(16, 32, 64, 128))
    ] = 32
    depth: Annotated[int, Field(ge=1, description="blocks"), Search(choices=(1, 2, 3, 5))] = 3
    kernel: Annotated[
        Literal[3, 5, 7],
        Field(description="side of the depthwise kernels in pixels"),
        Search(choices=(3, 5, 7)),
    ] = 7


class ConvNeXt(Network):
    """3x3 conv -> blocks, each followed by the embedded iteration -> 3x3 conv (DIPA's N-DIPA)."""

    def __init__(self, shape: Shape, parameters: ConvNeXtParameters, copies: int = 1) -> None:
        super().__init__(shape, parameters, copies)
        width, depth = parameters.width, parameters.depth
        self.first = nn.Conv2d(self.channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(_block(width, parameters.kernel) for _ in range(depth))
        self.modulations = nn.ModuleList(Modulate(width, self.embedding) for _ in range(depth))
        self.last = zeroed(nn.Conv2d(width, self.channels, 3, padding=1))

    def body(self, scaled: Tensor, embedded: Tensor | None) -> Tensor:
        hidden = self.first(scaled)
        for block, modulate in zip(self.blocks, self.modulations, strict=True):
            hidden = modulate(block(hidden), embedded)
        return self.last(hidden)


def _block(width: int, kernel: int) -> CNBlock:
    """torchvision's block with one residual scale for all features, as in DIPA.

    It starts at 1, not at the 1e-6 that classifiers of a hundred blocks need: a few blocks train
    from the start, and P is the identity all the same.
    """
    made = CNBlock(width, layer_scale=1.0, stochastic_depth_prob=0.0)
    made.layer_scale = nn.Parameter(torch.ones(1))
    if kernel != 7:  # torchvision's
        made.block[0] = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
    return made


SPEC = OperatorSpec(
    name="convnext",
    title="ConvNeXt",
    summary="a ConvNeXt of gradient and iteration",
    build=ConvNeXt,
    parameters=ConvNeXtParameters,
    paper=f"N-DIPA: {PAPER}; Liu et al. 2022, arXiv 2201.03545",
    linear=False,
    published={"width": 128, "depth": 5, "kernel": 7, "normalise": "none"},
)
