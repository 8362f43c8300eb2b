"""DICOM series."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dipa_bench.errors import UserError, brief


@dataclass(frozen=True)
class Header:
    """What a file says of itself; empty where it does not.

    Attributes:
        patient: PatientID.
        series: SeriesInstanceUID.
    """

    patient: str
    series: str


def header(path: Path) -> Header:
    """Patient and series of a file.

    Raises:
        UserError: not a DICOM file.
    """
    found = _read(path, pixels=False)[0]
    return Header(
        str(found.get("PatientID") or "").strip(), str(found.get("SeriesInstanceUID") or "")
    )


def frames(paths: Sequence[Path]) -> dict[Path, np.ndarray]:
    """The pictures of one series, scaled together to [0, 1] by their smallest and largest value.

    Args:
        paths: the files of the series.

    Returns:
        Of each file frames x H x W, after its rescale slope and intercept; bright is high.

    Raises:
        UserError: unreadable, coloured, or without pixels.
    """
    stacks = {path: _values(path) for path in paths}
    low = min(stack.min() for stack in stacks.values())
    span = max(stack.max() for stack in stacks.values()) - low
    return {path: (stack - low) / (span or 1) for path, stack in stacks.items()}


def _values(path: Path) -> np.ndarray:
    found, pixels = _read(path, pixels=True)
    if int(found.get("SamplesPerPixel", 1)) != 1:
        raise UserError(f"image {path} is a coloured DICOM file: give it as a PNG")
    slope, intercept = found.get("RescaleSlope"), found.get("RescaleIntercept")
    values = pixels * float(1 if slope is None else slope) + float(intercept or 0)
    if found.get("PhotometricInterpretation") == "MONOCHROME1":
        values = -values
    return values.reshape(-1, *values.shape[-2:])


def _read(path: Path, pixels: bool):
    """The data set, and its pixels if wanted."""
    try:
        import pydicom
    except ImportError:
        raise UserError(
            f"image {path} is a DICOM file: `pip install 'dipa-bench[dicom]'` reads them"
        ) from None
    try:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # odd header values
            found = pydicom.dcmread(path, stop_before_pixels=not pixels)
            return found, found.pixel_array.astype(np.float64) if pixels else None
    except Exception as error:
        raise UserError(
            f"image {path} cannot be read ({brief(error)}): mend or remove it"
        ) from None
