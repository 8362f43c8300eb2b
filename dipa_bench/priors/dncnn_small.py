"""The project's own gray denoiser: a small bias-free network with a known noise level.

It follows FFDNet (Zhang et al., 2018, https://arxiv.org/abs/1710.04026) in working at half
resolution with a noise-level map, and Mohan et al. (2020, https://arxiv.org/abs/1906.05478) in
leaving out every additive constant, so that it scales with its input.  The weights come with the
package; `tests/denoiser/train_dncnn_small.py` made them.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as functional
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

SHRINK = 2
"""Side of the pixel blocks that become channels (pixel unshuffle)."""

WEIGHTS = ("weights", "dncnn_small.safetensors")
"""Where the shipped weights lie inside this package."""


class ContrastConvolution(nn.Conv2d):
    """A bias-free 3 x 3 convolution that sees differences of its image channels only.

    The last input channel is the noise level; over the others each filter's mean is taken off,
    and the border is repeated, so that a constant image gives zero.  Without the large constant
    part, training is better conditioned (and works in bfloat16).

    Args:
        image_channels: Input channels before the noise level.
        features: Output channels.
    """

    def __init__(self, image_channels: int, features: int) -> None:
        super().__init__(image_channels + 1, features, kernel_size=3, bias=False)

    def forward(self, blocks_and_level: Tensor) -> Tensor:
        """Map `B x (image_channels + 1) x H x W` to `B x features x H x W`."""
        image_filters, level_filters = self.weight.split([self.in_channels - 1, 1], dim=1)
        image_filters = image_filters - image_filters.mean(dim=(1, 2, 3), keepdim=True)
        filters = torch.cat([image_filters, level_filters], dim=1)
        bordered = functional.pad(blocks_and_level, (1, 1, 1, 1), mode="replicate")
        return functional.conv2d(bordered, filters)


class DnCNNSmall(nn.Module):
    r"""Bias-free residual denoiser of gray images with a noise-level map.

    The four pixels of each 2 x 2 block become channels, a constant map of sigma joins them, and
    `depth` bias-free 3 x 3 convolutions with ReLU between them estimate the noise, which is
    subtracted.  The first filters see contrast only.  With no bias and no normalisation,

    $$D(a v + c; a \sigma) = a\, D(v; \sigma) + c, \quad a > 0,$$

    so one set of weights serves any intensity range.  It is trained for sigma in [0, 100/255] on
    images in [0, 1].

    The default has 152,640 parameters and costs 76,320 FLOPs a pixel (a multiplication and an
    addition are two; see `flops_per_pixel`); an output pixel sees about 26 x 26 input pixels.

    Args:
        features: Channels between the convolutions, at least 1.
        depth: Number of convolutions, at least 2.

    Raises:
        ValueError: If `features` or `depth` is too small.
    """

    def __init__(self, features: int = 64, depth: int = 6) -> None:
        super().__init__()
        if features < 1 or depth < 2:
            raise ValueError(
                f"got features={features} and depth={depth}: give features >= 1 and depth >= 2"
            )
        self.features = features
        self.depth = depth
        block = SHRINK**2
        self.convolutions = nn.ModuleList([ContrastConvolution(block, features)])
        for after in [*[features] * (depth - 2), block]:
            self.convolutions.append(nn.Conv2d(features, after, 3, padding=1, bias=False))
        for convolution in self.convolutions:
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        with torch.no_grad():  # start near the identity: a small noise estimate
            self.convolutions[-1].weight.mul_(0.1)

    @property
    def flops_per_pixel(self) -> float:
        """Floating-point operations of the convolutions for one pixel of an even-sized image."""
        weights = sum(convolution.weight.numel() for convolution in self.convolutions)
        return 2 * weights / SHRINK**2

    def forward(self, noisy: Tensor, sigma: float | Tensor) -> Tensor:
        """Denoise a batch of gray images.

        Args:
            noisy: `B x 1 x H x W` floating-point images, any H, W >= 1; meant for [0, 1] plus
                noise, not clipped.
            sigma: Standard deviation of the noise in the units of `noisy`, >= 0: a number, a
                tensor of one element, or one element per image (`B`, or `B x 1 x 1 x 1`).

        Returns:
            `B x 1 x H x W` denoised images, differentiable in `noisy` and `sigma`, not clipped.

        Raises:
            ValueError: If `noisy` is not `B x 1 x H x W`, or `sigma` does not fit it.
        """
        if noisy.ndim != 4 or noisy.shape[1] != 1:
            raise ValueError(
                f"noisy has shape {tuple(noisy.shape)}: give gray images as B x 1 x H x W"
                " (denoise the channels of a colour image one by one)"
            )
        height, width = noisy.shape[-2:]
        blocks = functional.pixel_unshuffle(_pad_to_blocks(noisy), SHRINK)
        level = _as_noise_level(sigma, noisy).expand(len(noisy), 1, *blocks.shape[-2:])
        hidden = torch.cat([blocks, level], dim=1)
        # on a CPU convolutions of this layout take three quarters of the time
        hidden = hidden.contiguous(memory_format=torch.channels_last)
        for convolution in self.convolutions[:-1]:
            hidden = functional.relu(convolution(hidden), inplace=True)
        noise = functional.pixel_shuffle(self.convolutions[-1](hidden), SHRINK)
        return noisy - noise[..., :height, :width]

    def extra_repr(self) -> str:
        return f"features={self.features}, depth={self.depth}"


def save_dncnn_small(
    network: DnCNNSmall, path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a network's weights with its architecture, in float32.

    Args:
        network: The network to store.
        path: The safetensors file to write; an existing one is replaced.
        metadata: Further text to keep in the file; `features` and `depth` are always there.
    """
    weights = {
        name: value.detach().to("cpu", torch.float32).contiguous()
        for name, value in network.state_dict().items()
    }
    architecture = {"features": str(network.features), "depth": str(network.depth)}
    save_file(weights, path, metadata={**(metadata or {}), **architecture})


