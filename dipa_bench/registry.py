"""One registry over entry points: tasks, methods and their operators and rules, priors, datasets.

A package adds to it in its own ``pyproject.toml``::

    [project.entry-points."dipa_bench.methods"]
    my-method = "my_package.my_module:METHOD"

Every entry resolves to a frozen record with ``name``, ``title`` and ``summary``; the entry point's
name and the record's must agree. An operator and a rule that are registered make the method
OPERATOR+RULE, e.g. ``dense+greedy``, which needs no entry of its own.
"""

from __future__ import annotations

import fnmatch
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from dipa_bench import live
from dipa_bench.errors import UserError, brief, unknown

KINDS = ("tasks", "methods", "operators", "rules", "priors", "datasets")
JOINT = "+"  # a method OPERATOR+RULE is made of the two


@dataclass(frozen=True)
class Broken:
    """An entry whose package could not be loaded; listed with the reason, never run."""

    name: str
    summary: str
    title: str = "(cannot be loaded)"


@cache
def _entries(kind: str) -> dict[str, EntryPoint]:
    if kind not in KINDS:
        raise unknown("kind of registered thing", kind, KINDS)
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=f"dipa_bench.{kind}"):
        twin = found.get(entry.name)
        if twin is not None and twin.value != entry.value:
            raise UserError(
                f"two packages register the {kind[:-1]} {entry.name!r} ({twin.value} and "
                f"{entry.value}): rename or uninstall one of them"
            )
        found[entry.name] = entry
    return found


def sources(kind: str) -> list[str]:
    """Where everything registered as `kind` comes from: ``name module:attribute version``."""
    found = []
    for name, entry in _entries(kind).items():
        distribution = getattr(entry, "dist", None)
        found.append(f"{name} {entry.value} {getattr(distribution, 'version', '')}")
    return sorted(found)


def names(kind: str, pattern: str = "*") -> list[str]:
    """Names of everything registered as `kind` that match a shell pattern such as ``ndipa/*``.

    A pattern of methods with a ``+``, or that matches nothing else, is matched with all pairs of
    operator and rule that fit.
    """
    found = [name for name in _entries(kind) if fnmatch.fnmatchcase(name, pattern)]
    if kind == "methods" and (JOINT in pattern or not found):
        found += [name for name in _cells() if fnmatch.fnmatchcase(name, pattern)]
    return sorted(found)


def get(kind: str, name: str) -> Any:
    """The record registered under `name`.

    Raises:
        UserError: no such name (the message has the nearest one), or its package does not load.
    """
    if live.is_name(name):
        return live.get(name, kind[:-1])
    entry = _entries(kind).get(name)
    if entry is None and kind == "methods" and JOINT in name:
        operator, rule = name.split(JOINT, 1)
        return get("rules", rule).method(get("operators", operator))
    if entry is None:
        raise unknown(kind[:-1], name, _entries(kind), f"dipa-bench list {kind}")
    try:
        record = entry.load()
    except (Exception, SystemExit) as error:  # a stranger's package may fail in any way
        raise UserError(
            f"the {kind[:-1]} {name!r} from {entry.value} cannot be loaded "
            f"({brief(error)}): mend or uninstall its package"
        ) from error
    if getattr(record, "name", None) != name:
        raise UserError(
            f"entry point {name!r} ({entry.value}) holds a record named "
            f"{getattr(record, 'name', None)!r}: the two names must agree"
        )
    return record


@cache
def _cells() -> tuple[str, ...]:
    """Names of all methods OPERATOR+RULE; a broken operator or rule has none."""
    operators, rules = (
        [record for record in describe(kind) if not isinstance(record, Broken)]
        for kind in ("operators", "rules")
    )
    found = []
    for operator in operators:
        with suppress(Exception):  # a stranger's operator may fail in any way
            fitting = [rule.name for rule in rules if rule.refuses(operator) is None]
            found += [f"{operator.name}{JOINT}{rule}" for rule in fitting]
    return tuple(found)


def describe(kind: str, pattern: str = "*") -> list[Any]:
    """Every record of `kind` that matches `pattern`; broken ones as `Broken` with the reason."""
    records = []
    for name in names(kind, pattern):
        try:
            records.append(get(kind, name))
        except UserError as error:
            records.append(Broken(name, str(error)))
    return records
