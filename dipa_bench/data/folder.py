"""`folder`: any directory of images, split by subfolder."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from dipa_bench.data.images import DatasetSpec, ImageRequest, Splits, select, square, stack
from dipa_bench.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm", ".ppm", ".webp"}


def load(request: ImageRequest) -> Splits:
    """Every image below the request's root; images of one subfolder are one subject.

    Subjects are dealt to train, validation and test (70, 10, 20%) in the order of a hash of their
    name, so that the split does not depend on the order of the file system.

    Raises:
        UserError: no such folder, no images, fewer than three subjects, or an unreadable image.
    """
    if request.root is None:
        raise UserError("the dataset 'folder' needs a directory: give folder:PATH")
    place = request.root
    if not place.is_dir():
        raise UserError(f"no image folder {place}: give folder:PATH of a directory")
    paths = sorted(path for path in place.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise UserError(f"image folder {place} holds no images ({', '.join(sorted(SUFFIXES))})")
    names = [str(path.relative_to(place)) for path in paths]
    subjects = [_subject(path, place) for path in paths]
    ordered = sorted(set(subjects), key=lambda text: hashlib.sha256(text.encode()).hexdigest())
    if len(ordered) < 3:
        raise UserError(
            f"image folder {place} holds {len(ordered)} subjects (subfolders, or single images): "
            "three splits need at least 3"
        )
    pixels = stack([square(_read(path, request.color), request.size) for path in paths])
    test = max(1, round(0.2 * len(ordered)))
    validation = max(1, round(0.1 * len(ordered)))
    parts = (ordered[test + validation :], ordered[test : test + validation], ordered[:test])
    return Splits(*(select(pixels, names, subjects, set(part)) for part in parts))


def _subject(path: Path, place: Path) -> str:
    relative = path.relative_to(place)
    return relative.parts[0] if len(relative.parts) > 1 else relative.name


def _read(path: Path, color: bool) -> np.ndarray:
    from skimage.color import gray2rgb, rgb2gray, rgba2rgb
    from skimage.io import imread
    from skimage.util import img_as_float64

    try:
        picture = img_as_float64(imread(path))
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"image {path} cannot be read ({first}): mend or remove it") from None
    if picture.ndim == 3 and picture.shape[-1] == 2:  # gray with transparency, on white
        picture = picture[..., 1] * picture[..., 0] + 1 - picture[..., 1]
    if picture.ndim == 3 and picture.shape[-1] == 4:
        picture = rgba2rgb(picture)
    if not color and picture.ndim == 3 and picture.shape[-1] == 3:
        picture = rgb2gray(picture)
    if color and picture.ndim == 2:
        picture = gray2rgb(picture)
    if picture.ndim != (3 if color else 2):
        raise UserError(f"image {path} has shape {picture.shape}: give gray or colour pictures")
    if not np.isfinite(picture).all() or picture.min() < 0 or picture.max() > 1:
        raise UserError(f"image {path} has values outside [0, 1]: rescale it")
    return picture


SPEC = DatasetSpec(
    name="folder",
    title="Your own images",
    summary="folder:PATH, any directory of pictures; a subfolder is a subject; 70/10/20%",
    load=load,
    embedded=False,
)
