"""What all networks of N-DIPA share: P(g, k) = g + s f(g / s, k)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from dipa_bench import devices
from dipa_bench.errors import UserError
from dipa_bench.parameters import Parameters, Search
from dipa_bench.preconditioners.base import Learned, Shape, State
from dipa_bench.preconditioners.networks.embedding import sinusoids

PAPER = "DIPA, arXiv 2605.15456"


class NetworkParameters(Parameters):
    """What can be chosen of every network; an architecture adds at least `width` and `depth`."""

    embedding: Annotated[
        bool,
        Field(description="whether the network is told the iteration"),
        Search(choices=(True, False)),
    ] = True
    normalise: Annotated[
        Literal["none", "sample", "iteration"],
        Field(
            description="what a gradient is divided by before, and multiplied with after, the "
            "network: nothing; its own root mean square; the one that training images had at this "
            "iteration"
        ),
        Search(choices=("none", "sample", "iteration")),
    ] = "sample"
    max_parameters: Annotated[
        Literal["dense"] | int,
        Field(description="most numbers that it may have; dense: as many as an H W x H W matrix"),
    ] = "dense"

    @field_validator("max_parameters", mode="before")
    @classmethod
    def _positive(cls, value: Any) -> Any:
        if value == "dense" or (type(value) is int and value > 0):
            return value
        raise ValueError("give dense or a whole number above 0")

    def limit(self, shape: Shape) -> int | None:
        """The most numbers that a network for images of `shape` may be trained with; None for any.

        It is asked by the methods that train one: numbers that exist already may be used at any
        size.
        """
        return dense_numbers(shape) if self.max_parameters == "dense" else self.max_parameters


class Network(Learned):
    """P(g, k) = g + s f(g / s, k) with a network f that starts at zero: P starts as the identity.

    A subclass sets `last` and implements `body`; neither may depend on the other images of a batch
    or on the mode (no batch normalisation, no dropout).

    Args:
        shape: (C, H, W).
        parameters: of the architecture.
        copies: iterations whose scales it knows with ``normalise = "iteration"``.

    Attributes:
        any_size: whether H and W may differ from those of `shape`; C never does.
        mixed: whether f computes in bfloat16 while gradients are taken; its numbers, g and s never
            do, and neither does anything that is measured.
        last: the layer that starts at zero, weight and bias.
        scales: s of each iteration; only with ``normalise = "iteration"``, ones until `calibrate`.
    """

    linear = False
    any_size: ClassVar[bool] = True
    mixed: bool = False
    last: nn.Module
    scales: Tensor

    def __init__(self, shape: Shape, parameters: NetworkParameters, copies: int) -> None:
        super().__init__(copies, None if self.any_size else shape)
        self.channels = shape[0]
        self.embedding = parameters.embedding
        self.normalise = parameters.normalise
        if self.normalise == "iteration":
            self.register_buffer("scales", torch.ones(copies))

    def body(self, scaled: Tensor, embedded: Tensor | None) -> Tensor:
        """The network f.

        Args:
            scaled: the gradient divided by s, B x C x H x W.
            embedded: the iteration, 1 x 256; None if the network is not told.

        Returns:
            B x C x H x W; zero as long as `last` is.
        """
        raise NotImplementedError

    def forward(self, gradient: Tensor, state: State) -> Tensor:
        self.check(gradient)
        scale = self.magnitude(gradient, state)
        embedded = sinusoids(state.iteration, gradient) if self.embedding else None
        scaled = gradient / scale.clamp_min(torch.finfo(gradient.dtype).tiny)
        with devices.mixed(gradient.device, self.mixed and torch.is_grad_enabled()):
            found = self.body(scaled, embedded)
        return gradient + scale * found.to(gradient.dtype)

    def magnitude(self, gradient: Tensor, state: State) -> Tensor:
        """s, B x 1 x 1 x 1 or a single number; 0 for an image of zeros divided by its own."""
        if self.normalise == "none":
            return gradient.new_ones(())
        if self.normalise == "iteration":
            return self.scales[self.entry(state)].to(gradient.dtype)
        # a norm has a derivative (0) at zero, the root of a mean square has none
        norm = torch.linalg.vector_norm(gradient, dim=(1, 2, 3), keepdim=True)
        return norm / gradient[0].numel() ** 0.5

    def calibrate(self, scales: Tensor) -> None:
        """Takes over the root mean squares that gradients of training images have.

        Args:
            scales: one for each iteration, positive, as many as `copies`.

        Raises:
            UserError: they are not, or ``normalise`` is not ``"iteration"``.
        """
        if self.normalise != "iteration":
            raise UserError(
                f"normalise = {self.normalise} has no scales to calibrate: only iteration has"
            )
        if scales.shape != self.scales.shape:
            raise UserError(
                f"{tuple(scales.shape)} scales for {self.copies} iterations: give one each"
            )
        if not bool((torch.isfinite(scales) & (scales > 0)).all()):
            raise UserError("scales of gradients: give positive finite numbers")
        self.scales.copy_(scales)

    def check(self, gradient: Tensor) -> None:
        super().check(gradient)
        if gradient.shape[1] != self.channels:
            raise UserError(
                f"this P was fitted for images of {self.channels} channels, not "
                f"{gradient.shape[1]}: fit it again on such images"
            )

    def numbers(self) -> int:
        """How many numbers are trained."""
        return sum(part.numel() for part in self.parameters())

    def over_dense(self, shape: Shape) -> bool:
        """Whether it has more numbers than one H W x H W matrix for images of `shape`."""
        return self.numbers() > dense_numbers(shape)


class Chain(Network):
    """A first layer, blocks that are told the iteration, and the last layer.

    A subclass sets `first` and `last`, and `blocks`: (hidden, embedded) -> hidden.
    """

    first: nn.Module
    blocks: nn.ModuleList

    def body(self, scaled: Tensor, embedded: Tensor | None) -> Tensor:
        hidden = self.first(scaled)
        for block in self.blocks:
            hidden = block(hidden, embedded)
        return self.last(hidden)


def dense_numbers(shape: Shape) -> int:
    """Numbers of one H W x H W matrix."""
    return (shape[1] * shape[2]) ** 2


def zeroed(layer: nn.Module) -> nn.Module:
    """A layer whose weight and bias start at zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
