"""The Python interface: from a fresh interpreter, from a notebook, and as the README has it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import small_study
from nbclient import NotebookClient

import dipa_bench
from dipa_bench.preconditioners import Identity

README = Path(__file__).parents[1] / "README.md"
NOTEBOOK = README.parent / "docs" / "own_problem.ipynb"
SETTINGS = {
    "problem.prior": "den:smooth",
    "problem.size": 16,
    "problem.iterations": 3,
    "budget.train_images": 8,
    "budget.epochs": 1,
    "budget.final_epochs": 1,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """A working folder with pictures, a prior and an empty store."""
    folder = tmp_path_factory.mktemp("api")
    small_study.pictures(folder / "images")
    return small_study.furnished(folder, empty_database)


@pytest.fixture
def there(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(place)
    monkeypatch.delitem(sys.modules, "den", raising=False)
    return place


class Boards(dipa_bench.StudyCallback):
    """Keeps the leaderboards that a study gives on its way."""

    def __init__(self) -> None:
        self.kept: list[tuple[int, pd.DataFrame]] = []

    def replicate(self, number: int, board: pd.DataFrame) -> None:
        self.kept.append((number, board))


@pytest.fixture(scope="module")
def boards() -> Boards:
    return Boards()


@pytest.fixture(scope="module")
def finished(place: Path, boards: Boards) -> dipa_bench.Results:
    """A study of two rows, run once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.chdir(place)
        patch.delitem(sys.modules, "den", raising=False)
        return run("one", callback=boards)


def run(name: str, **options: object) -> dipa_bench.Results:
    given = {"methods": ["identity", "ldipa"], "trials": 2} | options
    return dipa_bench.run_study(
        task="sr", dataset="folder:images", device="cpu", name=name, set=SETTINGS, **given
    )


