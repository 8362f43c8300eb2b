"""Objects that a program hands to a study, under names that a study file can hold.

A name is ``live:`` and a digest of what it stands for; it means something only in the process that
handed the object over, and in others that hand over the same.
"""

from __future__ import annotations

from typing import Any

from dipa_bench.errors import UserError

PREFIX = "live"
_objects: dict[str, Any] = {}


def put(digest: str, found: Any) -> str:
    """Keeps an object for this process; its name."""
    name = name_of(digest)
    _objects[name] = found
    return name


def name_of(digest: str) -> str:
    """The name of what has this digest."""
    return f"{PREFIX}:{digest}"


def is_name(name: str) -> bool:
    """Whether `name` stands for an object of a program."""
    return name.startswith(f"{PREFIX}:")


def get(name: str, what: str) -> Any:
    """The object that a name stands for.

    Args:
        name: as `put` gave it.
        what: what it stands for, e.g. ``"prior"``.

    Raises:
        UserError: this process was not handed the object.
    """
    if name not in _objects:
        raise UserError(
            f"{what} {name!r} was an object of the program that ran the study: run that program "
            "again"
        )
    return _objects[name]
