"""Learned linear operators with fewer than n^2 numbers, or with a constraint.

All start as the identity. Those that least squares cannot fit approximate a dense solution.
"""

from __future__ import annotations

import torch
from scipy.linalg import hadamard
from torch import Tensor, nn

from dipa_bench.errors import UserError
from dipa_bench.preconditioners.base import Shape
from dipa_bench.preconditioners.linear import LinearOperator, mean_block


class Symmetric(LinearOperator):
    """P = Q Q^T: symmetric and positive semi-definite (DIPA, section 3.3).

    Q is H W x H W and shared by all channels.
    """

    def __init__(self, shape: Shape, copies: int = 1) -> None:
        super().__init__(copies, shape)
        self.factor = nn.Parameter(torch.eye(shape[1] * shape[2]).repeat(copies, 1, 1))

    def act(self, gradient: Tensor, factor: Tensor) -> Tensor:
        return (gradient.flatten(2) @ factor @ factor.T).view_as(gradient)

    def scale(self, factor: float) -> None:
        self.factor.data.mul_(factor**0.5)

    def approximate(self, matrix: Tensor) -> None:
        """The square root of the symmetric part's positive part (nearest in Frobenius norm)."""
        shared = mean_block(matrix, self.shape).double()
        values, vectors = torch.linalg.eigh((shared + shared.T) / 2)
        root = vectors * values.clamp_min(0).sqrt() @ vectors.T
        self.factor.data.copy_(root.expand_as(self.factor))


class LowRank(LinearOperator):
    """P = s I + U V^T with U, V of H W x r, shared by all channels: 2 r H W + 1 numbers.

    Args:
        shape: (C, H, W).
        rank: r; at most H W.
        copies: as in `LinearOperator`.
    """

    def __init__(self, shape: Shape, rank: int, copies: int = 1) -> None:
        super().__init__(copies, shape)
        pixels = shape[1] * shape[2]
        rank = min(rank, pixels)
        generator = torch.Generator().manual_seed(0)
        # U = 0 keeps the identity, V spans random directions: a zero of both has no gradient
        random = torch.randn(pixels, rank, generator=generator, device="cpu") / pixels**0.5
        self.shift = nn.Parameter(torch.ones(copies))
        self.left = nn.Parameter(torch.zeros(copies, pixels, rank))
        self.right = nn.Parameter(random.repeat(copies, 1, 1))

    def act(self, gradient: Tensor, shift: Tensor, left: Tensor, right: Tensor) -> Tensor:
        rows = gradient.flatten(2)
        return (shift * rows + (rows @ right) @ left.T).view_as(gradient)

    def scale(self, factor: float) -> None:
        self.shift.data.mul_(factor)
        self.left.data.mul_(factor)

    def approximate(self, matrix: Tensor) -> None:
        """s is the median eigenvalue of the symmetric part; the rest by singular triples.

        Exact for s I + U V^T with a rank below half the pixels: the others are s.
        """
        shared = mean_block(matrix, self.shape).double()
        shift = torch.linalg.eigvalsh((shared + shared.T) / 2).median()
        rest = shared - shift * torch.eye(len(shared), dtype=shared.dtype, device=shared.device)
        left, right = _leading(rest, self.left.shape[-1])
        self.shift.data.fill_(shift.item())
        self.left.data.copy_(left.expand_as(self.left))
        self.right.data.copy_(right.expand_as(self.right))


class Kronecker(LinearOperator):
    """P G = sum over i of L_i G R_i^T for images G, H x W: P = sum L_i (x) R_i.

    Every channel by itself; terms (H^2 + W^2) numbers.

    Args:
        shape: (C, H, W).
        terms: how many.
        copies: as in `LinearOperator`.
    """

    def __init__(self, shape: Shape, terms: int, copies: int = 1) -> None:
        super().__init__(copies, shape)
        _, height, width = shape
        left, right = torch.zeros(terms, height, height), torch.zeros(terms, width, width)
        left[0], right[0] = torch.eye(height), torch.eye(width)
        generator = torch.Generator().manual_seed(0)
        # a term of two zeros would have no gradient
        random = torch.randn(terms - 1, width, width, generator=generator, device="cpu")
        right[1:] = random / width**0.5
        self.left = nn.Parameter(left.repeat(copies, 1, 1, 1))
        self.right = nn.Parameter(right.repeat(copies, 1, 1, 1))

    def act(self, gradient: Tensor, left: Tensor, right: Tensor) -> Tensor:
        turned = gradient.unsqueeze(2) @ right.mT
        return (left @ turned).sum(2)

    def scale(self, factor: float) -> None:
        self.left.data.mul_(factor)

    def approximate(self, matrix: Tensor) -> None:
        """Van Loan and Pitsianis (1993): the leading singular triples of the rearranged matrix."""
        _, height, width = self.shape
        blocks = mean_block(matrix, self.shape).double().view(height, width, height, width)
        rearranged = blocks.permute(0, 2, 1, 3).reshape(height**2, width**2)
        left, right = _leading(rearranged, self.left.shape[1])
        self.left.data.copy_(left.T.reshape(-1, height, height).expand_as(self.left))
        self.right.data.copy_(right.T.reshape(-1, width, width).expand_as(self.right))


