"""`dncnn`: deepinv's DnCNN with the weights that DIPA's published runs used."""

from __future__ import annotations

from torch import nn

from dipa_bench.priors import downloads
from dipa_bench.priors.base import SCALE, PriorSpec, Scaled

WEIGHTS = "dncnn_sigma2_gray.pth"


def build() -> nn.Module:
    """The gray DnCNN (20 layers x 64, trained for sigma = 2/255), as s D(v / s).

    Raises:
        UserError: the weights are neither on this machine nor to be downloaded.
    """
    from deepinv.models import DnCNN

    network = DnCNN(in_channels=1, out_channels=1, pretrained=None)
    return Scaled(downloads.load(network, prior="dncnn", model="dncnn", file=WEIGHTS))


SPEC = PriorSpec(
    name="dncnn",
    title="DnCNN (deepinv, sigma = 2/255)",
    summary="20 layers x 64, gray, no noise level: strength s of s D(v/s); weights downloaded",
    strength=SCALE,
    denoiser=build,
    download=WEIGHTS,
)
