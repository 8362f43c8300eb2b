"""Study files: an experiment as data, checked before anything runs."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dipa_bench import digests, registry
from dipa_bench.errors import UserError, unknown
from dipa_bench.parameters import Value, first_problem

PRESETS = ("quick", "standard", "paper")
RULES = ("tuned", "published")
NAME = re.compile(r"[^\x00-\x1f/\\]{1,120}")


class Strict(BaseModel):
    """No unknown keys, no NaN."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Problem(Strict):
    """What every method of the study shares."""

    dataset: str | None = Field(None, description="a registered dataset or folder:PATH")
    size: Annotated[int, Field(ge=8, le=1024)] = 32
    prior: str = Field("dncnn-small", description="registered, module:function or weights file")
    solver: Literal["pnp-fista", "red-fista"] = "pnp-fista"
    iterations: Annotated[int, Field(ge=1, le=10_000)] = 10
    noise: Annotated[float, Field(ge=0)] = 0.01
    options: dict[str, Value] = Field(default_factory=dict, description="the task's own options")


class BudgetSpec(Strict):
    """What every method may spend; the same for all."""

    trials: Annotated[int, Field(ge=1)] = 8
    seeds: Annotated[int, Field(ge=1)] = 2
    epochs: Annotated[int, Field(ge=1)] = 4
    final_epochs: Annotated[int, Field(ge=1)] = 4
    train_images: Annotated[int | None, Field(ge=1)] = None
    validation_images: Annotated[int | None, Field(ge=1)] = None
    batch_size: Annotated[int, Field(ge=1)] = 16


class RangeSpec(Strict):
    """A search range that replaces the declared one."""

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: list[Value] = Field(default_factory=list)


class MethodSpec(Strict):
    """One row of the study: a method, with parameters frozen or searched elsewhere."""

    method: str = ""
    set: dict[str, Value] = Field(default_factory=dict, description="frozen parameters")
    search: dict[str, RangeSpec] = Field(default_factory=dict, description="other ranges")


class Overlay(Strict):
    """What a preset changes."""

    problem: dict[str, Any] = Field(default_factory=dict)
    budget: dict[str, Any] = Field(default_factory=dict)


class StudyFile(Strict):
    """A whole study, resolved: no preset is left to apply."""

    name: str = ""
    task: str
    rules: Literal["tuned", "published"] = "tuned"
    seed: Annotated[int, Field(ge=0)] = 0
    reference: str = "identity"
    preset: str = "quick"
    problem: Problem = Problem()
    budget: BudgetSpec = BudgetSpec()
    methods: dict[str, MethodSpec]
    presets: dict[str, Overlay] = Field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """What must agree for a study to be continued; trials and seeds may grow, rows be added."""
        values = self.model_dump(mode="json", exclude={"name", "presets", "methods"})
        for growing in ("trials", "seeds"):
            del values["budget"][growing]
        return values


def embedded() -> list[str]:
    """Names of the studies that come with the package."""
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in files("studies").iterdir()
        if entry.name.endswith(".toml")
    )


def read(task: str | None, config: str | None) -> dict[str, Any]:
    """The raw table of a study file.

    Args:
        task: name of a task; its embedded study is used unless `config` names another.
        config: path of a TOML file, or name of an embedded study.

    Raises:
        UserError: no such task or file, or not TOML.
    """
    if config is not None and (config.endswith(".toml") or Path(config).exists()):
        path = Path(config)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"study file {config} cannot be read: {error}") from None
    else:
        name = config or task or ""
        if config is None:
            registry.get("tasks", name)
        if name not in embedded():
            if config is None:
                raise UserError(
                    f"task {name!r} has no embedded study: write one and give it with --config"
                )
            raise unknown("study file", name, embedded())
        path = files("studies") / f"{name}.toml"
        text = path.read_text(encoding="utf-8")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"study file {config or path} is not TOML: {error}") from None


