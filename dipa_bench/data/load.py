"""From a dataset's name, as a study file gives it, to its splits."""

from __future__ import annotations

from pathlib import Path

from dipa_bench import registry
from dipa_bench.data.images import DatasetSpec, ImageRequest, Splits
from dipa_bench.errors import UserError


def find(name: str, root: str | None = None) -> tuple[DatasetSpec, Path | None]:
    """The record of ``NAME`` or ``NAME:PATH``, and where its data lies.

    Args:
        name: a registered dataset, with a path of its own or without.
        root: where data lies for names without a path.

    Raises:
        UserError: no such dataset, or a path for one that comes with the package.
    """
    bare, _, path = name.partition(":")
    place = path or root
    spec = registry.get("datasets", bare)
    if path and spec.embedded:
        raise UserError(f"dataset {bare!r} comes with the package: leave out the path {path!r}")
    return spec, Path(place).expanduser() if place else None


def load(name: str, size: int, *, color: bool = False, root: str | None = None) -> Splits:
    """The splits of ``NAME`` or ``NAME:PATH`` at size x size pixels; the rest as in `find`.

    Raises:
        UserError: no such dataset, or its data is missing or does not fit.
    """
    spec, place = find(name, root)
    return spec.load(ImageRequest(size, color, place))
