"""What a study file and `--set` can say, as text: names, defaults, ranges and meanings."""

from __future__ import annotations

from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_json

from dipa_bench import registry
from dipa_bench.config.schema import SHARED, StudyFile
from dipa_bench.parameters import Declared, Key, Search, Value, declared

ASKED = {"strength": "prior", "teacher": "task"}  # who gives a range that the problem has
SIGNS = {Ge: (">=", "ge"), Gt: (">", "gt"), Le: ("<=", "le"), Lt: ("<", "lt")}
WORDS = {bool: "true | false", int: "whole number", float: "number", str: "text"}
PLAIN = ("task", "protocol", "seed", "reference", "preset", "name")  # outside of any table


def study_keys() -> list[Key]:
    """Keys that all entries share: those outside of any table, then the tables'."""
    fields = StudyFile.model_fields
    found = [_shared(name, fields[name]) for name in PLAIN]
    for table, model in SHARED.items():
        found += _table(table, model)
    return found


def method_keys(name: str) -> list[Key]:
    """Parameters of a registered method or an OPERATOR+RULE, RED-FISTA's own included.

    Raises:
        UserError: no such method.
    """
    model = registry.get("methods", name).parameters
    return [_parameter(name, item) for item in declared(model, "red-fista")]


def _table(table: str, model: type[BaseModel]) -> Iterator[Key]:
    for name, field in model.model_fields.items():
        yield _shared(f"{table}.{name}", field)


def _shared(name: str, field: FieldInfo) -> Key:
    default = "" if field.is_required() else literal(field.get_default(call_default_factory=True))
    return Key(name, default, _allowed(field), field.description or "")


def _parameter(method: str, item: Declared) -> Key:
    search = item.search
    default = literal(item.default)
    searched = f"searched {_searched(search)}" if search else _allowed(item.field)
    meaning = item.help
    only = [f"{item.when.name} = {literal(item.when.value)}"] if item.when else []
    only += [search.solver] if search and search.solver else []
    if only:
        meaning += f" (only with {', '.join(only)})"
    return Key(f"{method}.{item.path}", default, searched, meaning)


def literal(value: Any) -> str:
    """A default as TOML; empty for None, which TOML has not."""
    return "" if value is None else to_json(value).decode()


def _searched(search: Search) -> str:
    if search.ask:
        return f"what the {ASKED.get(search.ask, 'problem')} gives"
    if search.choices:
        return _choices(search.choices)
    return f"{search.low:.4g} to {search.high:.4g}" + (", logarithmic" if search.log else "")


def _choices(values: tuple[Value, ...]) -> str:
    return " | ".join("none" if value is None else _word(value) for value in values)


def _word(value: Value) -> str:
    return value if isinstance(value, str) else literal(value)


def _allowed(field: FieldInfo) -> str:
    """Type and bounds of a field."""
    kinds = [kind for kind in _kinds(field.annotation) if kind is not NoneType]
    bounds = [
        f"{sign} {getattr(item, attribute):g}"
        for item in field.metadata
        for kind, (sign, attribute) in SIGNS.items()
        if isinstance(item, kind)
    ]
    texts = [
        _choices(get_args(kind)) if get_origin(kind) is Literal else WORDS.get(kind, "table")
        for kind in kinds
    ]
    return " ".join([" or ".join(dict.fromkeys(texts)), " and ".join(bounds)]).strip()


def _kinds(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