def resolve(
    raw: Mapping[str, Any],
    *,
    task: str | None = None,
    preset: str | None = None,
    rules: str | None = None,
    methods: str | None = None,
    trials: int | None = None,
    seed: int | None = None,
    name: str | None = None,
    sets: Sequence[str] = (),
) -> StudyFile:
    """A checked study from a raw table and what the command line says on top of it.

    Later wins: file, preset, rules, options, ``--set``.

    Raises:
        UserError: an unknown key, name or preset (with the nearest valid one) or a bad value.
    """
    table = {key: value for key, value in raw.items()}
    if task is not None and table.setdefault("task", task) != task:
        raise UserError(f"the study file is for task {table['task']!r}, not {task!r}: drop --task")
    study = _validated(table)
    registry.get("tasks", study.task)
    chosen = preset or study.preset
    if chosen not in PRESETS and chosen not in study.presets:
        raise unknown("preset", chosen, {*PRESETS, *study.presets})
    overlay = study.presets.get(chosen, Overlay())
    if rules is not None and rules not in RULES:
        raise unknown("rules", rules, RULES)
    rules = rules or study.rules
    problem = dict(overlay.problem)
    if rules == "published":
        problem["noise"] = 0.0
    table["problem"] = {**table.get("problem", {}), **problem}
    table["budget"] = {**table.get("budget", {}), **overlay.budget}
    table |= {"preset": chosen, "rules": rules}
    if trials is not None:
        table["budget"]["trials"] = trials
    if seed is not None:
        table["seed"] = seed
    table["methods"] = _chosen(study.methods, methods)
    plain = _validated(table)
    for assignment in sets:
        _assign(table, assignment)
    resolved = _validated(table)
    _check_methods(resolved)
    resolved = resolved.model_copy(update={"presets": {}})
    return resolved.model_copy(update={"name": name or _default_name(plain, resolved, raw, seed)})


def _default_name(plain: StudyFile, resolved: StudyFile, raw: Mapping, seed: int | None) -> str:
    """``sr-quick``, with a suffix for everything that makes it another study."""
    parts = [raw.get("name") or resolved.task, resolved.preset]
    if resolved.rules == "published":
        parts.append("published")
    if seed is not None and seed != raw.get("seed", 0):
        parts.append(f"seed{seed}")
    changed = resolved.identity() != plain.identity()
    if changed or resolved.methods != {key: plain.methods.get(key) for key in resolved.methods}:
        rows = {key: row.model_dump(mode="json") for key, row in resolved.methods.items()}
        parts.append(digests.of(resolved.identity(), rows)[:6])
    return "-".join(parts)


def _validated(table: Mapping[str, Any]) -> StudyFile:
    try:
        study = StudyFile.model_validate(table)
    except ValidationError as error:
        problem = error.errors()[0]
        if problem["type"] == "extra_forbidden":
            *place, key = problem["loc"]
            inside = ".".join(str(part) for part in place)
            raise unknown(
                f"key in {'[' + inside + '] of ' if inside else ''}the study",
                str(key),
                _siblings(place),
            ) from None
        if problem["type"] == "missing":
            raise UserError(f"the study lacks {'.'.join(map(str, problem['loc']))!r}") from None
        raise UserError(first_problem(error)) from None
    if study.name and not NAME.fullmatch(study.name):
        raise UserError(f"study name {study.name!r}: use 1 to 120 characters, no slashes")
    for overlay in study.presets.values():
        for key, model in (("problem", Problem), ("budget", BudgetSpec)):
            for name in getattr(overlay, key):
                if name not in model.model_fields:
                    raise unknown(f"key in a preset's {key}", name, model.model_fields)
    return study


def _siblings(place: Sequence[Any]) -> list[str]:
    """The keys that are valid at `place` in a study file."""
    models = {"problem": Problem, "budget": BudgetSpec, "methods": MethodSpec, "presets": Overlay}
    if not place:
        return list(StudyFile.model_fields)
    if "search" in place:
        return list(RangeSpec.model_fields)
    return list(models[place[0]].model_fields)


