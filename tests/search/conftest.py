"""Studies that take milliseconds, on synthetic images, and methods that misbehave on demand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dipa_bench import registry
from dipa_bench.methods import Method, SolverOnly
from dipa_bench.parameters import Parameters
from dipa_bench.preconditioners import Identity
from dipa_bench.search import study_file
from dipa_bench.search.observer import Observer
from dipa_bench.search.runs import Row, Workbench
from dipa_bench.search.study import open_bench, run_row
from dipa_bench.search.study_file import StudyFile
from dipa_bench.testing import small_task
from dipa_bench.tracking.records import RunRecord


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Method]:
    """Registers a method for the length of a test: `register(name, fit, **fields)`."""
    extra: dict[str, SimpleNamespace] = {}
    real = registry._entries
    monkeypatch.setattr(
        registry, "_entries", lambda kind: real(kind) | (extra if kind == "methods" else {})
    )

    def add(
        name: str,
        fit: Callable[..., Any] | None = None,
        parameters: type[Parameters] = SolverOnly,
        **fields: Any,
    ) -> Method:
        def plain(task: Any, values: Any, context: Any) -> Any:
            return context.reconstructor(task, values.solve, Identity())

        method = Method(
            name=name,
            title=name,
            summary="a method of the tests",
            operator="identity",
            rule="none",
            parameters=parameters,
            fit=fit or plain,
            **fields,
        )
        extra[name] = SimpleNamespace(name=name, value="tests:METHOD", load=lambda: method)
        return method

    return add


def resolved(methods: dict[str, Any] | list[str], name: str = "small", **values: Any) -> StudyFile:
    """A study of `sr` with a small budget."""
    rows = methods if isinstance(methods, dict) else {method: {} for method in methods}
    budget = {"trials": 3, "seeds": 2, "epochs": 1, "final_epochs": 1, "batch_size": 3}
    raw = {"task": "sr", "methods": rows, "budget": budget | values.pop("budget", {})}
    return study_file.resolve(raw | values.pop("raw", {}), name=name, **values)


class Ears(Observer):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.records: list[RunRecord] = []

    def ended(self, record: RunRecord) -> None:
        self.records.append(record)


def bench(study: StudyFile, root: Path, **task: Any) -> Workbench:
    """A bench on a synthetic task."""
    return open_bench(study, root, small_task(seed=study.seed, **task))


def search(study: StudyFile, root: Path, row: str, observer: Observer | None = None) -> RunRecord:
    """Runs one row of a study on a synthetic task."""
    place = bench(study, root)
    return run_row(place, Row.of(study, row), observer or Ears())


@pytest.fixture(scope="session")
def lab() -> SimpleNamespace:
    """What the tests of this folder build studies with."""
    return SimpleNamespace(resolved=resolved, bench=bench, search=search, Ears=Ears)
