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
from dipa_bench.config import study_file
from dipa_bench.config.entry import Entry
from dipa_bench.config.problem import build_task
from dipa_bench.config.study_file import StudyFile
from dipa_bench.execution.context import StudyContext
from dipa_bench.execution.study_folder import open_context, run_entry
from dipa_bench.methods import Method, SolverOnly, nothing_published
from dipa_bench.parameters import Parameters
from dipa_bench.preconditioners import Identity
from dipa_bench.search.callbacks import StudyCallback
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

        fields.setdefault("published", nothing_published)
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
    entries = methods if isinstance(methods, dict) else {method: {} for method in methods}
    budget = {"trials": 3, "epochs": 1, "final_epochs": 1, "batch_size": 3}
    raw = {"task": "sr", "methods": entries, "budget": budget | values.pop("budget", {})}
    given = values.pop("raw", {})
    # one trial after the other, and every one whole unless a test says how it is to search
    given["search"] = {"batch": 1} | given.get("search", {"race": False})
    return study_file.resolve(raw | given, name=name, **values)


class Heard(StudyCallback):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.records: list[RunRecord] = []

    def ended(self, record: RunRecord) -> None:
        self.records.append(record)


def context(study: StudyFile, root: Path, **task: Any) -> StudyContext:
    """A bench on a synthetic task."""
    return open_context(study, root, small_task(seed=study.seed, **task))


def search(
    study: StudyFile, root: Path, entry: str, callback: StudyCallback | None = None
) -> RunRecord:
    """Runs one entry of a study on a synthetic task."""
    place = context(study, root)
    return run_entry(place, Entry.of(study, entry), callback or Heard())


def kept(place: Path, entries: dict[str, Any], budget: dict[str, int], **problem: Any) -> Path:
    """The results folder of a study `kept` on twenty pictures, every entry of it finished."""
    images = place / "images"
    images.mkdir()
    generator = np.random.default_rng(0)
    for index in range(20):
        picture = np.kron(generator.random((4, 4)), np.ones((4, 4)))
        path = images / f"{index:02d}.png"
        imsave(path, (255 * picture).astype(np.uint8), check_contrast=False)
    problem |= {"dataset": f"folder:{images}", "size": 16, "iterations": 3, "noise": 0.01}
    study = resolved(entries, name="kept", budget=budget, raw={"problem": problem})
    task = build_task(study.task, study.problem, seed=study.seed)
    context = open_context(study, place / "mlruns", task)
    for entry in entries:
        assert run_entry(context, Entry.of(study, entry), StudyCallback()).state == "finished"
    return place / "mlruns"


@pytest.fixture(scope="session")
def lab() -> SimpleNamespace:
    """What the tests of this folder build studies with."""
    return SimpleNamespace(
        resolved=resolved, context=context, search=search, kept=kept, Heard=Heard
    )
