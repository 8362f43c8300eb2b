"""The residual U-Net of InDI and of diffusion models."""

from __future__ import annotations

from math import gcd
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

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

GROUPS = 4


class IndiUNetParameters(NetworkParameters):
    width: Annotated[
        int,
        Field(ge=1, description="features of a pixel; twice as many at each coarser resolution"),
        Search(choices=(8, 12, 16, 28)),
    ] = 12
    depth: Annotated[
        int, Field(ge=2, le=6, description="resolutions, each half as fine"), Search(choices=(2, 3))
    ] = 2


class IndiUNet(Network):
    """Residual blocks down to the coarsest resolution and up again, concatenated with skips.

    Delbracio and Milanfar 2023 (InDI, arXiv 2303.11435) condition the U-Net of Ho et al. 2020
    (DDPM) on time; here time is the iteration. Means and repetition change the resolution. Images
    are padded with their edges to multiples of 2^(depth - 1), and cropped.
    """

    def __init__(self, shape: Shape, parameters: IndiUNetParameters, copies: int = 1) -> None:
        super().__init__(shape, parameters, copies)
        widths = [parameters.width * 2**level for level in range(parameters.depth)]
        self.multiple = 2 ** (parameters.depth - 1)

        def block(inputs: int, outputs: int) -> Residual:
            return Residual(inputs, outputs, self.embedding)

        finer, coarser = widths[:-1], widths[1:]
        self.first = nn.Conv2d(self.channels, widths[0], 3, padding=1)
        self.encoders = nn.ModuleList(block(size, size) for size in finer)
        self.downs = nn.ModuleList(map(block, finer, coarser))
        self.middle = block(widths[-1], widths[-1])
        self.ups = nn.ModuleList(map(block, coarser, finer))
        self.decoders = nn.ModuleList(block(2 * size, size) for size in finer)
        self.norm = _norm(widths[0])
        self.last = zeroed(nn.Conv2d(widths[0], self.channels, 3, padding=1))

    def body(self, scaled: Tensor, embedded: Tensor | None) -> Tensor:
        height, width = scaled.shape[2:]
        margins = (0, -width % self.multiple, 0, -height % self.multiple)
        hidden = self.first(functional.pad(scaled, margins, mode="replicate"))
        skips = []
        for encode, down in zip(self.encoders, self.downs, strict=True):
            skips.append(encode(hidden, embedded))
            hidden = down(functional.avg_pool2d(skips[-1], 2), embedded)
        hidden = self.middle(hidden, embedded)
        for up, decode in zip(reversed(self.ups), reversed(self.decoders), strict=True):
            hidden = up(functional.interpolate(hidden, scale_factor=2), embedded)
            hidden = decode(torch.cat([hidden, skips.pop()], dim=1), embedded)
        return self.last(functional.silu(self.norm(hidden)))[:, :, :height, :width]


class Residual(nn.Module):
    """h + conv SiLU norm (conv SiLU norm h + embedded iteration), all convolutions 3x3.

    deepinv's `UNetBlock` is not used: it cannot do without an embedding, and its group counts do
    not divide every width.

    Args:
        inputs, outputs: features; where they differ, a 1x1 convolution of h is added.
        embedding: whether it is told the iteration.
    """

    def __init__(self, inputs: int, outputs: int, embedding: bool) -> None:
        super().__init__()
        self.before = nn.Sequential(
            _norm(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1)
        )
        self.modulate = Modulate(outputs, embedding)
        self.after = nn.Sequential(
            _norm(outputs), nn.SiLU(), nn.Conv2d(outputs, outputs, 3, padding=1)
        )
        same = inputs == outputs
        self.skip = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1)

    def forward(self, hidden: Tensor, embedded: Tensor | None) -> Tensor:
        """B x inputs x H x W -> B x outputs x H x W."""
        found = self.modulate(self.before(hidden), embedded)
        return self.skip(hidden) + self.after(found)


def _norm(features: int) -> nn.GroupNorm:
    """Of each image by itself, in as many groups up to four as divide the features."""
    return nn.GroupNorm(gcd(GROUPS, features), features)


SPEC = OperatorSpec(
    name="indiunet",
    title="IndiUNet",
    summary="a residual U-Net of gradient and iteration",
    build=IndiUNet,
    parameters=IndiUNetParameters,
    paper=f"{PAPER}; InDI: Delbracio and Milanfar 2023, arXiv 2303.11435",
    linear=False,
)