def fresh(code: str, folder: Path) -> str:
    """What a program prints in an interpreter of its own."""
    environment = {name: value for name, value in os.environ.items() if name[:6] != "MLFLOW"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_board_of_the_first_replicate_comes_before_the_second(
    finished: dipa_bench.Results, boards: Boards
) -> None:
    ((number, board),) = boards.kept
    assert number == 1 and set(board["replicates"]) == {1}
    assert set(board["method"]) == set(finished.leaderboard["method"])


def test_results_are_what_store_and_records_have(finished: dipa_bench.Results, there: Path) -> None:
    board = finished.leaderboard
    assert set(board["method"]) == {"identity", "ldipa"}
    assert finished.measured and finished.sent
    assert finished.folder.resolve() == there / "mlruns" / "studies" / "one"
    stored = dipa_bench.leaderboard("sr", study="one")
    pd.testing.assert_frame_equal(board, stored)
    runs = finished.runs
    assert runs.groupby("kind").size().to_dict() == {
        "method": 4,
        "published": 2,  # of the first replicate
        "seed": 4,
        "trial": 8,
    }
    assert set(runs["study"]) == {"one", "one-replicate1"}
    assert (board["replicates"] == 2).all()
    row = board.set_index("method").loc["ldipa"]
    seeds = runs[(runs["method"] == "ldipa") & (runs["kind"] == "seed")]
    assert row["psnr"] == pytest.approx(seeds["test/psnr"].mean())
    assert "best learned method" in str(finished)
    assert "ldipa" in finished._repr_html_()


def test_an_operator_comes_back(finished: dipa_bench.Results, there: Path) -> None:
    ours, named = finished.load("ldipa", "cpu"), dipa_bench.load("one/ldipa", device="cpu")
    assert ours.record == named.record
    assert type(finished.load("identity", "cpu").operator) is Identity


@pytest.mark.exhaustive
def test_a_table_says_the_same_as_arguments(finished: dipa_bench.Results, there: Path) -> None:
    """And the callback hears of every run."""

    class Heard(dipa_bench.StudyCallback):
        def __init__(self) -> None:
            self.ended_runs: list[str] = []

        def ended(self, record) -> None:
            self.ended_runs.append(f"{record.method} {record.kind}")

    budget = {"trials": 2, "replicates": 1, "train_images": 8, "epochs": 1, "final_epochs": 1}
    problem = {"prior": "den:smooth", "size": 16, "iterations": 3, "dataset": "folder:images"}
    table = {
        "task": "sr",
        "problem": problem | {"noise": 0.01},
        "budget": budget,
        "methods": {"identity": {}},
    }
    heard = Heard()
    found = dipa_bench.run_study(table, name="table", device="cpu", callback=heard)
    assert heard.ended_runs == ["identity trial"] * 2 + [
        "identity seed",
        "identity published",
        "identity method",
    ]
    pd.testing.assert_series_equal(
        found.leaderboard["psnr"], run("arguments", methods="identity").leaderboard["psnr"]
    )
    again = Heard()
    dipa_bench.run_study(table, name="table", device="cpu", callback=again)
    assert again.ended_runs == ["identity method"]


def test_mistakes_are_one_line(there: Path) -> None:
    with pytest.raises(dipa_bench.UserError, match="did you mean 'ldipa'"):
        run("bad", methods=["ldipas"])
    with pytest.raises(dipa_bench.UserError, match="replicates = 0"):
        run("bad", replicates=0)
    with pytest.raises(dipa_bench.UserError, match="say what to study"):
        dipa_bench.run_study()
    with pytest.raises(dipa_bench.UserError, match="unknown task 'st'"):
        dipa_bench.leaderboard("st")
    assert not (there / "mlruns" / "studies" / "bad").exists()


def test_a_stop_is_a_keyboard_interrupt_that_names_the_study(there: Path) -> None:
    class Stop(dipa_bench.StudyCallback):
        def run(self, kind: str, row: str, number: int) -> None:
            if kind == "seed":
                raise KeyboardInterrupt

    with pytest.raises(dipa_bench.StudyStopped, match="continue study 'stopped'") as caught:
        run("stopped", methods="identity", callback=Stop())
    assert isinstance(caught.value, KeyboardInterrupt)
    assert caught.value.study == "stopped"
    assert len(run("stopped", methods="identity").leaderboard) == 1


def test_importing_loads_nothing_heavy(there: Path) -> None:
    """In an interpreter of its own."""
    code = """
import sys
import dipa_bench
assert not {"torch", "mlflow", "pandas", "optuna"} & set(sys.modules)
print(dipa_bench.run_study.__name__, dipa_bench.leaderboard.__name__, dipa_bench.load.__name__)
"""
    assert fresh(code, there).split() == ["run_study", "leaderboard", "load"]


def test_without_a_store_the_board_is_there_too(there: Path) -> None:
    found = run("alone", methods="identity", trials=1, tracking_uri="http://127.0.0.1:9")
    assert not found.sent
    assert found.leaderboard["method"].tolist() == ["identity"]
    assert found.leaderboard["psnr"].notna().all()


def test_the_notebook_of_the_docs(there: Path) -> None:
    """It runs as it is, and ends in a table and a picture."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "kept without outputs"
    for cell in notebook.cells:  # less of the same
        cell.source = cell.source.replace("trials=24", "trials=2").replace("[:200]", "[:60]")
    client = NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(there)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    (table,) = (
        found["data"]["text/html"] for found in outputs if "text/html" in found.get("data", {})
    )
    assert "ldipa" in table and "Smooth" in table
    assert any("image/png" in found.get("data", {}) for found in outputs)


def test_the_example_of_the_readme(
    tmp_path: Path, empty_database: Path, monkeypatch, capsys
) -> None:
    (code,) = re.findall(r"```python\n(import dipa_bench\n.*?)```", README.read_text(), re.DOTALL)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(small_study.furnished(tmp_path, empty_database))
    less = {"budget.train_images": 8, "budget.fits": 1, "problem.iterations": 3}
    shortened = code.replace("trials=2", f"trials=2, set={less}")
    assert shortened != code
    exec(shortened, {})
    printed = capsys.readouterr().out
    assert "identity" in printed and "hessian" in printed
