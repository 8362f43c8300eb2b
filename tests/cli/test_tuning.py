"""`dipa-bench tuning`: two searches of one study, from the command line to the page."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from dipa_bench.tracking import records

FILE = """
task = "sr"
replicate = {replicate}
seed = {replicate}

[methods.identity]
[methods.hessian]
"""


@pytest.fixture(scope="module")
def searched(tmp_path_factory, furnish, run_there, small: list[str]) -> Path:
    """A working folder with a study and a replicate of it."""
    folder = furnish(tmp_path_factory.mktemp("searched"))
    for replicate, name in enumerate(("one", "one-replicate1")):
        (folder / f"{replicate}.toml").write_text(FILE.format(replicate=replicate))
        options = ["--config", f"{replicate}.toml", "--name", name, "--trials", "3"]
        run_there(folder, ["study", *small, *options])
    return folder


def trials(folder: Path, study: str, method: str) -> list[records.RunRecord]:
    place = folder / "mlruns" / "studies" / study / method
    return [records.read(path) for path in sorted(place.glob("trial-*"))]


def test_two_searches_make_a_mean_and_a_band(searched: Path, call, monkeypatch) -> None:
    monkeypatch.chdir(searched)
    rows = json.loads(call("tuning", "--task", "sr", "--format", "json").out)
    assert {row["study"] for row in rows} == {"one"}
    found = {row["method"]: row for row in rows}
    assert set(found) == {"identity", "hessian"}
    for method, row in found.items():
        both = [trials(searched, study, method) for study in ("one", "one-replicate1")]
        best = [max(trial.metrics["val/psnr"] for trial in found) for found in both]
        seconds = [sum(trial.metrics["trial/seconds"] for trial in found) for found in both]
        firsts = [found[0].metrics["val/psnr"] for found in both]
        assert (row["replicates"], row["trials"], row["test_repeats"]) == (2, 3, 2)
        assert row["best"] == pytest.approx(sum(best) / 2)
        assert row["best_low"] <= row["best"] <= row["best_high"]
        assert row["best_at_1_trials"] == pytest.approx(sum(firsts) / 2)
        assert row["seconds"] >= sum(seconds) / 2
        assert row["reference"] == "identity"


def test_print_outs(searched: Path, call, monkeypatch) -> None:
    monkeypatch.chdir(searched)
    table = call("tuning", "--task", "sr", "--study", "one")
    assert (table.code, table.err) == (0, "")
    assert "task sr, study one: best validation PSNR [dB] after so many trials" in table.out
    assert "95% t interval over 2 searches" in table.out
    done = call("tuning", "--task", "sr", "--by", "seconds", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(done.out)))
    assert {row["method"] for row in rows} == {"identity", "hessian"}
    assert any(name.endswith("_seconds") and "best_at" in name for name in rows[0])
    alone = call("tuning", "--task", "sr", "--study", "one-replicate1", "--format", "json")
    assert {row["replicates"] for row in json.loads(alone.out)} == {1}


def test_mistakes_are_one_line(searched: Path, call, monkeypatch) -> None:
    monkeypatch.chdir(searched)
    assert "choose one of seconds, trials" in call("tuning", "--task", "sr", "--by", "hours").line
    assert "'json'" in call("tuning", "--task", "sr", "--format", "jsn").line
    assert "'one'" in call("tuning", "--task", "sr", "--study", "on").line
    assert "'hessian'" in call("tuning", "--task", "sr", "--reference", "hesian").line


def test_the_dashboard_of_a_study_has_its_repeats(searched: Path, call, monkeypatch) -> None:
    monkeypatch.chdir(searched)
    done = call("dashboard", "--task", "sr", "--study", "one", "--output", "page.html")
    assert done.code == 0
    text = (searched / "page.html").read_text("utf-8")
    assert "the mean over 2 independent searches" in text
    assert text.count("<h2>") == 1
    board = json.loads(
        call("leaderboard", "--task", "sr", "--study", "one", "--format", "json").out
    )
    assert {row["study"] for row in board} == {"one"}
