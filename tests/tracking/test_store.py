"""Sending run folders to MLflow: everything, once, and never at the cost of a study."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

import dipa_bench
from dipa_bench.errors import UserError
from dipa_bench.tracking import records, sync_state
from dipa_bench.tracking.connection import StoreUnavailable, connect, guarded
from dipa_bench.tracking.location import (
    redacted,
    resolve_uri,
    sqlite_path,
    sqlite_uri,
    ui_command,
)
from dipa_bench.tracking.mlflow_format import decode, encode, experiment_name, thinned
from dipa_bench.tracking.store import Store, SyncReport, sync

RUNS = 2 + 7 + 2  # methods, trials, seeds


def runs_of(uri: str, task: str = "sr") -> list[Run]:
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(experiment_name(task))
    return list(client.search_runs([experiment.experiment_id]))


def tagged(runs: list[Run], **tags: str) -> Run:
    wanted = {f"dipa.{name}": value for name, value in tags.items()}
    (found,) = [run for run in runs if wanted.items() <= run.data.tags.items()]
    return found


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


# ---------------------------------------------------------------------------- which store


@pytest.mark.exhaustive
def test_the_default_is_what_mlflow_itself_opens_and_is_made_quietly(root: Path) -> None:
    code = (
        "import pathlib; from dipa_bench.tracking.location import resolve_uri; "
        "from dipa_bench.tracking.store import Store; "
        "print(Store(resolve_uri(None, pathlib.Path.cwd())).uri); "
        "import mlflow; print(mlflow.get_tracking_uri())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root.parent,
        env={**os.environ, "PYTHONPATH": str(Path(dipa_bench.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    ours, theirs = done.stdout.splitlines()
    assert ours == theirs == f"sqlite:///{root.parent}/mlflow.db"
    assert done.stderr == ""
    assert (root.parent / "mlflow.db").exists()


def test_explicit_comes_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert resolve_uri(None, tmp_path) == "http://127.0.0.1:5000"
    assert resolve_uri("https://host/x", tmp_path) == "https://host/x"
    assert resolve_uri("sqlite:///a/b.db", tmp_path) == f"sqlite:///{tmp_path}/a/b.db"
    assert resolve_uri("postgresql+psycopg2://u:p@h/d", tmp_path) == "postgresql+psycopg2://u:p@h/d"


@pytest.mark.parametrize(
    "uri", ["mlruns", "./mlruns", "/some/where", "file:///some/where", "C:\\x"]
)
def test_a_folder_is_refused_with_the_cure(tmp_path: Path, uri: str) -> None:
    with pytest.raises(UserError, match=r"sqlite:///mlflow\.db"):
        resolve_uri(uri, tmp_path)


@pytest.mark.parametrize("uri", ["htp://me:secret@host", "localhost:5000", "sqlite://"])
def test_other_addresses_are_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve_uri(uri, tmp_path)
    assert "secret" not in str(caught.value)


def test_runs_of_the_old_file_store_are_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "mlruns" / "0" / "meta.yaml").touch()
    with pytest.raises(UserError, match="migrate-filestore"):
        resolve_uri(None, tmp_path)


@pytest.mark.parametrize("name", ["with space", "a%20b", "é#?"])
def test_odd_folders_keep_their_names(tmp_path: Path, name: str, empty_database: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    path = folder / "mlflow.db"
    path.write_bytes(empty_database.read_bytes())
    uri = resolve_uri(None, folder)
    assert sqlite_path(uri) == path
    assert resolve_uri(uri, tmp_path) == uri
    connect(uri).create_experiment("here")
    with contextlib.closing(sqlite3.connect(path)) as database:
        names = database.execute("SELECT name FROM experiments").fetchall()
    assert ("here",) in names


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://me:s3cret@host:80/path?token=s3cret#s3cret", "https://***@host:80/path?***"),
        ("https://s3cret@host", "https://***@host"),
        ("postgresql://me:s3/c@r#et@host/db", "postgresql://***@host/db"),
        ("postgresql+psycopg2://host/db?password=s3cret", "postgresql+psycopg2://host/db?***"),
        ("http://host:5000", "http://host:5000"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("databricks", "databricks"),
    ],
)
def test_secrets_are_redacted(uri: str, shown: str) -> None:
    assert redacted(uri) == shown


def test_the_ui_is_for_databases_and_this_machine(tmp_path: Path) -> None:
    uri = sqlite_uri(tmp_path / "mlflow.db")
    command = ui_command(uri, 5001)
    assert command[:4] == [sys.executable, "-m", "mlflow", "server"]
    assert command[command.index("--backend-store-uri") + 1] == uri
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--port") + 1] == "5001"
    with pytest.raises(UserError, match="already"):
        ui_command("http://127.0.0.1:5000", 5001)


def test_the_uis_arguments_hold_no_password() -> None:
    assert "secret" not in " ".join(ui_command("postgresql://me:secret@db/mlflow", 5001))


# ---------------------------------------------------------------------------- sending


def test_a_study_arrives_as_it_is(root: Path, uri: str, hand: SimpleNamespace) -> None:
    assert sync(root, uri) == SyncReport(sent=RUNS)
    runs = runs_of(uri)
    assert len(runs) == RUNS
    parent = tagged(runs, kind="method", method="dipa")
    assert parent.info.run_name == "dipa / small"
    assert parent.info.status == "FINISHED"
    assert parent.info.start_time == 1_700_000_000_000
    assert parent.info.end_time == 1_700_000_010_500
    assert parent.data.params == {"solve.start": "adjoint", "solve.step": "0.1", "fit.epochs": "3"}
    assert parent.data.metrics["test/psnr"] == 27.5
    tags = parent.data.tags
    assert tags["dipa.winner_trial"] == str(hand.winner)
    assert tags["dipa.env.git"] == "0123abc"
    assert tags["dipa.data_digest"] == "d1g357"
    assert tags["dipa.learned"] == "true"
    assert "dipa.reason" not in tags
    assert "The method dipa" in tags["mlflow.note.content"]
    children = [
        run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id
    ]
    assert len(children) == 9
    winners = [run for run in children if run.data.tags.get("dipa.winner") == "true"]
    assert [run.data.tags["dipa.number"] for run in winners] == [str(hand.winner)]
    assert winners[0].info.run_name == f"dipa / small / trial {hand.winner}"


def test_states_become_mlflows(root: Path, uri: str, hand: SimpleNamespace) -> None:
    sync(root, uri)
    runs = runs_of(uri)
    found = {
        run.data.tags["dipa.state"]: run.info.status
        for run in runs
        if run.data.tags["dipa.kind"] == "trial"
    }
    assert found == {
        "finished": "FINISHED",
        "pruned": "KILLED",
        "interrupted": "KILLED",
        "failed": "FAILED",
        "diverged": "FAILED",
        "running": "RUNNING",
    }
    assert tagged(runs, kind="trial", state="failed").data.tags["dipa.reason"].startswith("step")


def test_files_arrive_beside_the_database(root: Path, uri: str) -> None:
    (root / "studies" / "small" / "dipa" / ".hidden").write_text("x")
    sync(root, uri)
    client = MlflowClient(tracking_uri=uri)
    parent = tagged(runs_of(uri), kind="method", method="dipa")
    files = {info.path for info in client.list_artifacts(parent.info.run_id)}
    assert files == {
        "MLmodel",
        "record.json",
        "images.parquet",
        "curves.parquet",
        "pictures.safetensors",
        "matrix.safetensors",
        "linearisation.safetensors",
    }
    assert Path(parent.info.artifact_uri).is_relative_to(root)


def test_curves_are_thinned_and_figures_stay_the_last(
    root: Path, uri: str, hand: SimpleNamespace
) -> None:
    sync(root, uri)
    client = MlflowClient(tracking_uri=uri)
    runs = runs_of(uri)
    parent = tagged(runs, kind="method", method="dipa")
    curve = client.get_metric_history(parent.info.run_id, "loss")
    steps = sorted(point.step for point in curve)
    assert (len(steps), steps[0], steps[-1]) == (100, 0, 249)
    trial = tagged(runs, kind="trial", number=str(hand.winner))
    assert trial.data.metrics["val/psnr"] == 20.75  # the series of that name ends at 19


def test_nothing_is_sent_twice(root: Path, uri: str) -> None:
    sync(root, uri)
    before = {run.info.run_id for run in runs_of(uri)}
    assert sync(root, uri) == SyncReport(unchanged=RUNS)
    assert {run.info.run_id for run in runs_of(uri)} == before


def test_notes_of_what_was_sent_lost_or_damaged_make_no_duplicates(root: Path, uri: str) -> None:
    sync(root, uri)
    before = {run.info.run_id for run in runs_of(uri)}
    notes = sorted(root.rglob(sync_state.SENT))
    assert len(notes) == RUNS
    notes[0].unlink()
    notes[1].write_text("{")
    notes[2].write_text("[1]")
    notes[3].write_text('{"run_id": 3}')
    sync(root, uri)
    assert {run.info.run_id for run in runs_of(uri)} == before
    assert sync(root, uri) == SyncReport(unchanged=RUNS)


def test_a_crash_before_the_note_makes_no_duplicate(
    root: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Store, "_log", crash)  # between create_run and log_batch
        sync(root, uri)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sync_state, "write_note", crash)  # all sent, nothing noted
        sync(root, uri)
    assert len(runs_of(uri)) == 1
    sync(root, uri)
    runs = runs_of(uri)
    assert len(runs) == RUNS
    assert tagged(runs, kind="method", method="dipa").data.metrics["test/psnr"] == 27.5
    assert tagged(runs, kind="method", method="dipa").data.params["fit.epochs"] == "3"


def test_a_changed_record_updates_its_run(root: Path, uri: str, hand: SimpleNamespace) -> None:
    folder = root / "studies" / "small" / "dipa"
    final = records.read(folder)
    early = final.model_copy(
        update={
            "state": "running",
            "reason": "not yet",
            "metrics": {"test/psnr": 40.0, "parameters": 64.0},
            "series": {"loss": [(0, 1.0), (1, 0.5)]},
            "params": {"solve.step": 9.0},
            "notes": {"winner": 0},
        }
    )
    records.write(folder, early)
    sync(root, uri)
    first = tagged(runs_of(uri), kind="method", method="dipa")
    assert first.info.status == "RUNNING"
    records.write(folder, final.model_copy(update={"series": {"loss": [(0, 1.0), (2, 0.25)]}}))
    assert sync(root, uri) == SyncReport(sent=3, unchanged=RUNS - 3)  # and both winners
    runs = runs_of(uri)
    run = tagged(runs, kind="method", method="dipa")
    assert len(runs) == RUNS
    assert run.info.run_id == first.info.run_id
    assert run.info.status == "FINISHED"
    assert run.info.end_time == 1_700_000_010_500
    assert run.data.metrics["test/psnr"] == 27.5  # though it was higher before
    assert run.data.params == {"solve.step": "9.0", "solve.start": "adjoint", "fit.epochs": "3"}
    assert json.loads(run.data.tags["dipa.params"]) == final.params
    assert "dipa.reason" not in run.data.tags
    curve = MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, "loss")
    assert sorted(point.step for point in curve) == [0, 1, 2]
    winner = tagged(runs, kind="trial", winner="true")
    assert winner.data.tags["dipa.number"] == str(hand.winner)


def test_another_file_counts_as_a_change(root: Path, uri: str) -> None:
    sync(root, uri)
    (root / "studies" / "small" / "none" / "operator.safetensors").write_bytes(b"12345678")
    assert sync(root, uri) == SyncReport(sent=1, unchanged=RUNS - 1)


def test_what_was_deleted_in_mlflow_comes_back_only_when_it_changes(root: Path, uri: str) -> None:
    sync(root, uri)
    folder = root / "studies" / "small" / "none"
    run = tagged(runs_of(uri), kind="method", method="none")
    MlflowClient(tracking_uri=uri).delete_run(run.info.run_id)
    assert sync(root, uri) == SyncReport(unchanged=RUNS)
    records.write(folder, records.read(folder).model_copy(update={"title": "New"}))
    assert sync(root, uri) == SyncReport(sent=1, unchanged=RUNS - 1)
    assert tagged(runs_of(uri), kind="method", method="none").data.tags["dipa.title"] == "New"


def test_a_deleted_experiment_is_told_with_the_cure(root: Path, uri: str) -> None:
    client = MlflowClient(tracking_uri=uri)
    client.delete_experiment(client.create_experiment(experiment_name("sr")))
    report = sync(root, uri)
    assert report.sent == 0
    assert len(report.failed) == 2
    assert "experiments restore" in report.failed[0]


@pytest.mark.exhaustive
def test_studies_of_one_name_in_two_folders_stay_apart(
    root: Path, uri: str, tmp_path: Path, hand: SimpleNamespace
) -> None:
    hand.write_study(tmp_path / "elsewhere")
    sync(root, uri)
    assert sync(tmp_path / "elsewhere", uri) == SyncReport(sent=RUNS)
    assert len(runs_of(uri)) == 2 * RUNS


@pytest.mark.exhaustive
def test_text_stays_text(root: Path, uri: str, hand: SimpleNamespace) -> None:
    name = "<script>alert(1)</script> 'x' \"y\" `z` $(id) Ω"
    folder = root / "studies" / "small" / "odd"
    records.write(folder, hand.record("method", name, title=name, task="a/b 'c'"))
    sync(root, uri)
    (run,) = runs_of(uri, "a/b 'c'")
    assert run.info.run_name == f"{name} / small"
    assert run.data.tags["dipa.method"] == name
    assert run.data.tags["dipa.title"] == name
    assert "**<script>" not in run.data.tags["mlflow.note.content"]


def test_limits_of_mlflow_are_kept(root: Path, uri: str, hand: SimpleNamespace) -> None:
    big = hand.record(
        "method",
        "big",
        params={f"p{i}": "x" * 7000 for i in range(130)},
        metrics={f"m{i}": float(i) for i in range(700)} | {"..//odd\\name!": 1.0, "x" * 400: 2.0},
        series={f"s{i}": [(k, float(k)) for k in range(150)] for i in range(4)},
        environment={f"e{i}": "v" * 9000 for i in range(150)},
    )
    records.write(root / "studies" / "small" / "big", big)
    assert sync(root, uri).failed == ()
    run = tagged(runs_of(uri), method="big")
    assert len(run.data.params) == 130
    assert len(run.data.metrics) == 706
    assert run.data.tags["dipa.env.e149"].startswith("vvv")


def test_nan_and_infinity_are_a_tag(root: Path, uri: str) -> None:
    sync(root, uri)
    run = tagged(runs_of(uri), kind="trial", state="diverged")
    assert json.loads(run.data.tags["dipa.nonfinite"]) == {"val/psnr": "nan"}
    assert all(math.isfinite(value) for value in run.data.metrics.values())


def test_damaged_records_do_not_stop_the_others(root: Path, uri: str) -> None:
    study = root / "studies" / "small"
    (study / "dipa" / "trial-0002" / "record.json").write_text("{")
    (study / "none" / "record.json").write_text("")
    report = sync(root, uri)
    assert report.sent == RUNS - 2
    assert len(report.failed) == 2
    assert all("damaged run record" in line and "\n" not in line for line in report.failed)


@pytest.mark.parametrize(
    "value",
    [True, False, None, 0, -3, 1.0, 1e-300, 0.1, "", "adjoint", "3", "true", "null", '"', "[1]"],
)
def test_params_keep_their_types(value: object) -> None:
    back = decode(encode(value))
    assert back == value
    assert type(back) is type(value)


def test_words_stay_readable() -> None:
    assert encode("adjoint") == "adjoint"
    assert encode(0.25) == "0.25"


def test_thinning_keeps_the_ends() -> None:
    points = list(range(1234))
    assert thinned(points)[0] == 0
    assert thinned(points)[-1] == 1233
    assert len(set(thinned(points))) == 100
    assert thinned(points[:100]) == points[:100]


# ---------------------------------------------------------------------------- reaching it


def test_a_dead_server_is_told_soon_and_everything_goes_later(
    root: Path, uri: str, closed_port: int
) -> None:
    before = dict(os.environ)
    start = time.monotonic()
    with pytest.raises(StoreUnavailable, match="dipa-bench sync") as caught:
        sync(root, f"http://me:s3cret@127.0.0.1:{closed_port}")
    assert time.monotonic() - start < 12
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert f"http://***@127.0.0.1:{closed_port}" in str(caught.value)
    assert dict(os.environ) == before
    assert sync(root, uri) == SyncReport(sent=RUNS)


def test_a_silent_server_is_told_soon() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        start = time.monotonic()
        with pytest.raises(StoreUnavailable):
            connect(f"http://127.0.0.1:{server.getsockname()[1]}")
        assert time.monotonic() - start < 12


def test_a_dead_database_server_is_told_soon(closed_port: int) -> None:
    start = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        connect(f"postgresql://me:s3#cret@127.0.0.1:{closed_port}/db")
    assert time.monotonic() - start < 12
    assert "cret" not in str(caught.value)


def test_the_users_own_patience_is_left_alone(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "5")
    with guarded(uri):
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "5"
        assert "MLFLOW_HTTP_REQUEST_TIMEOUT" in os.environ
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "5"
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ


def test_a_file_that_is_no_database_is_told_soon(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database, but long enough to look like a file")
    start = time.monotonic()
    with pytest.raises(StoreUnavailable, match="not a database"):
        connect(sqlite_uri(tmp_path / "mlflow.db"))
    assert time.monotonic() - start < 5


@pytest.mark.exhaustive
def test_two_at_once_make_one_whole_database(tmp_path: Path) -> None:
    path = tmp_path / "new" / "mlflow.db"
    uri = sqlite_uri(path)
    errors: list[Exception] = []

    def make() -> None:
        try:
            connect(uri)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert [file.name for file in path.parent.iterdir()] == ["mlflow.db"]


# ---------------------------------------------------------------------------- a living server


def _get(url: str, body: object = None) -> dict:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=5) as answer:
        return json.load(answer)


@contextlib.contextmanager
def serving(uri: str, port: int, folder: Path) -> Iterator[str]:
    """Runs `ui_command` until the block ends."""
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            ui_command(uri, port),
            cwd=folder,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            with contextlib.suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(f"{address}/health", timeout=2).close()
                break
            assert server.poll() is None, (folder / "server.log").read_text()
            time.sleep(0.1)
        yield address
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # with its workers; a polite end takes seconds
        server.wait(10)


@pytest.mark.exhaustive
def test_the_ui_shows_what_was_sent_and_servers_take_runs_too(
    root: Path, uri: str, tmp_path: Path, closed_port: int, hand: SimpleNamespace
) -> None:
    from dipa_bench.tracking.load import find_run, load_results

    sync(root, uri)
    hand.write_study(tmp_path / "more", "more")
    with serving(uri, closed_port, tmp_path) as address:
        found = _get(f"{address}/api/2.0/mlflow/experiments/search?max_results=10")
        names = {entry["name"]: entry["experiment_id"] for entry in found["experiments"]}
        assert experiment_name("sr") in names
        listed = _get(
            f"{address}/api/2.0/mlflow/runs/search",
            {"experiment_ids": [names[experiment_name("sr")]]},
        )
        assert len(listed["runs"]) == RUNS
        assert sync(tmp_path / "more", address) == SyncReport(sent=RUNS)
        assert sync(tmp_path / "more", address) == SyncReport(unchanged=RUNS)
        results = load_results(address, "sr", study="more")
        assert len(results.trials) == len(hand.states)
        record = find_run(address, results.methods["run_id"][0])
        assert record == hand.method_record("more", "dipa")
        remote = _get_task(address, root, hand)
        assert remote == ["other"]


def _get_task(address: str, root: Path, hand: SimpleNamespace) -> list[str]:
    """A task that the server has not met: its artifacts go through the server."""
    from dipa_bench.tracking.load import load_results

    folder = root / "studies" / "other" / "none"
    records.write(folder, hand.record("method", "none", study="other", task="new"))
    hand.tables((0,), 2)["images"].to_parquet(folder / "images.parquet")
    sync(root, address)
    results = load_results(address, "new")
    assert len(results.images) == 2
    return list(results.methods["study"])
