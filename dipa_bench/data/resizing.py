"""Squares of complex images, and squares that keep the whole picture."""

from __future__ import annotations

import numpy as np

from dipa_bench.data.images import square


def square_complex(picture: np.ndarray, size: int) -> np.ndarray:
    """Central square of a complex picture; both parts are resized with antialiasing.

    Args:
        picture: H x W, complex, of magnitude at most 1.
        size: pixels on a side of the result.

    Returns:
        2 x size x size (real, imaginary), float32; where interpolation overshoots, the magnitude is
        cut to 1 and the phase kept.
    """
    parts = [2.0 * square((part + 1) / 2, size) - 1 for part in (picture.real, picture.imag)]
    pixels = np.stack(parts)
    return (pixels / np.maximum(np.linalg.norm(pixels, axis=0), 1)).astype(np.float32)


def padded(picture: np.ndarray) -> np.ndarray:
    """H x W with zeros added evenly on both sides of the shorter axis, to a square."""
    side = max(picture.shape)
    margins = [((side - length) // 2, (side - length + 1) // 2) for length in picture.shape]
    return np.pad(picture, margins)