def _chosen(rows: Mapping[str, MethodSpec], pattern: str | None) -> dict[str, Any]:
    """The study's rows, or those that ``--methods a,b`` names (``all``: every registered one)."""
    plain = {key: row.model_dump(exclude_defaults=True) for key, row in rows.items()}
    if pattern is None:
        return plain
    wanted = [part.strip() for part in pattern.split(",") if part.strip()]
    if not wanted:
        raise UserError(f"--methods {pattern!r} names no method: give names with commas between")
    chosen: dict[str, Any] = {}
    for name in wanted:
        if name == "all":
            chosen |= {found: plain.get(found, {}) for found in registry.names("methods")}
        elif name in plain:
            chosen[name] = plain[name]
        else:
            matches = registry.names("methods", name)
            if not matches:
                raise unknown("method", name, {*plain, *registry.names("methods")})
            chosen |= {match: plain.get(match, {}) for match in matches}
    return chosen


def _assign(table: dict[str, Any], assignment: str) -> None:
    """Applies one ``key=value``; a key is a study key, or [method.]parameter of some rows."""
    key, equals, text = assignment.partition("=")
    key = key.strip()
    if not equals or not key:
        raise UserError(f"--set {assignment!r} is not key=value")
    value = _parsed(text.strip())
    first, _, rest = key.partition(".")
    if first in ("problem", "budget") and rest:
        place = table.setdefault(first, {})
        *parents, leaf = rest.split(".")
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
        return
    if key in ("rules", "preset", "name", "task"):
        raise UserError(f"--set {key}: use --{key}")
    if key in ("seed", "reference"):
        table[key] = value
        return
    rows = table["methods"]
    wanted, parameter = ([first], rest) if first in rows and rest else (list(rows), key)
    hit = [row for row in wanted if parameter in _parameters(rows[row].get("method") or row)]
    if not hit:
        raise unknown("key in --set", key, _settable(rows))
    for row in hit:
        rows[row] = {**rows[row], "set": {**rows[row].get("set", {}), parameter: value}}


def _parsed(text: str) -> Any:
    """A TOML value, or the text itself where it is none (so quotes are optional)."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _parameters(method: str) -> set[str]:
    from dipa_bench.parameters import declared

    model = registry.get("methods", method).parameters
    return {item.path for item in declared(model, "red-fista")}


def _settable(rows: Mapping[str, Any]) -> list[str]:
    keys = [f"problem.{name}" for name in Problem.model_fields]
    keys += [f"budget.{name}" for name in BudgetSpec.model_fields]
    for row, spec in rows.items():
        names = _parameters(spec.get("method") or row)
        keys += [*names, *(f"{row}.{name}" for name in names)]
    return keys


def _check_methods(study: StudyFile) -> None:
    """Every row names a method, and its parameters exist and hold their values."""
    from dipa_bench.parameters import build

    if not study.methods:
        raise UserError("the study has no methods: name some under [methods]")
    for row, spec in study.methods.items():
        if not NAME.fullmatch(row):
            raise UserError(f"method row {row!r}: use 1 to 120 characters, no slashes")
        method = registry.get("methods", spec.method or row)
        known = _parameters(method.name)
        for parameter in (*spec.set, *spec.search):
            if parameter not in known:
                raise unknown(f"parameter of {row}", parameter, known)
        build(method.parameters, spec.set)
        for parameter, found in spec.search.items():
            _check_range(row, parameter, found, method.parameters)


def _check_range(row: str, parameter: str, found: RangeSpec, model: type) -> None:
    """The ends and choices of a replaced range are themselves valid values."""
    from dipa_bench.parameters import build

    ends = found.choices or [end for end in (found.low, found.high) if end is not None]
    if not found.choices and (found.low is None or found.high is None):
        raise UserError(f"search range {row}.{parameter} needs low and high, or choices")
    if not found.choices and (found.low > found.high or (found.log and found.low <= 0)):
        raise UserError(
            f"search range {row}.{parameter} = {found.low}..{found.high} is empty"
            + (" or not positive on a logarithmic scale" if found.log else "")
        )
    for end in ends:
        build(model, {parameter: end})
