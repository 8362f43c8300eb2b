"""How a network is told the iteration."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FEATURES = 256


def sinusoids(iteration: int, like: Tensor) -> Tensor:
    """[sin(k w_j), cos(k w_j)] with w_j = 10000^(-2j/d), j = 0 ... d/2 - 1, d = 256.

    Args:
        iteration: k = 0, 1, ...
        like: gives the dtype and the device.

    Returns:
        1 x 256.
    """
    # in double precision: large k would lose the phase
    places = torch.arange(0, FEATURES, 2, dtype=torch.float64, device=like.device)
    angles = iteration * 10_000.0 ** (-places / FEATURES)
    return torch.cat([angles.sin(), angles.cos()])[None].to(like.dtype)


class Modulate(nn.Module):
    """Adds SiLU -> Linear(256 -> features) of the embedded iteration, the same at every place.

    Args:
        features: of the hidden values, their axis 1.
        embedding: False: it has no numbers and adds nothing.
    """

    def __init__(self, features: int, embedding: bool) -> None:
        super().__init__()
        self.project = (
            nn.Sequential(nn.SiLU(), nn.Linear(FEATURES, features)) if embedding else None
        )

    def forward(self, hidden: Tensor, embedded: Tensor | None) -> Tensor:
        """B x features x ... and 1 x 256 (None without embedding) -> B x features x ..."""
        if self.project is None:
            return hidden
        return hidden + self.project(embedded).view(1, -1, *[1] * (hidden.dim() - 2))
