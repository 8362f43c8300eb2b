"""`fastmri-raw`: complex knee images from the single-coil k-space of fastMRI."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dipa_bench.data.images import DatasetSpec, ImageRequest, ImageSet, Splits
from dipa_bench.data.resizing import square_complex
from dipa_bench.data.sources import data_home, dealt, missing, refuse_color, shuffled
from dipa_bench.errors import UserError, brief

SIDE = 320  # pixels: fastMRI's own crop; beyond it lies the oversampled readout
SLICES = 5  # the central ones of a volume
FOLDERS = ("singlecoil_train", "singlecoil_val")


@dataclass(frozen=True)
class Volume:
    """A file and whom it shows."""

    path: Path
    subject: str


def load(request: ImageRequest) -> Splits:
    """The central slices of each volume, split by patient.

    `singlecoil_train` trains; the patients of `singlecoil_val` are dealt by a hash of their name
    to validation (a third) and test. With one folder alone, the split is 70/10/20% of its patients.

    Raises:
        UserError: no files there, multi-coil or damaged ones, or fewer than three patients.
    """
    refuse_color(request, "the images of fastMRI", "complex")
    place = request.root or data_home() / "fastmri-raw"
    folders = [sorted((place / name).glob("*.h5")) for name in FOLDERS]
    train, later = ([_volume(path) for path in paths] for paths in folders)
    if not (train and later):
        alone = train or later or [_volume(path) for path in sorted(place.glob("*.h5"))]
        if not alone:
            raise missing("fastmri-raw", place, f"{FOLDERS[0]}/*.h5 and {FOLDERS[1]}/*.h5")
        groups = dealt(volume.subject for volume in alone)
        volumes = alone
    else:
        trained = {volume.subject for volume in train}
        people = [who for who in shuffled(volume.subject for volume in later) if who not in trained]
        third = max(1, len(people) // 3)
        groups = (trained, people[:third], people[third:])
        volumes = [*train, *(volume for volume in later if volume.subject not in trained)]
    if not all(groups):
        raise UserError(f"{place} shows too few patients for three splits: add volumes")
    return Splits(*(_part(volumes, set(group), request.size) for group in groups))


def images(path: Path) -> dict[int, np.ndarray]:
    """The central slices of a volume by the centred, orthonormal inverse Fourier transform.

    Args:
        path: an HDF5 file with `kspace`, slices x H x W, complex.

    Returns:
        Slice number to complex image (a central square of at most 320 x 320); the largest magnitude
        of all is 1.

    Raises:
        UserError: not readable, multi-coil, or empty.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            shape = file["kspace"].shape
            first = max(0, (shape[0] - SLICES) // 2)
            kspace = file["kspace"][first : first + SLICES] if len(shape) == 3 else None
    except Exception as error:
        raise UserError(
            f"{path} cannot be read ({brief(error)}): fetch it again or remove it"
        ) from None
    if kspace is None:
        kind = "multi-coil" if len(shape) == 4 else "of another kind"
        raise UserError(f"{path} is {kind} (kspace of shape {shape}): give single-coil volumes")
    axes = (-2, -1)
    inverse = np.fft.ifft2(np.fft.ifftshift(kspace, axes=axes), axes=axes, norm="ortho")
    pictures = _crop(np.fft.fftshift(inverse, axes=axes))
    largest = np.abs(pictures).max(initial=0)
    if not (np.isfinite(largest) and largest > 0):
        raise UserError(f"{path} has an empty or non-finite kspace: remove it")
    return {first + i: picture / largest for i, picture in enumerate(pictures)}


def _crop(pictures: np.ndarray) -> np.ndarray:
    height, width = pictures.shape[-2:]
    side = min(height, width, SIDE)
    top, left = (height - side) // 2, (width - side) // 2
    return pictures[..., top : top + side, left : left + side]


def _volume(path: Path) -> Volume:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            patient = file.attrs.get("patient_id", "")
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({brief(error)}): fetch it again or remove it"
        ) from None
    patient = patient.decode() if isinstance(patient, bytes) else str(patient)
    return Volume(path, patient or path.stem)


def _part(volumes: list[Volume], wanted: set[str], size: int) -> ImageSet:
    pictures, names, subjects = [], [], []
    for volume in volumes:
        if volume.subject not in wanted:
            continue
        for number, picture in images(volume.path).items():
            pictures.append(square_complex(picture, size))
            names.append(f"{volume.path.stem}#{number:02d}")
            subjects.append(volume.subject)
    return ImageSet(torch.from_numpy(np.stack(pictures)), tuple(names), tuple(subjects))


SPEC = DatasetSpec(
    name="fastmri-raw",
    title="fastMRI knees, complex",
    summary="fastmri-raw:PATH, the raw single-coil volumes (HDF5); 5 central slices of each; "
    "singlecoil_train trains, patients of singlecoil_val validate (1/3) and test",
    load=load,
    embedded=False,
)
