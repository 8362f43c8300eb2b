"""`folder`: any directory of images, split by subfolder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch

from dipa_bench.data.dicom import Header, frames, header
from dipa_bench.data.images import (
    ROUNDING,
    DatasetSpec,
    ImageRequest,
    Splits,
    select,
    square,
    stack,
)
from dipa_bench.data.nifti import axial
from dipa_bench.data.resizing import square_complex
from dipa_bench.data.sources import dealt, refuse_color
from dipa_bench.errors import UserError, brief

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".pgm", ".ppm", ".webp")
ARRAY, DICOM, VOLUMES = ".npy", ".dcm", (".nii", ".nii.gz")
SUFFIXES = (*PICTURES, ARRAY, DICOM, *VOLUMES)
TISSUE = 0.05  # share of a slice of a volume that is not zero


def load(request: ImageRequest) -> Splits:
    """Every image below the request's root; images of one subfolder are one subject.

    Pictures and arrays (`.npy`, also complex ones) are one image each, DICOM files one per frame,
    NIfTI volumes one per axial slice; a DICOM file's subject is its PatientID if it has one.

    Subjects are dealt to train, validation and test (70, 10, 20%) in the order of a hash of their
    name, so that the split does not depend on the order of the file system.

    Raises:
        UserError: no such folder, no images, fewer than three subjects, an unreadable image, or
            complex arrays beside others.
    """
    if request.root is None:
        raise UserError("the dataset 'folder' needs a directory: give folder:PATH")
    place = request.root
    if not place.is_dir():
        raise UserError(f"no image folder {place}: give folder:PATH of a directory")
    paths = sorted(
        path
        for path in place.rglob("*")
        if path.name.lower().endswith(SUFFIXES) and path.is_file() and path.name[0] != "."
    )
    if not paths:
        raise UserError(f"image folder {place} holds no images ({', '.join(sorted(SUFFIXES))})")
    headers = {path: header(path) for path in paths if path.name.lower().endswith(DICOM)}
    owners = {
        path: headers[path].patient
        if path in headers and headers[path].patient
        else _owner(path, place)
        for path in paths
    }
    count = len(set(owners.values()))
    if count < 3:
        raise UserError(
            f"image folder {place} holds {count} subjects (subfolders, DICOM patients, or "
            "single images): three splits need at least 3"
        )

    pictures, names, subjects, kinds = [], [], [], set()
    for path, mark, picture in read_images(paths, headers):
        kinds.add(np.iscomplexobj(picture))
        if len(kinds) > 1:
            raise UserError(f"image folder {place} mixes complex arrays with others: separate them")
        pictures.append(brought_to(path, picture, request))
        names.append(f"{path.relative_to(place)}{mark}")
        subjects.append(owners[path])
    if not pictures:
        raise UserError(f"image folder {place} holds only empty volumes: give others")
    pixels = torch.from_numpy(np.stack(pictures)) if kinds == {True} else stack(pictures)
    parts = dealt(owners.values())
    return Splits(*(select(pixels, names, subjects, set(part)) for part in parts))


def _owner(path: Path, place: Path) -> str:
    relative = path.relative_to(place)
    return relative.parts[0] if len(relative.parts) > 1 else relative.name


def read_images(
    paths: Iterable[Path], headers: dict[Path, Header]
) -> Iterator[tuple[Path, str, np.ndarray]]:
    """Each image with its path, and a mark where one file holds several."""
    series: dict[str, list[Path]] = {}
    for path, found in headers.items():
        series.setdefault(found.series or str(path.parent), []).append(path)
    for group in series.values():
        for path, shots in frames(group).items():
            for number, shot in enumerate(shots):
                yield path, f"#{number:03d}" if len(shots) > 1 else "", shot
    for path in paths:
        if path in headers:
            continue
        if path.name.lower().endswith(VOLUMES):
            yield from _slices(path)
        elif path.name.lower().endswith(ARRAY):
            yield path, "", _array(path)
        else:
            yield path, "", _picture(path)


def _slices(path: Path) -> Iterator[tuple[Path, str, np.ndarray]]:
    """The axial slices of a volume that show something, scaled by the volume's maximum."""
    volume = axial(path)
    if np.iscomplexobj(volume):
        volume = np.abs(volume)
    largest = float(volume.max(initial=0)) or 1.0
    for number, shot in enumerate(volume):
        if (shot != 0).mean() > TISSUE:
            yield path, f"#z{number:03d}", shot / largest


def _picture(path: Path) -> np.ndarray:
    from PIL import Image
    from skimage.io import imread
    from skimage.util import img_as_float64

    try:
        if path.suffix.lower() in (".jpg", ".jpeg"):
            with Image.open(path) as picture:
                if picture.mode in ("CMYK", "YCbCr"):  # four channels, none of them transparency
                    return img_as_float64(np.asarray(picture.convert("RGB")))
        return img_as_float64(imread(path))
    except Exception as error:
        raise _unreadable(path, error) from None


def _array(path: Path) -> np.ndarray:
    """Floating and complex numbers as they are, 8- and 16-bit integers over their largest."""
    try:
        values = np.load(path, allow_pickle=False)
        if values.dtype.kind not in "biufc":
            raise ValueError(f"it holds {values.dtype}, not numbers")
        if values.dtype.kind in "iu" and values.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"it holds {values.dtype}; save uint8, uint16 or floats in [0, 1]")
    except Exception as error:
        raise _unreadable(path, error) from None
    if values.dtype.kind in "iu":
        return values / np.iinfo(values.dtype).max
    return values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"image {path} cannot be read ({brief(error, kind=False)}): mend or remove it")


def brought_to(path: Path, picture: np.ndarray, request: ImageRequest) -> np.ndarray:
    """The square of a picture in the channels requested; complex ones as 2 x size x size."""
    from skimage.color import gray2rgb, rgb2gray, rgba2rgb

    color = request.color
    if not picture.size:
        raise UserError(f"image {path} is empty: remove it")
    if not np.isfinite(picture).all():
        raise UserError(f"image {path} has values that are not finite: mend or remove it")
    if np.iscomplexobj(picture):
        refuse_color(request, "the arrays", "complex")
        if picture.ndim != 2:
            raise UserError(f"image {path} has shape {picture.shape}: give H x W complex arrays")
        if not np.abs(picture).max(initial=0) <= 1 + ROUNDING:
            raise UserError(f"image {path} has magnitudes above 1: rescale it")
        return square_complex(picture, request.size)
    if picture.ndim == 3 and picture.shape[-1] == 1:
        picture = picture[..., 0]
    if picture.ndim == 3 and picture.shape[-1] == 2:  # gray with transparency, on white
        picture = picture[..., 1] * picture[..., 0] + 1 - picture[..., 1]
    if picture.ndim == 3 and picture.shape[-1] == 4:
        picture = rgba2rgb(picture)
    if not color and picture.ndim == 3 and picture.shape[-1] == 3:
        picture = rgb2gray(picture)
    if color and picture.ndim == 2:
        picture = gray2rgb(picture)
    if picture.ndim != (3 if color else 2) or (color and picture.shape[-1] != 3):
        raise UserError(f"image {path} has shape {picture.shape}: give gray or colour pictures")
    if picture.min() < 0 or picture.max() > 1:
        raise UserError(f"image {path} has values outside [0, 1]: rescale it")
    return square(picture, request.size)


SPEC = DatasetSpec(
    name="folder",
    title="Your own images",
    summary="folder:PATH, any directory of pictures, .npy arrays, NIfTI or DICOM files; "
    "a subfolder is a subject; 70/10/20%",
    load=load,
    embedded=False,
)
