"""From a dataset's name, as a study file gives it, to its splits."""

from __future__ import annotations

from pathlib import Path

from dipa_bench import registry
from dipa_bench.data.images import DatasetSpec, ImageRequest, Splits


def find(name: str, root: str | None = None) -> tuple[DatasetSpec, Path | None]:
    """The record of ``NAME`` or ``NAME:PATH``, and where its data lies.

    Args:
        name: a registered dataset, with a path of its own or without.
        root: where data lies for names without a path.

    Raises:
        UserError: no such dataset.
    """
    bare, _, path = name.partition(":")
    place = path or root
    spec = registry.get("datasets", bare)
    return spec, Path(place).expanduser() if place else None


def load(name: str, size: int, *, color: bool = False, root: str | None = None) -> Splits:
    """The splits of ``NAME`` or ``NAME:PATH`` at size x size pixels; the rest as in `find`.

    Raises:
        UserError: no such dataset, or its data is missing or does not fit.
    """
    spec, place = find(name, root)
    return spec.load(ImageRequest(size, color, place))
