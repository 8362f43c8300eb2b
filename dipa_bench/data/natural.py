"""`natural`: photographs that come inside image and machine-learning packages."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from dipa_bench.data.images import DatasetSpec, ImageRequest, ImageSet, Splits, square, stack
from dipa_bench.data.photographs import HELD_OUT, TRAINING, PackagedImage
from dipa_bench.data.sources import as_requested, packaged
from dipa_bench.errors import UserError

VALIDATION = {"skimage/coffee.png", "sporco/kodim23.png", "foolbox/imagenet_09_455.jpg"}


def load(request: ImageRequest) -> Splits:
    """Four crops of each photograph; those the shipped denoiser never saw validate and test.

    With `color`, gray photographs are left out; so are ones smaller than the wanted size.

    Raises:
        UserError: a package is missing, or the size is larger than the photographs.
    """
    parts = (
        TRAINING,
        [photograph for photograph in HELD_OUT if photograph.name in VALIDATION],
        [photograph for photograph in HELD_OUT if photograph.name not in VALIDATION],
    )
    return Splits(*(_part(photographs, request) for photographs in parts))


def crops(picture: np.ndarray, size: int) -> list[np.ndarray]:
    """The quarters of the central square, or all of it where a quarter is smaller than `size`.

    Args:
        picture: H x W (x 3).
        size: pixels that a side of a crop needs at least.

    Returns:
        Four, one or no squares.
    """
    height, width = picture.shape[:2]
    half = min(height, width) // 2
    if 2 * half < size:
        return []
    top, left = height // 2 - half, width // 2 - half
    side, corners = (half, (0, half)) if half >= size else (2 * half, (0,))
    return [
        picture[top + down : top + down + side, left + right : left + right + side]
        for down in corners
        for right in corners
    ]


def _part(photographs: Iterable[PackagedImage], request: ImageRequest) -> ImageSet:
    pictures, names, subjects = [], [], []
    for photograph in photographs:
        values = _read(photograph)
        if request.color and values.ndim == 2:
            continue
        for number, crop in enumerate(crops(as_requested(values, request), request.size)):
            pictures.append(square(crop, request.size))
            names.append(f"{photograph.name}#{number}")
            subjects.append(photograph.name)
    if not pictures:
        raise UserError(f"the photographs are smaller than {request.size}: lower problem.size")
    return ImageSet(stack(pictures), tuple(names), tuple(subjects))


def _read(photograph: PackagedImage) -> np.ndarray:
    """8-bit H x W or H x W x 3."""
    from skimage.io import imread

    path = packaged(photograph.package, photograph.file, photograph.install)
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return arrays["data"]
    values = imread(path)
    return values if values.ndim == 2 else values[..., :3]


SPEC = DatasetSpec(
    name="natural",
    title="Photographs",
    summary="4 crops of each of 41 photographs and textures, inside foolbox, sporco, scikit-image, "
    "scikit-learn and PyWavelets; 32 train, 3 validate, 6 test; gray or colour",
    load=load,
    caveat="the prior dncnn-small was trained on the training photographs, not on the others",
)
