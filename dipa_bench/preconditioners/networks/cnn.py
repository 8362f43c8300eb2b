"""A plain convolutional network of residual blocks."""

from __future__ import annotations

from typing import Annotated, Literal

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


class CNNParameters(NetworkParameters):
    width: Annotated[
        int, Field(ge=1, description="features of a pixel"), Search(choices=(16, 24, 32, 64))
    ] = 24
    depth: Annotated[int, Field(ge=1, description="blocks"), Search(choices=(2, 4, 8))] = 4
    kernel: Annotated[
        Literal[3, 5, 7],
        Field(description="side of the kernels in pixels"),
        Search(choices=(3, 5)),
    ] = 3


class CNN(Chain):
    """conv -> blocks h + gate(GELU(conv h + embedded iteration)) -> conv.

    The blocks are residual, so that deep networks train without a normalisation.
    """

    def __init__(self, shape: Shape, parameters: CNNParameters, copies: int = 1) -> None:
        super().__init__(shape, parameters, copies)
        width, kernel = parameters.width, parameters.kernel
        self.first = nn.Conv2d(self.channels, width, kernel, padding="same")
        self.blocks = nn.ModuleList(
            Block(width, kernel, self.embedding, self.gate(parameters))
            for _ in range(parameters.depth)
        )
        self.last = zeroed(nn.Conv2d(width, self.channels, kernel, padding="same"))

    def gate(self, parameters: CNNParameters) -> nn.Module:
        """What the features of one block go through before they are added; here nothing."""
        return nn.Identity()


class Block(nn.Module):
    """h + gate(GELU(conv h + embedded iteration)), B x width x H x W.

    Args:
        width, kernel: of the convolution.
        embedding: whether it is told the iteration.
        gate: keeps the shape.
    """

    def __init__(self, width: int, kernel: int, embedding: bool, gate: nn.Module) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, width, kernel, padding="same")
        self.modulate = Modulate(width, embedding)
        self.activation = nn.GELU()
        self.gate = gate

    def forward(self, hidden: Tensor, embedded: Tensor | None) -> Tensor:
        found = self.modulate(self.convolution(hidden), embedded)
        return hidden + self.gate(self.activation(found))


SPEC = OperatorSpec(
    name="cnn",
    title="CNN",
    summary="a CNN of gradient and iteration",
    build=CNN,
    parameters=CNNParameters,
    paper=PAPER,
    linear=False,
)
