"""The CNN with attention to channels and places (CBAM)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from dipa_bench.parameters import Search
from dipa_bench.preconditioners.networks.base import PAPER
from dipa_bench.preconditioners.networks.cnn import CNN, CNNParameters
from dipa_bench.preconditioners.spec import OperatorSpec


class AttentionParameters(CNNParameters):
    reduction: Annotated[
        int,
        Field(ge=1, description="width divided by the hidden features of the channel attention"),
        Search(choices=(4, 8, 16)),
    ] = 8


class AttentionCNN(CNN):
    """`CNN` whose blocks pass their features through a `CBAM` before they are added."""

    def gate(self, parameters: AttentionParameters) -> nn.Module:
        return CBAM(parameters.width, parameters.reduction)


class CBAM(nn.Module):
    """Convolutional block attention, Woo et al. 2018, arXiv 1807.06521, equations 1 to 3.

    Channels, then places, are weighted by numbers in (0, 1): channels by one MLP of their mean and
    of their maximum over all places, summed; places by a 7x7 convolution of the mean and the
    maximum over channels.

    Args:
        width: features.
        reduction: width divided by the hidden features of the MLP, of which at least one is left.
    """

    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        hidden = max(1, width // reduction)
        self.channels = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.places = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, features: Tensor) -> Tensor:
        """B x width x H x W -> the same."""
        mean, highest = features.mean((2, 3)), features.amax((2, 3))
        weights = (self.channels(mean) + self.channels(highest)).sigmoid()
        features = features * weights[:, :, None, None]
        maps = torch.cat([features.mean(1, keepdim=True), features.amax(1, keepdim=True)], dim=1)
        return features * self.places(maps).sigmoid()


SPEC = OperatorSpec(
    name="cnn-attention",
    title="CNN with attention",
    summary="a CNN with channel and spatial attention of gradient and iteration",
    build=AttentionCNN,
    parameters=AttentionParameters,
    paper=f"{PAPER}; CBAM: Woo et al. 2018, arXiv 1807.06521",
    linear=False,
)
