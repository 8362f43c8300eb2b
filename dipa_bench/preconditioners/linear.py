"""Learned linear operators: scalar, pointwise, convolution and dense matrix."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dipa_bench.errors import UserError
from dipa_bench.preconditioners.base import Learned, Shape, State


class LinearOperator(Learned):
    """P_k g = act(g, numbers of iteration k): one operator for all iterations, or one for each.

    A subclass registers parameters whose first axis has `copies` entries, starts as the identity
    and says how one entry acts. Iteration k uses entry k, beyond the fitted ones the last.

    Args:
        copies: operators that are held: 1, or the number of iterations.
        shape: (C, H, W) of the images, where the numbers depend on it; others are refused.
    """

    def act(self, gradient: Tensor, *numbers: Tensor) -> Tensor:
        """The direction of one operator.

        Args:
            gradient: B x C x H x W.
            numbers: one entry of every parameter, in the order of their registration.
        """
        raise NotImplementedError

    def scale(self, factor: float) -> None:
        """Turns P into factor P, factor > 0."""
        self.numbers.data.mul_(factor)

    def approximate(self, matrix: Tensor) -> None:
        """Makes every P a member of the family that is near to an n x n matrix.

        Args:
            matrix: n x n, that all channels share (n = H W) or over all (n = C H W).

        Raises:
            UserError: there is no such projection.
        """
        raise UserError(
            f"{type(self).__name__} cannot approximate a matrix: use train.initial=identity or "
            "scaled"
        )

    @property
    def numbers(self) -> nn.Parameter:
        """The parameter in which P is linear, copies x ..."""
        return getattr(self, self.affine)

    def forward(self, gradient: Tensor, state: State) -> Tensor:
        self.check(gradient)
        entry = self.entry(state)
        return self.act(gradient, *(part[entry] for part in self.parameters()))


class Scalar(LinearOperator):
    """P_k = s_k I."""

    affine = "steps"

    def __init__(self, copies: int) -> None:
        super().__init__(copies)
        self.steps = nn.Parameter(torch.ones(copies))

    def act(self, gradient: Tensor, step: Tensor) -> Tensor:
        return step * gradient


class Pointwise(LinearOperator):
    """P_k = diag(p_k), C x H x W factors."""

    affine = "factors"

    def __init__(self, copies: int, shape: Shape) -> None:
        super().__init__(copies, shape)
        self.factors = nn.Parameter(torch.ones(copies, *shape))

    def act(self, gradient: Tensor, factors: Tensor) -> Tensor:
        return factors * gradient


class Convolution(LinearOperator):
    """P_k g = sum over offsets o of kernel_k[o] g(. + o), circular, each channel by itself.

    Args:
        copies: as in `LinearOperator`.
        size: side of the kernels in pixels, odd.
    """

    affine = "kernels"

    def __init__(self, copies: int, size: int) -> None:
        super().__init__(copies)
        self.kernels = nn.Parameter(plain(size).repeat(copies, 1, 1))

    def act(self, gradient: Tensor, kernel: Tensor) -> Tensor:
        margin = len(kernel) // 2
        rows = gradient.flatten(0, 1).unsqueeze(1)
        wrapped = nn.functional.pad(rows, [margin] * 4, mode="circular")
        return nn.functional.conv2d(wrapped, kernel[None, None]).view_as(gradient)


def plain(size: int) -> Tensor:
    """The kernel of the identity, size x size."""
    kernel = torch.zeros(size, size)
    kernel[size // 2, size // 2] = 1
    return kernel


class Dense(LinearOperator):
    """P_k as an unconstrained matrix (L-DIPA, Ehrhardt's full-linear).

    Args:
        shape: (C, H, W) of the images.
        joint: one n x n matrix over all channels, n = C H W; otherwise one H W x H W matrix that
            every channel shares (complex images: real and imaginary part). The same for gray.
        copies: as in `LinearOperator`.
    """

    affine = "matrix"

    def __init__(self, shape: Shape, joint: bool = False, copies: int = 1) -> None:
        super().__init__(copies, shape)
        self.joint = joint
        pixels = shape[1] * shape[2]
        side = shape[0] * pixels if joint else pixels
        self.matrix = nn.Parameter(torch.eye(side).repeat(copies, 1, 1))

    def act(self, gradient: Tensor, matrix: Tensor) -> Tensor:
        rows = gradient.flatten(1 if self.joint else 2)
        return (rows @ matrix.T).view_as(gradient)

    def dense(self, shape: Shape, state: State) -> Tensor:
        matrix = self.matrix.detach()[self.entry(state)]
        return over_channels(matrix, shape[0] * shape[1] * shape[2]).clone()


def over_channels(matrix: Tensor, side: int) -> Tensor:
    """A matrix that channels share as the block-diagonal one of `side` rows; else as it is."""
    blocks = side // len(matrix)
    return torch.block_diag(*[matrix] * blocks) if blocks > 1 else matrix


def mean_block(matrix: Tensor, shape: Shape) -> Tensor:
    """The mean diagonal block, H W x H W, of a matrix over all channels; a shared one as it is."""
    pixels = shape[1] * shape[2]
    count = len(matrix) // pixels
    parts = matrix.view(count, pixels, count, pixels)
    return torch.stack([parts[i, :, i] for i in range(count)]).mean(0)
