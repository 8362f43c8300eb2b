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
    matrix: np.ndarray,
    shape: tuple[int, int] | None,
    name: str,
    what: str = "P",
    source: str = "",
) -> list[Picture]:
    """A learned operator as an image, and some of its rows and one of its columns as images.

    Args:
        matrix: n x n, maps a gradient to a direction; row i says how direction pixel i is mixed,
            column j is the response to an impulse in gradient pixel j.
        shape: ``(height, width)`` of the images; n is height * width, or a multiple of it, of
            which the first channel is shown; None leaves out rows and column.
        name: the method, for the alternative texts.
        what: ``"P"`` for a linear operator's matrix, ``"J"`` for a Jacobian.
        source: where a Jacobian was taken, in words.

    Returns:
        The pictures; their captions say at which magnitude the colours end.
    """
    limit = colour_limit(matrix)
    small, block = shrink(matrix)
    lines = [f"{what}, {matrix.shape[0]} x {matrix.shape[1]}", f"colours end at ±{limit:.3g}"]
    if block > 1:
        lines.append(f"each pixel: the largest in magnitude of {block} x {block} entries")
    lines += [source] if source else []
    alt = f"the Jacobian J of {name}" if what == "J" else f"the learned matrix {what} of {name}"
    whole = Picture(diverging(small, limit), alt, tuple(lines))
    return [whole, *_rows(matrix, shape, name, what)]


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


def _rows(matrix: np.ndarray, shape: tuple[int, int] | None, name: str, what: str) -> list[Picture]:
    """Rows as images: of the centre, half way to the corner, and the corner; the centre's column.

    Of several channels, what the first has to do with itself.
    """
    if shape is None or matrix.shape[1] % (shape[0] * shape[1]):
        return []
    height, width = shape
    first = matrix[: height * width, : height * width]
    centre = height // 2, width // 2
    rows = {
        "the central pixel": centre,
        "a pixel half way to the corner": (height // 4, width // 4),
        "the corner pixel": (0, 0),
    }
    shown = [
        (
            f"row of {text}",
            f"row of {what} for {text}, of {name}",
            place,
            first[_flat(place, width)],
        )
        for text, place in rows.items()
    ]
    column = first[:, _flat(centre, width)]
    alt = f"column of {what}, response to an impulse in the central pixel, of {name}"
    shown.append(("response to an impulse", alt, centre, column))
    pictures = []
    for text, alt, place, values in shown:
        limit = colour_limit(values)
        lines = (text, f"at {place}; colours end at ±{limit:.3g}")
        pictures.append(Picture(diverging(values.reshape(shape), limit), alt, lines))
    return pictures


def _flat(place: tuple[int, int], width: int) -> int:
    """The number of a pixel."""
    return place[0] * width + place[1]


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
