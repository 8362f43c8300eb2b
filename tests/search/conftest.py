"""Studies that take milliseconds, on synthetic images, and methods that misbehave on demand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from skimage.io import imsave

from dipa_bench import registry
from dipa_bench.methods import Method, SolverOnly
from dipa_bench.parameters import Parameters
from dipa_bench.preconditioners import Identity
from dipa_bench.search import study_file
from dipa_bench.search.bench import Workbench
from dipa_bench.search.observer import Observer
from dipa_bench.search.problem import build_task
from dipa_bench.search.row import Row
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
    given = values.pop("raw", {})
    # one trial after the other, and every one whole unless a test says how it is to search
    given["search"] = {"batch": 1} | given.get("search", {"race": False})
    return study_file.resolve(raw | given, name=name, **values)


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


def kept(place: Path, rows: dict[str, Any], budget: dict[str, int], **problem: Any) -> Path:
    """The results folder of a study `kept` on twenty pictures, every row of it finished."""
    images = place / "images"
    images.mkdir()
    generator = np.random.default_rng(0)
    for index in range(20):
        picture = np.kron(generator.random((4, 4)), np.ones((4, 4)))
        path = images / f"{index:02d}.png"
        imsave(path, (255 * picture).astype(np.uint8), check_contrast=False)
    problem |= {"dataset": f"folder:{images}", "size": 16, "iterations": 3, "noise": 0.01}
    study = resolved(rows, name="kept", budget=budget, raw={"problem": problem})
    task = build_task(study.task, study.problem, seed=study.seed)
    bench = open_bench(study, place / "mlruns", task)
    for row in rows:
        assert run_row(bench, Row.of(study, row), Observer()).state == "finished"
    return place / "mlruns"


@pytest.fixture(scope="session")
def lab() -> SimpleNamespace:
    """What the tests of this folder build studies with."""
    return SimpleNamespace(resolved=resolved, bench=bench, search=search, kept=kept, Ears=Ears)
