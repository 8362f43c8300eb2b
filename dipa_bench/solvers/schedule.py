"""Step and prior strength of each iteration as numbers that can be learned."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Schedule(nn.Module):
    """Factors on a solver's step and strength, one of each for each iteration; at first all are 1.

    They stay positive: their logarithms are what is learned. Beyond the known iterations the last
    factors repeat.

    Args:
        iterations: K >= 1.
    """

    def __init__(self, iterations: int) -> None:
        super().__init__()
        self.steps = nn.Parameter(torch.zeros(iterations))
        self.strengths = nn.Parameter(torch.zeros(iterations))

    def step(self, iteration: int) -> Tensor:
        """Of iteration k, 1 x 1 x 1 x 1."""
        return self._factor(self.steps, iteration)

    def strength(self, iteration: int) -> Tensor:
        """Of iteration k, 1 x 1 x 1 x 1."""
        return self._factor(self.strengths, iteration)

    def _factor(self, logarithms: Tensor, iteration: int) -> Tensor:
        return logarithms[min(iteration, len(logarithms) - 1)].exp().view(1, 1, 1, 1)
