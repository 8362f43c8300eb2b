"""Learned linear operators."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dipa_bench.errors import UserError
from dipa_bench.preconditioners.base import Preconditioner, State


class Dense(Preconditioner):
    """P as an unconstrained n x n matrix, n = C H W, that starts as the identity (L-DIPA).

    Args:
        shape: (C, H, W) of the images; others are refused.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.matrix = nn.Parameter(torch.eye(shape[0] * shape[1] * shape[2]))

    def forward(self, gradient: Tensor, state: State) -> Tensor:
        if tuple(gradient.shape[1:]) != self.shape:
            raise UserError(
                f"this dense P was made for images of shape {self.shape}, not "
                f"{tuple(gradient.shape[1:])}: fit it again at that size"
            )
        return (gradient.flatten(1) @ self.matrix.T).view_as(gradient)

    def dense(self, shape: tuple[int, int, int], state: State) -> Tensor:
        return self.matrix.detach().clone()
