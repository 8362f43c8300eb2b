"""`drunet` and `drunet-color`: deepinv's DRUNet, which takes the noise level."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from dipa_bench.priors import downloads
from dipa_bench.priors.base import SIGMA, PriorSpec

GRAY = "drunet_deepinv_gray_finetune_26k.pth"
COLOR = "drunet_deepinv_color_finetune_22k.pth"
WIDTHS = (64, 128, 256, 512)  # channels at each of the four scales, as published


class Padded(nn.Module):
    """D(v; sigma) of a DRUNet on images of any size.

    The sides grow to what the network takes by repeating the last row and column, which up to 63
    pixels is what deepinv does. Larger odd sizes it would cut into four quarters that are narrower
    than the network looks; here they are denoised in one piece. A sigma of any floating-point type
    is taken, and gradients reach it.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, noisy: Tensor, sigma: float | Tensor) -> Tensor:
        """The denoised batch.

        Args:
            noisy: B x C x H x W.
            sigma: noise level in the units of `noisy`: a number, or B x 1 x 1 x 1.
        """
        count, _, height, width = noisy.shape
        level = torch.as_tensor(sigma, dtype=noisy.dtype, device=noisy.device)
        level = level.reshape(-1, 1, 1, 1).expand(count, 1, height, width)
        fits = all(side % 8 == 0 and side > 31 for side in (height, width))
        below, right = (0, 0) if fits else (-height % 16, -width % 16)
        stacked = nn.functional.pad(
            torch.cat((noisy, level), 1), (0, right, 0, below), mode="replicate"
        )
        return self.network.forward_unet(stacked)[..., :height, :width]


def build(channels: int) -> nn.Module:
    """DRUNet for 1 or 3 channels with deepinv's weights.

    Raises:
        UserError: the weights are neither on this machine nor to be downloaded.
    """
    from deepinv.models import DRUNet

    with torch.device("meta"):
        network = DRUNet(channels, channels, nc=WIDTHS, pretrained=None)
    prior, file = ("drunet", GRAY) if channels == 1 else ("drunet-color", COLOR)
    return Padded(downloads.load(network, prior=prior, model="drunet", file=file))


SPEC = PriorSpec(
    name="drunet",
    title="DRUNet (deepinv, gray)",
    summary="U-Net with residual blocks, gray, takes the noise level; weights downloaded",
    strength=SIGMA,
    denoiser=partial(build, 1),
    download=GRAY,
)
COLOR_SPEC = PriorSpec(
    name="drunet-color",
    title="DRUNet (deepinv, colour)",
    summary="U-Net with residual blocks, colour, takes the noise level; weights downloaded",
    strength=SIGMA,
    denoiser=partial(build, 3),
    channels=3,
    download=COLOR,
)
