"""deepinv's U-Net."""

from __future__ import annotations

from typing import Annotated

import deepinv.models
import torch
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
from dipa_bench.preconditioners.networks.embedding import FEATURES
from dipa_bench.preconditioners.spec import OperatorSpec

MAPS = 4


class UNetParameters(NetworkParameters):
    width: Annotated[
        int,
        Field(ge=1, description="features of a pixel; twice as many at each coarser resolution"),
        Search(choices=(8, 16, 24, 40)),
    ] = 8
    depth: Annotated[
        int, Field(ge=2, le=6, description="resolutions, each half as fine"), Search(choices=(2, 3))
    ] = 3


class UNet(Network):
    """deepinv's U-Net (Jin et al. 2017) without normalisation.

    It takes no time, so the embedded iteration is four constant maps (SiLU -> linear) beside the
    gradient. It pads images to multiples of 2^(depth - 1) by itself.
    """

    def __init__(self, shape: Shape, parameters: UNetParameters, copies: int = 1) -> None:
        super().__init__(shape, parameters, copies)
        width = parameters.width
        self.maps = nn.Sequential(nn.SiLU(), nn.Linear(FEATURES, MAPS)) if self.embedding else None
        self.unet = deepinv.models.UNet(
            in_channels=self.channels + (MAPS if self.embedding else 0),
            out_channels=width,
            residual=False,
            batch_norm=False,
            channels_per_scale=[width * 2**level for level in range(parameters.depth)],
            device=None,  # where torch is told to build it
        )
        self.unet.Conv_1x1 = nn.Identity()  # `last` takes its place
        self.last = zeroed(nn.Conv2d(width, self.channels, 1))

    def body(self, scaled: Tensor, embedded: Tensor | None) -> Tensor:
        if self.maps is not None:
            maps = self.maps(embedded)[:, :, None, None]
            scaled = torch.cat([scaled, maps.expand(len(scaled), -1, *scaled.shape[2:])], dim=1)
        return self.last(self.unet(scaled))


SPEC = OperatorSpec(
    name="unet",
    title="U-Net",
    summary="a U-Net of gradient and iteration",
    build=UNet,
    parameters=UNetParameters,
    paper=f"{PAPER}; Jin et al. 2017, arXiv 1611.03679",
    linear=False,
)
