"""What the command line says on top of a study file: ``--methods`` and ``--set``."""

from __future__ import annotations

import fnmatch
import logging
import tomllib
from collections.abc import Mapping
from typing import Any

from dipa_bench import registry
from dipa_bench.config.schema import SHARED, MethodSpec
from dipa_bench.errors import UserError, unknown
from dipa_bench.parameters import Value, declared

log = logging.getLogger(__name__)
OPTIONS = {"protocol", "preset", "name", "task"}  # have options of their own


def chosen_entries(entries: Mapping[str, MethodSpec], pattern: str | None) -> dict[str, Any]:
    """The study's entries, or those that ``--methods a,b`` names, as raw tables.

    A part is an entry's or a registered method's name, an OPERATOR+RULE, a shell pattern on these,
    or ``all`` (of the entries and the registered methods).

    Raises:
        UserError: a part that names nothing.
    """
    plain = {key: entry.model_dump(exclude_defaults=True) for key, entry in entries.items()}
    if pattern is None:
        return plain
    wanted = [part.strip() for part in pattern.split(",") if part.strip()]
    if not wanted:
        raise UserError(f"--methods {pattern!r} names no method: give names with commas between")
    chosen: dict[str, Any] = {}
    for part in wanted:
        chosen |= {name: plain.get(name, {}) for name in _matching(part, plain)}
    return chosen


def _matching(part: str, entries: Mapping[str, Any]) -> list[str]:
    registered = registry.names("methods")
    if part in entries or part in registered:
        return [part]
    if registry.JOINT in part and not set("*?[") & set(part):
        registry.get("methods", part)  # or a word about the operator, the rule or the pair
        return [part]
    shell = "*" if part == "all" else part
    own = [name for name in entries if fnmatch.fnmatchcase(name, shell)]
    others = [name for name in registry.names("methods", shell) if name not in entries]
    if not own and not others:
        raise unknown("method", part, {*entries, *registered}, "dipa-bench list methods")
    return own + [name for name in others if _loads(name)]


def _loads(name: str) -> bool:
    """Whether a method that nobody named loads; a broken plug-in is told of and left out."""
    try:
        registry.get("methods", name)
    except UserError as error:
        log.warning("left out: %s", error)
        return False
    return True


def assign(table: dict[str, Any], assignment: str) -> None:
    """Applies one ``key=value`` to a raw study with all its entries.

    A key is ``problem.<key>``, ``budget.<key>``, ``search.<key>``, ``seed``, ``reference``, or
    ``[<entry>.]<parameter>``; without an entry the parameter is frozen in every entry that has it.

    Raises:
        UserError: no ``=``, or an unknown key (with the nearest valid one).
    """
    key, equals, text = assignment.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError(f"--set {assignment!r} is not key=value")
    value = _parsed(text.strip())
    first, _, rest = key.partition(".")
    if key in OPTIONS:
        raise UserError(f"--set {key}: use --{key}")
    if key in ("seed", "reference"):
        table[key] = value
    elif first in SHARED and rest:
        _assign_shared(table, key, value)
    else:
        _assign_entries(table["methods"], key, value)


def _assign_shared(table: dict[str, Any], key: str, value: Any) -> None:
    place = table
    *parents, leaf = key.split(".")
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise _unknown(key, table["methods"])
    place[leaf] = value


def _assign_entries(entries: dict[str, Any], key: str, value: Any) -> None:
    owners = [entry for entry in entries if key.startswith(f"{entry}.")]
    wanted, parameter = list(entries), key
    if owners:
        wanted, parameter = [owners[0]], key.removeprefix(f"{owners[0]}.")
    hit = [
        entry
        for entry in wanted
        if parameter in parameters_of(entries[entry].get("method") or entry)
    ]
    if not hit:
        raise _unknown(key, entries)
    for entry in hit:
        entries[entry] = {
            **entries[entry],
            "set": {**entries[entry].get("set", {}), parameter: value},
        }


def freeze(entries: Mapping[str, Any], values: Mapping[str, Value]) -> dict[str, Any]:
    """Raw entries with parameters frozen in those that have them and do not say more themselves."""
    found = {}
    for name, entry in entries.items():
        known = parameters_of(entry.get("method") or name)
        taken = known - set(entry.get("search", {}))
        frozen = {key: value for key, value in values.items() if key in taken}
        found[name] = {**entry, "set": frozen | entry.get("set", {})} if frozen else entry
    return found


def _parsed(text: str) -> Any:
    """A TOML value, or the text itself where it is none (so quotes are optional)."""
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return found["value"] if len(found) == 1 else text


def parameters_of(method: str, solver: str = "red-fista") -> set[str]:
    """Names of a registered method's parameters; RED-FISTA has all that any solver has."""
    model = registry.get("methods", method).parameters
    return {item.path for item in declared(model, solver)}


def _unknown(key: str, entries: Mapping[str, Any]) -> UserError:
    """About a key that nothing has: the nearest, and where all of them are listed."""
    owner = next((entry for entry in entries if key.startswith(f"{entry}.")), None)
    method = f" {entries[owner].get('method') or owner}" if owner else ""
    return unknown("key in --set", key, _settable(entries), f"dipa-bench list parameters{method}")


def _settable(entries: Mapping[str, Any]) -> list[str]:
    keys = ["seed", "reference"]
    keys += [f"{table}.{name}" for table, model in SHARED.items() for name in model.model_fields]
    for entry, spec in entries.items():
        names = parameters_of(spec.get("method") or entry)
        keys += [*names, *(f"{entry}.{name}" for name in names)]
    return keys
