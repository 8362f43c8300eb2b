"""Study files: an experiment as data, checked before anything runs."""

from __future__ import annotations

import copy
import logging
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from dipa_bench import digests, names, registry
from dipa_bench.config.overrides import assign, chosen_entries, freeze, parameters_of
from dipa_bench.config.schema import (
    DEFAULT_PRESET,
    PROTOCOLS,
    PUBLISHED,
    RESERVED,
    BudgetSpec,
    MethodSpec,
    Overlay,
    Problem,
    RangeSpec,
    StudyFile,
    check_name,
    validated,
    without_trials,
)
from dipa_bench.errors import UserError, unknown
from dipa_bench.parameters import Value, build, integers
from dipa_bench.tracking.records import method_folder

__all__ = ["BudgetSpec", "MethodSpec", "Problem", "RangeSpec", "StudyFile", "embedded"]
__all__ += ["read", "resolve"]

log = logging.getLogger(__name__)
SHIFT_NAME = re.compile(r"[A-Za-z0-9 .:_-]+")  # what MLflow takes in the name of a metric


def embedded() -> list[str]:
    """Names of the studies that come with the package."""
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in files("studies").iterdir()
        if entry.name.endswith(".toml")
    )


def read(task: str | None, config: str | Path | Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The raw table of a study file.

    Args:
        task: name of a task; its embedded study is used unless `config` names another.
        config: path of a TOML file, name of an embedded study, or a table as of a study file.

    Raises:
        UserError: no such task or file, or not TOML.
    """
    if isinstance(config, Mapping):
        return copy.deepcopy(dict(config))
    config = config if config is None else str(config)
    if config is not None and (config.endswith(".toml") or Path(config).is_file()):
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
    protocol: str | None = None,
    methods: str | None = None,
    trials: int | None = None,
    minutes: float | None = None,
    replicates: int | None = None,
    seed: int | None = None,
    name: str | None = None,
    sets: Sequence[str] = (),
) -> StudyFile:
    """A checked study from a raw table and what the command line says on top of it.

    Later wins: file, preset, protocol, options, ``--set``.

    Raises:
        UserError: an unknown key, name or preset (with the nearest valid one) or a bad value.
    """
    table = _without_trials(raw)
    if task is not None and table.setdefault("task", task) != task:
        raise UserError(f"the study file is for task {table['task']!r}, not {task!r}: drop --task")
    study = validated(table)
    registry.get("tasks", study.task)
    table |= _overlaid(study, table, preset, protocol)
    if None not in (trials, minutes):
        raise UserError("--trials and --minutes: a budget is one of the two")
    if trials is not None:
        table["budget"] |= without_trials({"trials": trials}) | {"minutes": None}
    if minutes is not None:
        table["budget"]["minutes"] = minutes
    if replicates is not None:
        table["budget"]["replicates"] = replicates
    if seed is not None:
        table["seed"] = seed
    overlay = study.presets.get(table["preset"], Overlay())
    _check_frozen(study, overlay)
    table["methods"] = freeze(chosen_entries(study.methods, methods), overlay.set)
    plain = _canonical(validated(table))
    for assignment in sets:
        for one in _each_budget(assignment):
            assign(table, one)
    resolved = _canonical(validated(table))
    _check_reference(resolved, study.methods)
    _check_search(resolved)
    _check_folders(resolved.methods)
    if name is None:
        name = _default_name(plain, resolved, raw, seed)
    check_name("study name", name)
    return resolved.model_copy(update={"presets": {}, "name": name})


def _without_trials(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a study file, its budgets with settings and fits where they have trials."""
    table = copy.deepcopy(dict(raw))
    presets = table.get("presets", {})
    holders = [table, *(presets.values() if isinstance(presets, Mapping) else ())]
    for holder in holders:
        budget = holder.get("budget") if isinstance(holder, Mapping) else None
        if isinstance(budget, dict) and "trials" in budget:
            holder["budget"] = without_trials(budget)
            log.warning(
                "budget.trials = %s is read as that many budget.settings and budget.fits",
                budget["trials"],
            )
    return table


def _each_budget(assignment: str) -> list[str]:
    """An assignment to ``budget.trials`` as those to settings and fits."""
    name, equals, value = assignment.partition("=")
    if name.strip() != "budget.trials":
        return [assignment]
    return [f"budget.{unit}{equals}{value}" for unit in ("settings", "fits")]


def _overlaid(
    study: StudyFile, table: Mapping[str, Any], preset: str | None, protocol: str | None
) -> dict[str, Any]:
    """The tables that a preset and the protocol change."""
    chosen = preset or study.preset
    if chosen not in {DEFAULT_PRESET, *study.presets}:
        raise unknown("preset", chosen, {DEFAULT_PRESET, *study.presets})
    if protocol is not None and protocol not in PROTOCOLS:
        raise unknown("protocol", protocol, PROTOCOLS)
    overlay = study.presets.get(chosen, Overlay())
    protocol = protocol or study.protocol
    problem = {**table.get("problem", {}), **overlay.problem}
    if protocol == "published":
        problem |= PUBLISHED
    budget = {**table.get("budget", {}), **overlay.budget}
    search = {**table.get("search", {}), **overlay.search}
    return {
        "problem": problem,
        "budget": budget,
        "search": search,
        "preset": chosen,
        "protocol": protocol,
    }


def _default_name(plain: StudyFile, resolved: StudyFile, raw: Mapping, seed: int | None) -> str:
    """``sr-quick``, with a suffix for everything that makes it another study."""
    parts = [raw.get("name") or resolved.task, resolved.preset]
    if resolved.protocol == "published":
        parts.append("published")
    if seed is not None and seed != raw.get("seed", 0):
        parts.append(f"seed{seed}")
    changed = resolved.identity() != plain.identity()
    if changed or resolved.methods != {key: plain.methods.get(key) for key in resolved.methods}:
        entries = {key: entry.model_dump(mode="json") for key, entry in resolved.methods.items()}
        parts.append(digests.of(resolved.identity(), entries)[:6])
    return "-".join(parts)


def _check_reference(study: StudyFile, entries: Mapping[str, MethodSpec]) -> None:
    """The reference may be an entry that this run leaves out, but not one that never was."""
    known = {*entries, *study.methods, *registry.names("methods")}
    if study.reference not in known:
        raise unknown("reference", study.reference, known)


def _canonical(study: StudyFile) -> StudyFile:
    """The study with its entries' frozen values as their parameters hold them (1.0 for 1).

    Raises:
        UserError: an entry names no method, or a parameter that does not exist or hold its value.
    """
    if not study.methods:
        raise UserError("the study has no methods: name some under [methods]")
    entries = {
        name: _canonical_entry(name, spec, study.problem.solver)
        for name, spec in study.methods.items()
    }
    _check_points(study)
    return study.model_copy(update={"methods": entries})


def _check_points(study: StudyFile) -> None:
    """Every point to evaluate names parameters that some entry has, with values that one can hold.

    An entry whose own parameters are narrower takes what it can of a point.
    """
    methods = {spec.method or entry for entry, spec in study.methods.items()}
    names = {name: parameters_of(name) for name in methods}
    every = set().union(*names.values())
    for point in study.points_to_evaluate:
        for parameter, value in point.items():
            if every and parameter not in every:
                raise unknown("parameter in points_to_evaluate", parameter, every)
            refused = []
            for name in sorted(methods):
                if parameter not in names[name]:
                    continue
                try:
                    build(registry.get("methods", name).parameters, {parameter: value})
                except UserError as error:
                    refused.append(error)
                else:
                    break
            else:
                if refused:
                    raise refused[0]


def _canonical_entry(entry: str, spec: MethodSpec, solver: str) -> MethodSpec:
    for part in entry.split("/"):
        check_name("method row", part)
    if entry in RESERVED:
        raise UserError(f"method row {entry!r}: that name is taken, give another")
    method = registry.get("methods", spec.method or entry)
    known = parameters_of(method.name)
    for parameter in (*spec.set, *spec.search):
        if parameter not in known:
            raise unknown(f"parameter of {entry}", parameter, known)
        if parameter not in parameters_of(method.name, solver):
            raise UserError(f"parameter {entry}.{parameter} does not exist with solver {solver!r}")
    try:
        built = build(method.parameters, spec.set)
        for parameter, found in spec.search.items():
            _check_range(entry, parameter, found, method.parameters)
    except UserError as error:
        raise UserError(f"method {entry}: {error}") from None
    return spec.model_copy(update={"set": {name: _value(built, name) for name in spec.set}})


def _check_frozen(study: StudyFile, overlay: Overlay) -> None:
    """Raises `UserError` where a preset freezes a parameter that no method has."""
    known: set[str] = set()
    for name, entry in study.methods.items():
        known |= parameters_of(entry.method or name)
    if not known >= set(overlay.set):  # it may be for entries that --methods asks for
        for method in registry.describe("methods"):
            if not isinstance(method, registry.Broken):
                known |= parameters_of(method.name)
    for parameter in overlay.set:
        if parameter not in known:
            raise unknown("parameter in a preset's set", parameter, known)


def _check_folders(entries: Iterable[str]) -> None:
    """Raises `UserError` where the results of two entries would share a folder."""
    seen: dict[Path, str] = {}
    for entry in entries:
        twin = seen.setdefault(method_folder(Path(), entry), entry)
        if twin != entry:
            raise UserError(f"method rows {twin!r} and {entry!r} would share a folder: rename one")


def _check_search(study: StudyFile) -> None:
    """Objectives of which one is PSNR, rungs of equal length, and shifts that change something."""
    for name, shift in study.shifts.items():
        if name == names.MATCHED or not SHIFT_NAME.fullmatch(name):
            raise UserError(f"shift {name!r}: give a name of letters, digits, spaces and .:_-")
        if not shift.model_dump(exclude_defaults=True):
            raise UserError(f"shift {name!r} changes nothing: give options, noise or iterations")
    wanted, budget = study.objectives, study.budget
    if "psnr" not in wanted or len(set(wanted)) != len(wanted):
        raise UserError(f"objectives = {wanted}: give psnr, and others once each")
    if budget.epochs % budget.rungs:
        raise UserError(
            f"budget.epochs = {budget.epochs} is no multiple of budget.rungs = {budget.rungs}: "
            "each rung has as many epochs"
        )


def _value(built: Any, path: str) -> Value:
    for part in path.split("."):
        built = getattr(built, part)
    return built


def _check_range(entry: str, parameter: str, found: RangeSpec, model: type) -> None:
    """The ends and choices of a replaced range are themselves valid values."""
    numeric = found.low is not None or found.high is not None
    if numeric == bool(found.choices) or (numeric and None in (found.low, found.high)):
        raise UserError(f"search range {entry}.{parameter} needs low and high, or choices")
    if numeric and (found.low > found.high or (found.log and found.low <= 0)):
        raise UserError(
            f"search range {entry}.{parameter} = {found.low}..{found.high} is empty"
            + (" or not positive on a logarithmic scale" if found.log else "")
        )
    ends = found.choices or [found.low, found.high]
    if parameter in integers(model):
        ends = [int(end) if isinstance(end, float) and end.is_integer() else end for end in ends]
    for end in ends:
        build(model, {parameter: end})
