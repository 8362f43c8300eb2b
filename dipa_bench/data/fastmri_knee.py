"""`fastmri-knee`: one magnitude slice of each knee, in the file that deepinv prepares."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np

from dipa_bench.data.images import (
    ROUNDING,
    DatasetSpec,
    ImageRequest,
    ImageSet,
    Splits,
    square,
    stack,
)
from dipa_bench.data.sources import data_home, missing, refuse_color, shares
from dipa_bench.errors import UserError, brief

PUBLISHED = {973: (850, 50)}  # 973 slices: 900 train, the last 50 of them validate, 73 test
LAYOUT = "one *.pt file, saved by save_simple_dataset of deepinv.datasets.FastMRISliceDataset"


def load(request: ImageRequest) -> Splits:
    """Slices in the file's order; each is of another volume, so its own subject.

    Raises:
        UserError: no such file, several, or not magnitudes in [0, 1].
    """
    refuse_color(request, "the knees of fastMRI")
    path = _find(request.root or data_home() / "fastmri-knee")
    volume = _read(path)
    count = len(volume)
    if count < 3:
        raise UserError(f"{path} holds {count} slices: three splits need at least 3")
    train, validation = PUBLISHED.get(count, shares(count)[:2])

    def part(rows: range) -> ImageSet:
        names = tuple(f"slice {row:04d}" for row in rows)
        return ImageSet(stack([square(volume[row], request.size) for row in rows]), names, names)

    borders = (0, train, train + validation, count)
    return Splits(*(part(range(*pair)) for pair in pairwise(borders)))


def _find(place: Path) -> Path:
    paths = [place] if place.is_file() else sorted(place.glob("*.pt"))
    if not paths:
        raise missing("fastmri-knee", place, LAYOUT, "make it from your copy of fastMRI")
    if len(paths) > 1:
        names = ", ".join(path.name for path in paths)
        raise UserError(f"{place} holds several files ({names}): give fastmri-knee:PATH of one")
    return paths[0]


def _read(path: Path) -> np.ndarray:
    """N x H x W float32 magnitudes."""
    from deepinv.datasets import SimpleFastMRISliceDataset

    try:  # deepinv reads with weights_only
        found = SimpleFastMRISliceDataset(path.parent, file_name=path.name, use_dict_output=True)
        slices = found.x.float()
        if slices.ndim == 4 and slices.shape[1] == 2:  # saved with to_complex
            slices = slices.norm(dim=1)
        if slices.ndim != 3:
            raise ValueError(f"shape {tuple(slices.shape)} instead of N x H x W")
    except Exception as error:
        raise UserError(
            f"{path} cannot be read as fastmri-knee ({brief(error)}): give {LAYOUT}"
        ) from None
    if not (slices.min() >= 0 and slices.max() <= 1 + ROUNDING):
        raise UserError(f"{path} has values outside [0, 1]: save it anew, rescaled")
    return slices.numpy()


SPEC = DatasetSpec(
    name="fastmri-knee",
    title="fastMRI knees, magnitudes",
    summary="fastmri-knee:PATH, the .pt file of deepinv's save_simple_dataset, one slice of each "
    "volume; of 973: 850 train, 50 validate, 73 test, otherwise 70/10/20%",
    load=load,
    caveat="k-space is simulated from magnitudes; no phase",
    embedded=False,
)
