"""Learned linear operators."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dipa_bench.errors import UserError
from dipa_bench.preconditioners.base import Preconditioner, State


class Dense(Preconditioner):
    """P as an unconstrained matrix that starts as the identity (L-DIPA).

    Args:
        shape: (C, H, W) of the images; others are refused.
        joint: one n x n matrix over all channels, n = C H W; otherwise one H W x H W matrix that
            every channel shares (complex images: real and imaginary part). The same for gray.
    """

    def __init__(self, shape: tuple[int, int, int], joint: bool = False) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.joint = joint
        pixels = shape[1] * shape[2]
        self.matrix = nn.Parameter(torch.eye(shape[0] * pixels if joint else pixels))

    def forward(self, gradient: Tensor, state: State) -> Tensor:
        if tuple(gradient.shape[1:]) != self.shape:
            raise UserError(
                f"this dense P was made for images of shape {self.shape}, not "
                f"{tuple(gradient.shape[1:])}: fit it again at that size"
            )
        rows = gradient.flatten(1 if self.joint else 2)
        return (rows @ self.matrix.T).view_as(gradient)

    def dense(self, shape: tuple[int, int, int], state: State) -> Tensor:
        matrix = self.matrix.detach()
        if self.joint or self.shape[0] == 1:
            return matrix.clone()
        return torch.block_diag(*[matrix] * self.shape[0])
