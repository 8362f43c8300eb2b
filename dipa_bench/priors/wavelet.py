"""`wavelet`: soft thresholding of Haar coefficients, averaged over every shift."""

from __future__ import annotations

import torch
from torch import Tensor

from dipa_bench.priors.base import THRESHOLD, PriorSpec

LEVELS = 2  # best on faces of 16 to 64 pixels at noise levels from 0.02 to 0.2


def _extended(size: int, margin: int, device: torch.device) -> Tensor:
    """Indices of a signal continued by mirrors (edges repeated) by `margin` on either side."""
    index = torch.arange(-margin, size + margin, device=device) % (2 * size)
    return torch.minimum(index, 2 * size - 1 - index)


def _split(image: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Haar coefficients at every position: averages, and details across, down and diagonal."""
    shifted = image.roll(-step, -1)
    low, high = image + shifted, image - shifted
    below, under = low.roll(-step, -2), high.roll(-step, -2)
    return (low + below) / 2, (high + under) / 2, (low - below) / 2, (high - under) / 2


def _merge(average: Tensor, across: Tensor, down: Tensor, diagonal: Tensor, step: int) -> Tensor:
    """The mean of what the four shifts of `_split` give back: its adjoint over 4."""
    low, high = average + down, across + diagonal
    below, under = (average - down).roll(step, -2), (across - diagonal).roll(step, -2)
    low, high = low + below, high + under
    return (low + high + (low - high).roll(step, -1)) / 8


def _shrink(coefficients: Tensor, threshold: float | Tensor) -> Tensor:
    """Soft thresholding: the prox of threshold ||.||_1."""
    return coefficients - torch.minimum(coefficients.abs(), threshold) * coefficients.sign()


def denoise(noisy: Tensor, threshold: float | Tensor, levels: int = LEVELS) -> Tensor:
    """The mean over all shifts of W^T soft(W v; threshold), W the orthonormal Haar transform.

    Averaging over shifts (Coifman and Donoho 1995) removes the blocks that one shift leaves; it is
    computed once, by the transform that drops no coefficient. Images are continued by mirrors, so
    that no edge appears at the border; the averages of the last level stay. As a tight frame's
    transform around a shrinkage the map is the prox of a convex function. deepinv's
    `WaveletDenoiser` is another: it sets what lies outside of the image to zero, and so darkens the
    border of a flat one, has a grid of blocks, and refuses thresholds of B x 1 x 1 x 1.

    Args:
        noisy: B x C x H x W, any size.
        threshold: of the coefficients, whose noise is that of `noisy`: a number, or B x 1 x 1 x 1.
            About 1.5 times the noise level is best on faces.
        levels: how often the averages are split; the coarsest blocks are 2^levels pixels wide.
    """
    threshold = torch.as_tensor(threshold, dtype=noisy.dtype, device=noisy.device)
    height, width = noisy.shape[-2:]
    margin = 2**levels  # coefficients that wrap around stay within the margin
    rows, columns = (_extended(size, margin, noisy.device) for size in (height, width))
    average = noisy.index_select(-2, rows).index_select(-1, columns)
    details = []
    for level in range(levels):
        average, *parts = _split(average, 2**level)
        details.append([_shrink(part, threshold) for part in parts])
    for level in reversed(range(levels)):
        average = _merge(average, *details[level], 2**level)
    return average[..., margin : margin + height, margin : margin + width]


SPEC = PriorSpec(
    name="wavelet",
    title="Haar wavelets, every shift",
    summary=f"soft thresholding of {LEVELS} levels of Haar details, all shifts; no weights",
    strength=THRESHOLD,
    denoiser=lambda: denoise,
    channels=None,
)
