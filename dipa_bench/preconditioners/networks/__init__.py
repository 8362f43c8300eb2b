"""N-DIPA: networks of gradient and iteration as preconditioners."""

from dipa_bench.preconditioners.networks import (
    attention,
    cnn,
    convnext,
    indiunet,
    mlp,
    multiscale,
    unet,
    vit,
)
from dipa_bench.preconditioners.networks.base import Network, NetworkParameters, zeroed

SPECS = (
    mlp.SPEC,
    cnn.SPEC,
    attention.SPEC,
    unet.SPEC,
    multiscale.SPEC,
    indiunet.SPEC,
    vit.SPEC,
    convnext.SPEC,
)

__all__ = ["SPECS", "Network", "NetworkParameters", "zeroed"]
