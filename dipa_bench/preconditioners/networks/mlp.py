"""A multilayer perceptron of all pixels."""

from __future__ import annotations

from itertools import pairwise
from math import prod
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

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


class MLPParameters(NetworkParameters):
    width: Annotated[
        int, Field(ge=1, description="hidden features"), Search(choices=(32, 128, 512))
    ] = 32
    depth: Annotated[int, Field(ge=1, description="hidden layers"), Search(choices=(1, 2, 3))] = 2

    def limit(self, shape: Shape) -> int | None:
        return None if self.max_parameters == "dense" else self.max_parameters


class MLP(Network):
    """C H W -> width -> ... -> C H W; each hidden layer is GELU(linear + embedded iteration).

    It alone may have more numbers than the dense P, as in the paper's comparison.
    """

    any_size = False

    def __init__(self, shape: Shape, parameters: MLPParameters, copies: int = 1) -> None:
        super().__init__(shape, parameters, copies)
        width, depth, pixels = parameters.width, parameters.depth, prod(shape)
        self.layers = nn.ModuleList(
            nn.Linear(*sizes) for sizes in pairwise([pixels, *[width] * depth])
        )
        self.modulations = nn.ModuleList(Modulate(width, self.embedding) for _ in range(depth))
        self.activation = nn.GELU()
        self.last = zeroed(nn.Linear(width, pixels))

    def body(self, scaled: Tensor, embedded: Tensor | None) -> Tensor:
        hidden = scaled.flatten(1)
        for layer, modulate in zip(self.layers, self.modulations, strict=True):
            hidden = self.activation(modulate(layer(hidden), embedded))
        return self.last(hidden).view_as(scaled)


SPEC = OperatorSpec(
    name="mlp",
    title="MLP",
    summary="a multilayer perceptron of gradient and iteration",
    build=MLP,
    parameters=MLPParameters,
    paper=PAPER,
    linear=False,
)
