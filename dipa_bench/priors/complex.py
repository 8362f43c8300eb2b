"""A prior for real images, used on complex ones."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from dipa_bench.data.signals import COMPLEX
from dipa_bench.errors import UserError
from dipa_bench.priors.base import Prior

Part = Literal["magnitude", "channels", "real"]
PARTS: tuple[Part, ...] = ("magnitude", "channels", "real")
FLOOR = 1e-3  # magnitudes (range 1) below which a phase means nothing


class _OnComplex(nn.Module):
    """D on one part of complex images; see `on_complex`."""

    def __init__(self, prior: Prior, part: Part) -> None:
        super().__init__()
        self.prior = prior
        self.part = part

    def forward(self, noisy: Tensor, strength: float | Tensor) -> Tensor:
        if self.part == "channels":
            return self.prior(noisy, strength)
        if self.part == "real":
            real = self.prior(noisy[:, :1], strength)
            return torch.cat((real, torch.zeros_like(real)), dim=1)
        size = torch.linalg.vector_norm(noisy, dim=1, keepdim=True)
        direction = noisy * (size.square() + FLOOR**2).rsqrt()
        return self.prior(size, strength) * direction


def on_complex(prior: Prior, part: Part = "magnitude") -> Prior:
    """`prior` for images of two channels, real and imaginary part.

    Args:
        prior: of gray images.
        part: ``magnitude``: D(|v|) with the phase of v, which fades out below |v| = `FLOOR` so that
            gradients stay bounded; ``channels``: real and imaginary part each by itself; ``real``:
            the real part, the imaginary one set to 0 (for images known to be real).

    Raises:
        UserError: a colour prior.
    """
    if prior.channels not in (None, 1):
        raise UserError(
            f"prior {prior.name!r} denoises colour images and these are complex: choose a gray one"
        )
    return Prior(
        prior.name,
        prior.strength,
        _OnComplex(prior, part),
        channels=COMPLEX,
        identity=f"{prior.digest()} on {part}",
        differentiable=prior.differentiable,
    )
