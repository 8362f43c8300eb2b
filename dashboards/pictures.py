"""Pictures inside the page: images and learned operators as PNG data URIs."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

_SIDE = 512
"""Largest side, in pixels, of an operator's picture."""

_DIVERGING = ("#2166ac", "#67a9cf", "#d1e5f0", "#f7f7f7", "#fddbc7", "#ef8a62", "#b2182b")
"""ColorBrewer's RdBu, blue below zero; told apart by all common kinds of colour blindness."""


@dataclass(frozen=True)
class Picture:
    """A picture on the page.

    Attributes:
        uri: PNG as a data URI.
        alt: what it shows, in words.
        lines: caption, a text per line.
    """

    uri: str
    alt: str
    lines: tuple[str, ...]


def gray(values: np.ndarray) -> str:
    """An H x W array in [0, 1] as a gray PNG; what lies outside is clipped, NaN is black."""
    scaled = np.clip(np.nan_to_num(values, nan=0.0, posinf=1.0, neginf=0.0), 0, 1)
    return _uri(Image.fromarray(np.rint(scaled * 255).astype(np.uint8)))


def diverging(values: np.ndarray, limit: float) -> str:
    """An H x W array as a PNG from blue (-limit) over white (0) to red (limit), NaN black."""
    scaled = np.clip(np.nan_to_num(values) / limit, -1, 1)
    levels = np.rint((scaled + 1) / 2 * 254).astype(np.uint8)
    levels[~np.isfinite(values)] = 255
    image = Image.fromarray(levels)
    image.putpalette(_palette())
    return _uri(image)


def scale_css() -> str:
    """The diverging scale as a CSS gradient, negative on the left."""
    return f"linear-gradient(to right, {', '.join(_DIVERGING)})"


def operator_pictures(
    matrix: np.ndarray, shape: tuple[int, int] | None, name: str
) -> list[Picture]:
    """A learned operator as an image, and some of its rows as images.

    Args:
        matrix: n x n, maps a gradient to a direction; row i says how direction pixel i is mixed.
        shape: ``(height, width)`` of the images with height * width = n; None leaves out the rows.
        name: the method, for the alternative texts.

    Returns:
        The pictures; their captions say at which magnitude the colours end.
    """
    limit = colour_limit(matrix)
    small, block = shrink(matrix)
    lines = [f"P, {matrix.shape[0]} x {matrix.shape[1]}", f"colours end at ±{limit:.3g}"]
    if block > 1:
        lines.append(f"each pixel: the largest in magnitude of {block} x {block} entries")
    whole = Picture(diverging(small, limit), f"the learned matrix P of {name}", tuple(lines))
    return [whole, *_rows(matrix, shape, name)]


def colour_limit(values: np.ndarray) -> float:
    """The 99th percentile of the magnitudes; the largest if that is 0; 1 if all are 0."""
    finite = np.abs(values[np.isfinite(values)])
    if finite.size == 0:
        return 1.0
    return float(np.quantile(finite, 0.99)) or float(finite.max()) or 1.0


def shrink(matrix: np.ndarray, side: int = _SIDE) -> tuple[np.ndarray, int]:
    """A matrix of at most about `side` rows and columns, and the size of the blocks.

    Each block becomes its entry of largest magnitude, with its sign: a mean would wash out a
    diagonal.
    """
    block = math.ceil(max(matrix.shape) / side)
    if block == 1:
        return matrix, 1
    rows, columns = (math.ceil(n / block) for n in matrix.shape)
    pad = ((0, rows * block - matrix.shape[0]), (0, columns * block - matrix.shape[1]))
    blocks = np.pad(matrix, pad).reshape(rows, block, columns, block).swapaxes(1, 2)
    flat = blocks.reshape(rows, columns, block * block)
    where = np.abs(flat).argmax(axis=2)[..., None]
    return np.take_along_axis(flat, where, axis=2)[..., 0], block


def _rows(matrix: np.ndarray, shape: tuple[int, int] | None, name: str) -> list[Picture]:
    """Rows of the matrix as images: centre, half way to the corner, and the corner."""
    if shape is None or shape[0] * shape[1] != matrix.shape[1]:
        return []
    height, width = shape
    places = {
        "the central pixel": (height // 2, width // 2),
        "a pixel half way to the corner": (height // 4, width // 4),
        "the corner pixel": (0, 0),
    }
    pictures = []
    for text, (row, column) in places.items():
        values = matrix[row * width + column].reshape(shape)
        limit = colour_limit(values)
        lines = (f"row of {text}", f"at ({row}, {column}); colours end at ±{limit:.3g}")
        alt = f"row of P for {text}, of {name}"
        pictures.append(Picture(diverging(values, limit), alt, lines))
    return pictures


def _palette() -> list[int]:
    """255 colours of the diverging scale and black, as r, g, b, r, g, b, ..."""
    anchors = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in _DIVERGING])
    places = np.linspace(0, 1, len(anchors))
    levels = np.linspace(0, 1, 255)
    colours = np.stack([np.interp(levels, places, channel) for channel in anchors.T], axis=1)
    return [*np.rint(colours).astype(int).ravel().tolist(), 0, 0, 0]


def _uri(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
