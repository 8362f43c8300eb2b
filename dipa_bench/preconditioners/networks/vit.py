"""A vision transformer."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torchvision.models.vision_transformer import Encoder

from dipa_bench.errors import UserError
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


class ViTParameters(NetworkParameters):
    width: Annotated[
        int, Field(ge=1, description="features of a patch"), Search(choices=(32, 64, 128))
    ] = 32
    depth: Annotated[int, Field(ge=1, description="layers"), Search(choices=(1, 2, 4))] = 2
    patch: Annotated[
        int,
        Field(ge=1, description="side of a patch in pixels; divides the images' sides"),
        Search(choices=(2, 4, 8)),
    ] = 4
    heads: Annotated[
        int, Field(ge=1, description="of the attention; divide the width"), Search(choices=(2, 4))
    ] = 4


class ViT(Network):
    """Patches -> tokens + embedded iteration -> torchvision's encoder, MLP x 4 -> patches.

    Args:
        shape: (C, H, W); no other, since each place has numbers of its own.
        parameters: of the architecture.
        copies: as in `Network`.

    Raises:
        UserError: the patches do not tile the images, or the heads do not divide the width.
    """

    any_size = False

    def __init__(self, shape: Shape, parameters: ViTParameters, copies: int = 1) -> None:
        super().__init__(shape, parameters, copies)
        channels, height, width = shape
        patch, features, heads = parameters.patch, parameters.width, parameters.heads
        if height % patch or width % patch:
            raise UserError(
                f"patch {patch} does not divide {height} x {width} pixels: give a divisor"
            )
        if features % heads:
            raise UserError(f"{heads} heads do not divide the width {features}: give a divisor")
        self.first = nn.Conv2d(channels, features, patch, stride=patch)
        self.modulate = Modulate(features, self.embedding)
        self.encoder = Encoder(
            seq_length=(height // patch) * (width // patch),
            num_layers=parameters.depth,
            num_heads=heads,
            hidden_dim=features,
            mlp_dim=4 * features,
            dropout=0.0,
            attention_dropout=0.0,
        )
        self.last = zeroed(nn.Linear(features, channels * patch**2))
        self.fold = nn.Fold((height, width), patch, stride=patch)

    def body(self, scaled: Tensor, embedded: Tensor | None) -> Tensor:
        tokens = self.modulate(self.first(scaled), embedded).flatten(2).mT
        return self.fold(self.last(self.encoder(tokens)).mT)


SPEC = OperatorSpec(
    name="vit",
    title="ViT",
    summary="a vision transformer of gradient and iteration",
    build=ViT,
    parameters=ViTParameters,
    paper=f"{PAPER}; Dosovitskiy et al. 2021, arXiv 2010.11929",
    linear=False,
)
