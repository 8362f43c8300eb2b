"""One picture of a user's, read as the dataset `folder` reads its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dipa_bench.data.dicom import header
from dipa_bench.data.folder import SUFFIXES, brought_to, read_images
from dipa_bench.data.images import SMALLEST, ImageRequest, stack
from dipa_bench.errors import UserError


def read_picture(path: Path, side: int | None, color: bool) -> Tensor:
    """A picture as the dataset `folder` reads it, C x H x W; of several in a file the middle one.

    Args:
        path: a picture, an array, a DICOM file or a NIfTI volume.
        side: pixels on a side of the square that is cropped and resized; None for all of the
            picture, as it is.
        color: whether it is to have three channels.

    Raises:
        UserError: not readable, of an unknown kind, or its values are not those of an image.
    """
    name = path.name.lower()
    if not name.endswith(SUFFIXES):
        raise UserError(f"image {path} is of no kind that is read: {', '.join(sorted(SUFFIXES))}")
    headers = {path: header(path)} if name.endswith(".dcm") else {}
    shots = list(read_images([path], headers))
    if not shots:
        raise UserError(f"image {path} is an empty volume: give another")
    _, mark, picture = shots[len(shots) // 2]
    if len(shots) > 1:
        print(f"{path.name} holds {len(shots)} images: the middle one, {mark}, is taken")
    if side is not None or picture.ndim < 2 or not picture.size:
        found = brought_to(path, picture, ImageRequest(side or SMALLEST, color))
    else:
        found = _whole(path, picture, color)
    if np.iscomplexobj(picture):
        return torch.from_numpy(found)
    return stack([found])[0]


def _whole(path: Path, picture: np.ndarray, color: bool) -> np.ndarray:
    """As the dataset makes them, but neither cropped nor resized: padded to a square meanwhile."""
    height, width = picture.shape[:2]
    if min(height, width) < SMALLEST:
        raise UserError(
            f"image {path} has {height} x {width} pixels: give at least {SMALLEST} on a side, or "
            "another --size"
        )
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    margins = [(top, side - height - top), (left, side - width - left)]
    square = np.pad(picture, margins + [(0, 0)] * (picture.ndim - 2), mode="edge")
    found = brought_to(path, square, ImageRequest(side, color))
    place = (slice(top, top + height), slice(left, left + width))
    return found[(slice(None), *place) if np.iscomplexobj(picture) else place]