class BlockCirculant(LinearOperator):
    """P that commutes with circular shifts by `block` pixels along either axis.

    Such is every function of A^T A where A decimates by `block` a circular convolution (sr). Each
    of the block^2 phases of the pixel grid has a kernel of the images' size; block = 1 is diagonal
    in the 2-D Fourier basis. Every channel by itself; block^2 H W numbers.

    Args:
        shape: (C, H, W).
        block: a divisor of H and W.
        copies: as in `LinearOperator`.

    Raises:
        UserError: it is no divisor.
    """

    affine = "kernels"

    def __init__(self, shape: Shape, block: int, copies: int = 1) -> None:
        super().__init__(copies, shape)
        _, height, width = shape
        if height % block or width % block:
            raise UserError(
                f"operator.block = {block} does not divide {height} x {width} pixels: give a "
                "divisor"
            )
        self.block = block
        kernel = torch.zeros(block * block, height, width)
        kernel[:, 0, 0] = 1
        self.kernels = nn.Parameter(kernel.repeat(copies, 1, 1, 1))
        self.register_buffer("lags", _lags(height, width, block), persistent=False)

    def act(self, gradient: Tensor, kernels: Tensor) -> Tensor:
        """The phases of the image as channels, and a matrix of filters between them."""
        channels, height, width = gradient.shape[1:]
        step = self.block
        phases = nn.functional.pixel_unshuffle(gradient, step)
        spectra = torch.fft.rfft2(phases.unflatten(1, (channels, step * step)))
        filters = torch.fft.rfft2(kernels.flatten()[self.lags])
        mixed = torch.einsum("qphw,bcphw->bcqhw", filters, spectra)
        turned = torch.fft.irfft2(mixed, s=(height // step, width // step))
        return nn.functional.pixel_shuffle(turned.flatten(1, 2), step)


class HadamardDiagonal(LinearOperator):
    """P = W diag(d) W with the orthonormal 2-D Walsh-Hadamard transform W (natural order).

    Every channel by itself; H W numbers. It is diagonal where single-pixel A^T A is.

    Args:
        shape: (C, H, W), powers of two.
        copies: as in `LinearOperator`.

    Raises:
        UserError: H or W is no power of two.
    """

    affine = "gains"

    def __init__(self, shape: Shape, copies: int = 1) -> None:
        super().__init__(copies, shape)
        _, height, width = shape
        if height & (height - 1) or width & (width - 1):
            raise UserError(f"{height} x {width} pixels: a Hadamard transform needs powers of two")
        self.gains = nn.Parameter(torch.ones(copies, height, width))
        for name, side in (("down", height), ("across", width)):
            signs = torch.from_numpy(hadamard(side)).to(self.gains.dtype)
            self.register_buffer(name, signs, persistent=False)

    def act(self, gradient: Tensor, gains: Tensor) -> Tensor:
        down, across = self.down.to(gains.dtype), self.across.to(gains.dtype)
        size = gains.numel()  # of the squared norm of a row of signs
        return down @ (gains / size * (down @ gradient @ across)) @ across


def _leading(matrix: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The best approximation L R^T of a rank, its singular values shared by both factors.

    Where one is 0 only L is: two zeros would have no gradient.

    Args:
        matrix: n x m.
        count: columns of L and R; those beyond the matrix's are 0 in L and unit vectors in R.
    """
    u, values, vh = torch.linalg.svd(matrix, full_matrices=False)
    short = max(0, count - len(values))
    u, vh = nn.functional.pad(u, (0, short)), nn.functional.pad(vh, (0, 0, 0, short))
    if short:
        vh[-short:, 0] = 1
    values = nn.functional.pad(values, (0, short))[:count]
    root = values.sqrt()
    alive = values > 1e-12 * values[0]
    return u[:, :count] * root * alive, vh[:count].T * torch.where(alive, root, 1.0)


def _lags(height: int, width: int, block: int) -> Tensor:
    """Where the filter from phase p to phase q has its coefficients in the kernels.

    The pixel of phase q at coarse place O and that of phase p at I are block (O - I) + q - p apart.

    Returns:
        Places in the flat block^2 x H x W kernels, block^2 (q) x block^2 (p) x H/block x W/block.
    """

    def along(size: int) -> Tensor:
        phase, coarse = torch.arange(block), torch.arange(size // block)
        return (block * coarse + phase[:, None, None] - phase[:, None]) % size

    rows, columns = along(height), along(width)  # q x p x coarse
    source = torch.arange(block * block).view(1, 1, block, block, 1, 1)
    places = (
        source * height * width
        + rows[:, None, :, None, :, None] * width
        + columns[None, :, None, :, None, :]
    )
    return places.reshape(block**2, block**2, height // block, width // block)
