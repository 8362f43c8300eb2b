"""From run folders to tables: what a store says of them, without one."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

import dipa_bench
from dipa_bench.errors import UserError
from dipa_bench.reports.leaderboard import leaderboard
from dipa_bench.tracking import records
from dipa_bench.tracking.folders import folder_results
from dipa_bench.tracking.load import load_results
from dipa_bench.tracking.results import TaskResults
from dipa_bench.tracking.store import sync


@pytest.fixture
def replicated(root: Path, hand: SimpleNamespace) -> Path:
    """A results folder with a study, a replicate of it, another study and one of another task."""
    replicate = {"study_file": {"replicate": 1}}
    alter(hand.write_study(root, "small-replicate1"), **replicate)
    alter(hand.write_study(root, "other", ("none",)), protocol="published")
    alter(hand.write_study(root, "far"), task="mri")
    return root


def alter(study: Path, **values: object) -> None:
    for path in study.glob(f"*/{records.RECORD}"):
        records.write(path.parent, records.read(path.parent).model_copy(update=values))


def assert_same(ours: TaskResults, theirs: TaskResults) -> None:
    for table in (one.name for one in fields(TaskResults)):
        first, second = getattr(ours, table), getattr(theirs, table)
        if not isinstance(first, pd.DataFrame):
            assert table == "task" or first.keys() == second.keys()
            continue
        if table == "methods":  # a folder has no id in MLflow
            first, second = first.drop(columns="run_id"), second.drop(columns="run_id")
        pd.testing.assert_frame_equal(first, second)


@pytest.mark.exhaustive(after=1)
@pytest.mark.parametrize("chosen", [{}, {"study": "small"}, {"protocol": "published"}], ids=str)
def test_a_folder_says_what_a_store_says(
    replicated: Path, uri: str, hand: SimpleNamespace, chosen: dict[str, str]
) -> None:
    sync(replicated, uri)
    ours = folder_results(replicated, hand.task, **chosen)
    assert_same(ours, load_results(uri, hand.task, **chosen))
    quick = folder_results(replicated, hand.task, **chosen, scores_only=True)
    assert quick.trials.empty
    assert not quick.pictures
    pd.testing.assert_frame_equal(leaderboard(quick), leaderboard(ours))


def test_trials_of_a_search_that_has_not_ended_are_counted(
    root: Path, hand: SimpleNamespace
) -> None:
    alter(root / "studies" / "small", state="running", metrics={})
    methods = folder_results(root, hand.task, scores_only=True).methods.set_index("method")
    assert methods["trials"].to_dict() == {"dipa": hand.states.count("finished"), "none": 0}


def test_what_a_folder_does_not_have_is_asked_of_a_store(root: Path, hand: SimpleNamespace) -> None:
    assert folder_results(root, "mri") is None
    assert folder_results(root / "absent", hand.task) is None
    (root / "studies" / "small" / records.SHARED).touch()
    assert folder_results(root, hand.task) is None


def test_unknown_names_are_told(root: Path, hand: SimpleNamespace) -> None:
    with pytest.raises(UserError, match=r"unknown study 'smal'.*small"):
        folder_results(root, hand.task, study="smal")
    with pytest.raises(UserError, match=r"unknown protocol 'published'.*tuned"):
        folder_results(root, hand.task, protocol="published")


def test_a_damaged_file_costs_its_own_row(
    root: Path, hand: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    hand.write_study(root, "other")
    hand.write_study(root, "third")
    (root / "studies" / "other" / "none" / records.RECORD).write_text("{")
    (root / "studies" / "third" / "dipa" / "images.parquet").write_text("no Parquet")
    board = leaderboard(folder_results(root, hand.task))
    rows = set(zip(board["study"], board["method"], strict=True))
    assert rows == {("small", "dipa"), ("small", "none"), ("other", "dipa"), ("third", "none")}
    first, second = caplog.messages
    assert "other/none" in first
    assert "third/dipa" in second
    assert all(line.startswith("left out: ") for line in caplog.messages)


def test_a_leaderboard_of_own_runs_imports_neither_torch_nor_mlflow(root: Path) -> None:
    program = (
        "import sys, dipa_bench\n"
        "print(len(dipa_bench.leaderboard('sr')))\n"
        "print([name for name in ('torch', 'deepinv', 'mlflow', 'optuna') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root.parent, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["2", "[]"], done.stderr


def test_a_named_store_is_read_in_place_of_the_folder(
    root: Path, uri: str, hand: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync(root, uri)
    hand.write_study(root, "later", ("none",))
    monkeypatch.chdir(root.parent)
    assert set(dipa_bench.leaderboard(hand.task)["study"]) == {"small", "later"}
    assert set(dipa_bench.leaderboard(hand.task, tracking_uri=uri)["study"]) == {"small"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert set(dipa_bench.leaderboard(hand.task)["study"]) == {"small"}
