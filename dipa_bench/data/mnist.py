"""`mnist`: all of MNIST, from disk or downloaded, as torchvision reads it."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from dipa_bench.data.images import DatasetSpec, ImageRequest, ImageSet, Splits, square, stack
from dipa_bench.data.sources import data_home, download, evenly, missing, refuse_color
from dipa_bench.errors import UserError, brief

if TYPE_CHECKING:
    from torchvision.datasets import MNIST

TRAIN, VALIDATION, TEST = 5000, 200, 500  # at most so many images, spread evenly
VALIDATION_SHARE = 6  # the last sixth of the training part validates
FILES = tuple(
    f"{part}-{what}-ubyte" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")
)


def load(request: ImageRequest) -> Splits:
    """Training and validation images from MNIST's training part, test images from its test part.

    Raises:
        UserError: no files there, or not MNIST's.
    """
    refuse_color(request, "the digits of MNIST")
    place = request.root or data_home()
    if request.root is None and not _complete(place):
        from torchvision.datasets import MNIST

        download("mnist", place, lambda: MNIST(place, download=True))
    if not _complete(place):
        layout = "MNIST/raw/" + ", ".join(FILES) + ", each also as .gz"
        raise missing("mnist", place, layout, "no path to download it")
    try:
        train, test = _read(place)
    except Exception as error:
        raise UserError(
            f"MNIST in {place / 'MNIST' / 'raw'} cannot be read ({brief(error)}): fetch it again"
        ) from None
    border = len(train) - len(train) // VALIDATION_SHARE
    return Splits(
        _part(train, "train", range(border), TRAIN, request.size),
        _part(train, "train", range(border, len(train)), VALIDATION, request.size),
        _part(test, "test", range(len(test)), TEST, request.size),
    )


def _complete(place: Path) -> bool:
    raw = place / "MNIST" / "raw"
    return all((raw / name).is_file() or (raw / f"{name}.gz").is_file() for name in FILES)


def _read(place: Path) -> tuple[MNIST, MNIST]:
    """Both parts; compressed files are unpacked beside, never into the user's folder."""
    from torchvision.datasets import MNIST

    raw = place / "MNIST" / "raw"
    if all((raw / name).is_file() for name in FILES):
        return MNIST(place, train=True), MNIST(place, train=False)
    with TemporaryDirectory() as folder:
        unpacked = Path(folder) / "MNIST" / "raw"
        unpacked.mkdir(parents=True)
        for name in FILES:
            plain = raw / name
            opened = open(plain, "rb") if plain.is_file() else gzip.open(raw / f"{name}.gz")
            with opened as source, open(unpacked / name, "wb") as target:
                shutil.copyfileobj(source, target)
        return MNIST(folder, train=True), MNIST(folder, train=False)


def _part(dataset: MNIST, name: str, rows: range, cap: int, size: int) -> ImageSet:
    chosen = [rows[i] for i in evenly(len(rows), cap)]
    names = tuple(f"{name}/{row:05d}" for row in chosen)
    if not chosen:
        raise UserError(f"the {name} part of MNIST holds too few images: fetch it again")
    pictures = [square(dataset.data[row].numpy() / 255.0, size) for row in chosen]
    return ImageSet(stack(pictures), names, names)


SPEC = DatasetSpec(
    name="mnist",
    title="MNIST",
    summary=f"mnist or mnist:PATH, 70 000 gray 28 x 28 digits; {TRAIN} train and {VALIDATION} "
    f"validate of its training part, {TEST} test of its test part",
    load=load,
    caveat="who wrote which digit is unknown: each image counts as its own subject",
    embedded=False,
)
