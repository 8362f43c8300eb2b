"""`dipa-bench rerun`: the same numbers again, or a word about it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from dipa_bench.tracking import records
from dipa_bench.tracking.mlflow_format import experiment_name


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory, furnish: Callable[[Path], Path], small: list[str], run_there
) -> Path:
    """A folder with a finished study, made once."""
    folder = furnish(tmp_path_factory.mktemp("finished"))
    options = ["--methods", "identity,ldipa", "--trials", "2", "--name", "one"]
    run_there(folder, ["study", *small, *options])
    return folder


@pytest.fixture
def there(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The finished study as the working folder."""
    monkeypatch.chdir(finished)
    sys.modules.pop("den", None)
    return finished


@pytest.fixture
def edited(finished: Path, work: Path) -> Path:
    """A copy of the finished study that a test may spoil."""
    shutil.copytree(finished / "mlruns", work / "mlruns")
    return work / "mlruns" / "studies" / "one"


def change(folder: Path, **update: object) -> None:
    records.write(folder, records.read(folder).model_copy(update=update))


@pytest.mark.parametrize(
    "run",
    [
        "one/identity/trial-0000",
        "one/ldipa/trial-0001",
        "one/ldipa/seed-0",
        "one/ldipa",
        "mlruns/studies/one/identity",
        "mlruns/studies/one/identity/seed-0/record.json",
    ],
)
def test_a_run_agrees_exactly(run: str, there: Path, call) -> None:
    before = {path: path.stat().st_mtime_ns for path in (there / "mlruns").rglob("*")}
    done = call("rerun", run)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1] == "agrees exactly"
    row = "ldipa" if "ldipa" in run else "identity"
    what = f"trial {run[-1]}" if "trial" in run else "the winner's test"
    assert done.out.startswith(f"study one, row {row}: {what}, again from its record\n")
    assert "/psnr: recorded" in done.out
    assert {path: path.stat().st_mtime_ns for path in (there / "mlruns").rglob("*")} == before


def test_by_mlflow_run_id_or_model(there: Path, call) -> None:
    client = MlflowClient(tracking_uri=f"sqlite:///{there / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(experiment_name("sr"))
    wanted = "tags.`dipa.method` = 'identity' and tags.`dipa.kind` = 'method'"
    (run,) = client.search_runs([experiment.experiment_id], wanted)
    for name in (run.info.run_id, "models:/one.identity"):
        assert call("rerun", name).out.splitlines()[-1] == "agrees exactly"
    assert "no run 'abc123'" in call("rerun", "abc123").line
    assert "no run 'one/nothing'" in call("rerun", "one/nothing").line


@pytest.mark.parametrize(
    ("place", "metric"),
    [("identity/trial-0000", "val/psnr"), ("ldipa/seed-0", "test/ssim"), ("ldipa", "test/psnr")],
)
def test_a_tampered_record_does_not_agree(place: str, metric: str, edited: Path, call) -> None:
    metrics = records.read(edited / place).metrics
    change(edited / place, metrics=metrics | {metric: metrics[metric] + 1e-3})
    done = call("rerun", str(edited / place))
    assert done.code == 1
    assert done.out.splitlines()[-1] == "does not agree"


def test_other_parameters_do_not_agree(edited: Path, call) -> None:
    place = edited / "identity" / "trial-0000"
    change(place, params=records.read(place).params | {"solve.step": 0.123})
    assert call("rerun", str(place)).code == 1


def test_other_images_are_refused(edited: Path, call) -> None:
    change(edited / "identity" / "trial-0000", data_digest="0123456789abcdef")
    line = call("rerun", "one/identity/trial-0000").line
    assert "are not those of the record" in line
    assert "0123456789abcdef" in line


@pytest.mark.parametrize("state", ["running", "interrupted", "skipped"])
def test_nothing_to_compare_with(state: str, edited: Path, call) -> None:
    change(edited / "identity" / "trial-0000", state=state)
    assert f"is {state}" in call("rerun", "one/identity/trial-0000").line


def test_a_method_without_a_winner_is_no_run(edited: Path, call) -> None:
    change(edited / "identity", state="diverged", params={}, metrics={})
    assert "one of its trials" in call("rerun", "one/identity").line


@pytest.mark.parametrize("study", [{}, {"task": "sr", "methods": {"other": {}}}])
def test_a_record_that_this_version_cannot_read(study: dict, edited: Path, call) -> None:
    change(edited / "identity" / "trial-0000", study_file=study)
    call("rerun", "one/identity/trial-0000").line.index("the record of trial 0")


def test_a_damaged_record(edited: Path, call) -> None:
    (edited / "identity" / records.RECORD).write_text("{")
    assert "damaged run record" in call("rerun", "one/identity").line


def test_a_failed_run_fails_again(work: Path, study, call, monkeypatch) -> None:
    import baselines.hessian

    def fail(*arguments):
        raise ValueError("no")

    monkeypatch.setattr(baselines.hessian.InverseHessian, "forward", fail)
    assert study("--methods", "hessian", "--trials", "1", "--name", "one").code == 1
    assert call("rerun", "one/hessian/trial-0000").code == 0
    monkeypatch.undo()
    done = call("rerun", str(work / "mlruns/studies/one/hessian/trial-0000"))
    assert json.dumps(done.out).count("recorded failed, now")