def load_dncnn_small(path: Path | None = None) -> DnCNNSmall:
    """Read a trained network: frozen, in eval mode, float32 on the CPU.

    Args:
        path: A file that `save_dncnn_small` wrote; the shipped weights if None.

    Returns:
        The network; its parameters need no gradient.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file says nothing of its architecture.
    """
    shipped = resources.files(__package__).joinpath(*WEIGHTS)
    with nullcontext(Path(path)) if path is not None else resources.as_file(shipped) as file:
        architecture = read_metadata(file)
        if not {"features", "depth"} <= architecture.keys():
            raise ValueError(f"{file} names no features and depth: write it by save_dncnn_small")
        network = DnCNNSmall(int(architecture["features"]), int(architecture["depth"]))
        network.load_state_dict(load_file(file))
    # Convolutions on a CPU are faster on weights that keep the channels together.
    return network.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the text that a safetensors file carries beside its tensors."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def _pad_to_blocks(images: Tensor) -> Tensor:
    """Repeat the last row and column where a size is not a multiple of the block's side."""
    height, width = images.shape[-2:]
    below, right = -height % SHRINK, -width % SHRINK
    if not (below or right):
        return images
    return functional.pad(images, (0, right, 0, below), mode="replicate")


def _as_noise_level(sigma: float | Tensor, images: Tensor) -> Tensor:
    """Return sigma as `1 x 1 x 1 x 1` or `B x 1 x 1 x 1`, like `images` in type and device."""
    level = torch.as_tensor(sigma, dtype=images.dtype, device=images.device)
    if level.numel() not in (1, len(images)) or level.shape[1:].numel() != 1:
        raise ValueError(
            f"sigma has shape {tuple(level.shape)} for {len(images)} images:"
            " give a number, or one value per image as B x 1 x 1 x 1"
        )
    return level.reshape(-1, 1, 1, 1)
