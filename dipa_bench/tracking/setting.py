"""What numbers of a study hold for, in one line: images, prior, solver, budget, versions."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from dipa_bench import live
from dipa_bench.tracking.location import redacted
from dipa_bench.tracking.records import RunRecord

VERSIONS = ("dipa-bench", "torch", "deepinv")
PROGRAM = "dipa-bench"


def command() -> str:
    """The command line that this process was started with, without secrets; empty in Python."""
    name, *arguments = sys.argv or [""]
    if Path(name).name not in (PROGRAM, "__main__.py"):
        return ""
    return shlex.join([PROGRAM, *map(redacted, arguments)])


def setting_of(record: RunRecord) -> str:
    """The line of a method's record; empty for a record without its study file.

    Says nothing of what differs between replicates.
    """
    study = record.study_file
    if not study:
        return ""
    problem, budget = study.get("problem", {}), study.get("budget", {})
    parts = [
        _images(problem),
        f"prior {_named(problem.get('prior'))}",
        f"{problem.get('solver')}",
        f"K = {problem.get('iterations')}",
        f"noise {_number(problem.get('noise'))}",
    ]
    options = [
        f"{name} {_named(_number(value))}" for name, value in problem.get("options", {}).items()
    ]
    spent = f"preset {record.preset}"
    if record.protocol == "tuned":
        spent = f"{_budget(budget)}, {spent}"
    versions = [
        f"{name} {record.environment[name]}" for name in VERSIONS if record.environment.get(name)
    ]
    lines = [", ".join([*parts, *options]), f"{record.protocol}: {spent}", ", ".join(versions)]
    if told := record.notes.get("command"):
        lines.append(f"`{told}`")
    return "; ".join(line for line in lines if line)


def _images(problem: dict[str, Any]) -> str:
    size, name = problem.get("size"), str(problem.get("dataset") or "user's images")
    if live.is_name(name):
        name = "images of the program"
    colour = " in colour" if problem.get("color") else ""
    return f"{name.partition(':')[0]} {size} x {size}{colour}"


def _named(name: Any) -> str:
    """A name as a stranger reads it."""
    return "of the program" if live.is_name(str(name)) else str(name)


def _budget(budget: dict[str, Any]) -> str:
    if budget.get("minutes") is not None:
        return f"{budget['minutes']:g} minutes a row"
    epochs = f"epochs {budget.get('epochs')} (final {budget.get('final_epochs')})"
    settings, fits = budget.get("settings"), budget.get("fits")
    return f"settings {settings} an operator and fits {fits} a row, {epochs}"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
