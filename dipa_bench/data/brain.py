"""`brain`: axial slices of the ICBM152 head that comes inside `nilearn`."""

from __future__ import annotations

import numpy as np

from dipa_bench.data.images import DatasetSpec, ImageRequest, ImageSet, Splits, square, stack
from dipa_bench.data.nifti import axial
from dipa_bench.data.resizing import padded
from dipa_bench.data.sources import packaged, refuse_color

FILE = "datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
TISSUE = 0.2  # share of a slice that is not zero
VALIDATION, TEST = 10, 20  # slices
GAP = 10  # slices of 1 mm left out between two splits
BLOCK = 5  # neighbouring slices that count as one subject


def load(request: ImageRequest) -> Splits:
    """Slabs from the lowest slice to the highest: train, a gap, validation, a gap, test."""
    refuse_color(request, "the brain slices")
    volume = axial(packaged("nilearn", FILE, "nilearn"))
    scale = float(volume.max())
    kept = np.flatnonzero((volume != 0).mean(axis=(1, 2)) > TISSUE)
    test = len(kept) - TEST
    validation = test - GAP - VALIDATION

    def slab(heights: np.ndarray) -> ImageSet:
        blocks = [heights[start : start + BLOCK] for start in range(0, len(heights), BLOCK)]
        subjects = [f"z{block[0]:03d}-{block[-1]:03d}" for block in blocks for _ in block]
        pixels = stack([square(padded(volume[z] / scale), request.size) for z in heights])
        return ImageSet(pixels, tuple(f"z{z:03d}" for z in heights), tuple(subjects))

    return Splits(
        slab(kept[: validation - GAP]),
        slab(kept[validation : validation + VALIDATION]),
        slab(kept[test:]),
    )


SPEC = DatasetSpec(
    name="brain",
    title="ICBM152 head",
    summary="79 axial T1 slices of 1 mm, inside nilearn; 49 train, 10 validate, 20 test, "
    "10 mm left out between; a subject is a block of 5 slices",
    load=load,
    caveat="one averaged head, not subject-independent, no raw k-space",
)
