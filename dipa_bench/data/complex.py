"""Real and complex images from each other."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dipa_bench import digests
from dipa_bench.data.images import ImageSet, Splits
from dipa_bench.data.signals import is_complex, magnitude
from dipa_bench.errors import UserError

WAVES = 2  # cycles across the image of the fastest part of a simulated phase
SWING = math.pi / 2  # radians, root mean square of a simulated phase


def real_images(images: Splits, options: Any = None) -> Splits:
    """The magnitude of complex images; others as they are."""
    if not is_complex(images.train.pixels):
        return images
    return images.map(lambda part: magnitude(part.pixels).clamp(0, 1))


def complex_images(images: Splits, phase: str) -> Splits:
    """Complex images as they are, gray ones with a phase.

    Args:
        images: gray or complex.
        phase: of gray ones: ``smooth`` (simulated, another for each image) or ``none``.

    Raises:
        UserError: colour images.
    """
    if is_complex(images.train.pixels):
        return images
    if images.shape[0] != 1:
        raise UserError("complex images are made from gray ones: leave out problem.color")

    def with_phase(part: ImageSet) -> Tensor:
        gray = part.pixels[:, 0]
        if phase == "none":
            return torch.stack((gray, torch.zeros_like(gray)), dim=1)
        angles = torch.stack([smooth_phase(name, tuple(gray.shape[1:])) for name in part.names])
        return torch.stack((gray * angles.cos(), gray * angles.sin()), dim=1)

    return images.map(with_phase)


def smooth_phase(name: str, shape: tuple[int, int]) -> Tensor:
    """A slowly varying random phase, as field inhomogeneity and coils give one, H x W in radians.

    A random sum of cosines of at most `WAVES` cycles across the image in each direction, and a
    random constant.

    Args:
        name: of the image; it alone decides the draw.
        shape: (H, W).
    """
    generator = torch.Generator().manual_seed(digests.seed("phase", name))
    waves = 2 * WAVES + 1  # half cycles
    weights = torch.randn(waves, waves, generator=generator)
    decay = 1 / (1 + torch.arange(waves))
    rows, columns = (
        torch.cos(math.pi * torch.arange(waves)[:, None] * (torch.arange(extent) + 0.5) / extent)
        for extent in shape
    )
    phase = torch.einsum("ab,ah,bw->hw", weights * decay[:, None] * decay, rows, columns)
    phase = phase - phase.mean()
    constant = 2 * math.pi * torch.rand((), generator=generator)
    return phase * (SWING / phase.square().mean().sqrt()) + constant
