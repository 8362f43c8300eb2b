"""From a dataset's name, as a study file gives it, to its splits."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

from dipa_bench import live, registry
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
    if live.is_name(name):
        return _of_the_program(name), None
    bare, _, path = name.partition(":")
    place = path or root
    spec = registry.get("datasets", bare)
    if path and spec.embedded:
        raise UserError(f"dataset {bare!r} comes with the package: leave out the path {path!r}")
    return spec, Path(place).expanduser() if place else None


def _of_the_program(name: str) -> DatasetSpec:
    """The record of images that a program handed over."""
    return DatasetSpec(
        name=name,
        title="Images of the program",
        summary="handed over as an object",
        load=lambda request: live.get(name, "dataset"),
        caveat="whom each image shows is unknown: each counts as its own subject",
        embedded=False,
    )


def splits(spec: DatasetSpec, request: ImageRequest) -> Splits:
    """What a dataset loads; of those inside packages the last few are kept for the process.

    Raises:
        UserError: its data is missing or does not fit the request.
    """
    found = _load_once(spec, request) if spec.embedded else spec.load(request)
    return replace(found, reads=[])


@functools.lru_cache(maxsize=4)
def _load_once(spec: DatasetSpec, request: ImageRequest) -> Splits:
    return spec.load(request)


def load(name: str, size: int, *, color: bool = False, root: str | None = None) -> Splits:
    """The splits of ``NAME`` or ``NAME:PATH`` at size x size pixels; the rest as in `find`.

    Raises:
        UserError: no such dataset, or its data is missing or does not fit.
    """
    spec, place = find(name, root)
    return splits(spec, ImageRequest(size, color, place))
