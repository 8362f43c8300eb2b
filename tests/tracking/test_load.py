"""From MLflow to tables: what was written comes back, from MLflow alone."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from dipa_bench import names
from dipa_bench.errors import UserError
from dipa_bench.tracking import records, settings_table, tables
from dipa_bench.tracking.connection import StoreUnavailable
from dipa_bench.tracking.folders import study_results
from dipa_bench.tracking.load import find_run, load_results
from dipa_bench.tracking.location import sqlite_path, sqlite_uri
from dipa_bench.tracking.store import sync


def fill(folder: Path, database: Path, hand: SimpleNamespace) -> str:
    """Sends the hand-made study to a store in `folder`, and removes its run folders."""
    shutil.copy(database, folder / "mlflow.db")
    hand.write_study(folder / "mlruns")
    uri = sqlite_uri(folder / "mlflow.db")
    sync(folder / "mlruns", uri)
    shutil.rmtree(folder / "mlruns" / "studies")
    return uri


@pytest.fixture(scope="module")
def filled(
    tmp_path_factory: pytest.TempPathFactory, empty_database: Path, hand: SimpleNamespace
) -> str:
    """A store that holds the hand-made study, to be read only."""
    return fill(tmp_path_factory.mktemp("filled"), empty_database, hand)


@pytest.fixture
def own(tmp_path: Path, empty_database: Path, hand: SimpleNamespace) -> str:
    """A store that holds the hand-made study, for a test that spoils it."""
    return fill(tmp_path, empty_database, hand)


def test_methods_come_back(filled: str, hand: SimpleNamespace) -> None:
    methods = load_results(filled, "sr").methods
    assert list(methods.columns) == list(tables.METHODS)
    assert list(methods["method"]) == ["dipa", "none"]
    row = methods.iloc[0].to_dict()
    assert len(row.pop("run_id")) == 32
    assert row == {
        "study": "small",
        "method": "dipa",
        "title": "The method dipa",
        "operator": "dense",
        "rule": "distilled",
        "learned": True,
        "protocol": "tuned",
        "preset": "quick",
        "state": "finished",
        "reason": None,
        "parameters": 64,
        "trials": 2,
        "seconds_per_image": 0.125,
        "operator_calls": 40.0,
        "denoiser_calls": 20.0,
        "fit_seconds": 2.5,
        "search_seconds": 12.25,
        "late_gain": 0.125,
        "validation": 28.25,
        "contains": "none, other",
        "published": pytest.approx(math.nan, nan_ok=True),
        "start": "adjoint",
        "learns_from": "ground truth",
        "reference": None,
        "caveat": None,
        "params": {"solve.start": "adjoint", "solve.step": 0.1, "fit.epochs": 3},
        "started": 1_700_000_000.0,
        "replicate": 0,
        "replicate_of": "small",
        "setting": "",
    }
    assert methods["learned"].dtype == bool
    assert methods["parameters"].dtype == np.int64


def test_trials_come_back(filled: str, hand: SimpleNamespace) -> None:
    trials = load_results(filled, "sr").trials
    assert list(trials.columns) == list(tables.TRIALS)
    assert list(trials["number"]) == list(range(len(hand.states)))
    assert list(trials["state"]) == list(hand.states)
    assert set(trials["method"]) == {"dipa"}
    for number, state in enumerate(hand.states):
        written, row = hand.trial_values(number, state), trials.iloc[number]
        assert row["params"] == written["params"]
        assert row["reason"] == written["reason"]
        assert row["seconds"] == 1.5
        assert row["index"] == number
        assert math.isnan(row["shared_seconds"])
        measured = (9.0 + number, 0.25) if state == "finished" else (math.nan, math.nan)
        assert (row["parameters"], row["seconds_per_image"]) == pytest.approx(measured, nan_ok=True)
        value = written["metrics"].get("val/psnr", math.nan)
        assert row["value"] == pytest.approx(value, rel=0, abs=0, nan_ok=True)


def test_images_and_curves_come_back(filled: str, hand: SimpleNamespace) -> None:
    results = load_results(filled, "sr")
    for name, columns in (("images", tables.IMAGES), ("curves", tables.CURVES)):
        table = getattr(results, name)
        assert list(table.columns) == list(columns)
        written = hand.tables((0, 1), 3)[name]
        for method in ("dipa", "none"):
            part = table[table["method"] == method].drop(columns=["study", "method"])
            newer = [score for score in names.QUALITY if score in part and score not in written]
            assert part[newer].isna().all(axis=None)  # written by an older version
            part = part.drop(columns=newer)
            pd.testing.assert_frame_equal(
                part.reset_index(drop=True), written, check_dtype=False, check_exact=True
            )


def test_pictures_and_operators_come_back(filled: str, hand: SimpleNamespace) -> None:
    results = load_results(filled, "sr")
    written = hand.pictures(3)
    assert set(results.pictures) == {("small", "dipa"), ("small", "none")}
    for pictures in results.pictures.values():
        assert set(pictures) == set(written)
        assert all(np.array_equal(pictures[name], written[name]) for name in written)
    assert np.array_equal(results.operators["small", "dipa"], np.eye(4))


def test_linearisations_come_back(filled: str, hand: SimpleNamespace) -> None:
    found = load_results(filled, "sr").linearisations
    assert set(found) == {("small", "dipa"), ("small", "none")}
    made, written = found["small", "dipa"], hand.linearised()
    assert (made.image, made.iteration, made.derivative) == ("v0/1", 10, "finite differences")
    for name, stored in (("matrix", "J"), ("singular", "singular"), ("symmetric", "symmetric")):
        np.testing.assert_array_equal(getattr(made, name), written[stored])
    assert made.product.tolist() == [0, 0.5 - 1j, 1 - 2j, 1.5 - 3j]


def test_linearisations_without_a_jacobian_or_a_place(
    root: Path, uri: str, hand: SimpleNamespace
) -> None:
    spectra = {name: value for name, value in hand.linearised().items() if name != "J"}
    path = root / "studies" / "small" / "dipa" / "linearisation.safetensors"
    save_file(spectra, path)
    sync(root, uri)
    made = load_results(uri, "sr").linearisations["small", "dipa"]
    assert (made.matrix, made.image, made.iteration) == (None, "", None)


def test_a_method_without_anything_has_all_columns(
    tmp_path: Path, uri: str, hand: SimpleNamespace
) -> None:
    empty = hand.record("method", "broken", state="failed", reason="no memory")
    records.write(tmp_path / "studies" / "small" / "broken", empty)
    sync(tmp_path, uri)
    results = load_results(uri, "sr")
    assert list(results.images.columns) == list(tables.IMAGES)
    assert list(results.curves.columns) == list(tables.CURVES)
    assert list(results.trials.columns) == list(tables.TRIALS)
    row = results.methods.iloc[0]
    assert (row["state"], row["reason"], row["trials"]) == ("failed", "no memory", 0)
    assert row["start"] is None
    assert math.isnan(row["parameters"])
    assert results.pictures == {}
    assert results.linearisations == {}


def test_one_study_or_kind_of_rules_can_be_chosen(
    root: Path, uri: str, hand: SimpleNamespace
) -> None:
    hand.write_study(root, "other", ("none",))
    folder = root / "studies" / "other" / "none"
    records.write(folder, records.read(folder).model_copy(update={"protocol": "published"}))
    sync(root, uri)
    assert len(load_results(uri, "sr").methods) == 3
    assert set(load_results(uri, "sr", study="other").methods["method"]) == {"none"}
    assert set(load_results(uri, "sr", protocol="tuned").methods["study"]) == {"small"}
    assert set(load_results(uri, "sr", protocol="published").images["study"]) == {"other"}
    with pytest.raises(UserError, match="did you mean 'small'"):
        load_results(uri, "sr", study="smal")
    with pytest.raises(UserError, match="tuned"):
        load_results(uri, "sr", study="small", protocol="published")


def test_repeated_searches_are_told_and_come_with_their_study(
    root: Path, uri: str, hand: SimpleNamespace
) -> None:
    for study, replicate in (("small-replicate2", 2), ("odd", 3), ("large-replicate1", 0)):
        folder = hand.write_study(root, study, ("none",)) / "none"
        update = {"study_file": {"replicate": replicate}}
        records.write(folder, records.read(folder).model_copy(update=update))
    sync(root, uri)
    methods = load_results(uri, "sr").methods.set_index(["study", "method"])
    found = {key[0]: (row["replicate"], row["replicate_of"]) for key, row in methods.iterrows()}
    assert found == {
        "small": (0, "small"),
        "small-replicate2": (2, "small"),
        "odd": (3, "odd"),
        "large-replicate1": (0, "large-replicate1"),
    }
    odd = load_results(uri, "sr", study="small-replicate2")
    assert set(odd.methods["study"]) == {"small-replicate2"}
    both = load_results(uri, "sr", study="small")
    assert set(both.methods["study"]) == {"small", "small-replicate2"}


@pytest.mark.exhaustive(after=1)
@pytest.mark.parametrize("sent_before", [False, True], ids=["new", "sent as runs before"])
def test_settings_on_some_images_are_one_table(
    root: Path, uri: str, hand: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, sent_before: bool
) -> None:
    entry = root / "studies" / "small" / "dipa"
    raced = {  # what JSON has no word for, or a table no cell
        10: {"state": "pruned", "reason": "worse", "metrics": {"val/psnr_estimate": 21.25}},
        11: {"state": "diverged", "metrics": {"val/psnr": math.nan}, "params": {"a": None}},
        12: {"params": {"solve.step": 0.1, "a": True, "c": "1"}, "metrics": {}},
    }
    for number, values in raced.items():
        told = hand.record("trial", "dipa", number, images=10, stage="settings", **values)
        records.write(entry / f"trial-{number:04d}", told)
    if sent_before:
        with monkeypatch.context() as older:
            older.setattr(settings_table, "belongs", lambda record: False)
            sync(root, uri)
    sync(root, uri, rebuild=True)
    sent = load_results(uri, hand.task).trials.set_index("number").sort_index()
    here = study_results(entry.parent, hand.task).trials.set_index("number").sort_index()
    assert set(raced) < set(here.index)
    for number in here.index:
        assert sent.params[number] == here.params[number]
    columns = [name for name in here.columns if name != "params"]
    pd.testing.assert_frame_equal(sent[columns], here[columns])
    assert sync(root, uri).sent == 0
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    runs = client.search_runs(
        [client.get_experiment_by_name("dipa-bench/sr").experiment_id],
        "tags.`dipa.kind` = 'trial'",
    )
    numbers = {int(run.data.tags["dipa.number"]) for run in runs}
    assert numbers == set(range(len(hand.states))) | (set(raced) if sent_before else set())
    (parent,) = client.search_runs(
        [run.info.experiment_id for run in runs[:1]],
        "tags.`dipa.kind` = 'method' and tags.`dipa.method` = 'dipa'",
    )
    table = pd.DataFrame(**client_table(client, parent.info.run_id))
    assert table.images.tolist() == [10, 10, 10]
    assert table["solve.step"].tolist() == ["", "", 0.1]


def client_table(client: object, run: str) -> dict:
    """The one table that a run says it has, as MLflow's pages read it."""
    import json

    tags = client.get_run(run).data.tags
    (told,) = json.loads(tags["mlflow.loggedArtifacts"])
    assert told["type"] == "table"
    return json.loads(Path(client.download_artifacts(run, told["path"])).read_text())


def test_a_damaged_table_of_settings_is_told_in_one_line(
    root: Path, uri: str, hand: SimpleNamespace
) -> None:
    entry = root / "studies" / "small" / "dipa"
    records.write(entry / "trial-0010", hand.record("trial", "dipa", 10, images=10))
    sync(root, uri)
    for text in ("{", "[]", '{"columns": []}', '{"columns": ["number"], "data": [3]}'):
        for path in root.parent.rglob("artifacts/settings.json"):
            path.write_text(text)
        with pytest.raises(UserError, match=r"damaged file of run .*settings\.json"):
            load_results(uri, hand.task)


def test_no_runs_are_told_with_the_cure(filled: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dipa-bench study --task mri"):
        load_results(filled, "mri")
    missing = sqlite_uri(tmp_path / "absent" / "mlflow.db")
    with pytest.raises(UserError, match="dipa-bench study --task sr"):
        load_results(missing, "sr")
    assert not sqlite_path(missing).parent.exists()


def test_the_newest_of_two_runs_counts(root: Path, uri: str, tmp_path: Path) -> None:
    again = tmp_path / "again" / "studies" / "small" / "none"
    old = records.read(root / "studies" / "small" / "none")
    records.write(again, old.model_copy(update={"started": old.started + 1, "title": "Later"}))
    sync(tmp_path / "again", uri)
    sync(root, uri)
    methods = load_results(uri, "sr").methods
    assert list(methods["title"]) == ["The method dipa", "Later"]


def test_params_that_changed_are_the_latest(root: Path, uri: str) -> None:
    sync(root, uri)
    folder = root / "studies" / "small" / "dipa"
    for params in ({"solve.start": "zero"}, {"solve.start": "x" * 6000}):
        records.write(folder, records.read(folder).model_copy(update={"params": params}))
        sync(root, uri)
        row = load_results(uri, "sr").methods.iloc[0]
        assert row["params"] == params
        assert row["start"] == params["solve.start"]


def test_more_runs_than_a_page(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    search = MlflowClient.search_runs

    def small_pages(self: MlflowClient, *args: object, **values: object) -> object:
        return search(self, *args, **{**values, "max_results": 2})

    monkeypatch.setattr(MlflowClient, "search_runs", small_pages)
    results = load_results(filled, "sr")
    assert (len(results.methods), len(results.trials)) == (2, 7)


def test_a_damaged_file_is_told_in_one_line(own: str) -> None:
    for path in sqlite_path(own).parent.rglob("images.parquet"):
        path.write_text("garbage")
    with pytest.raises(UserError, match="damaged file of run") as caught:
        load_results(own, "sr")
    assert "\n" not in str(caught.value)


def test_lost_files_leave_the_rest(own: str) -> None:
    for path in sqlite_path(own).parent.rglob("artifacts"):
        shutil.rmtree(path)
    results = load_results(own, "sr")
    assert len(results.methods) == 2
    assert results.images.empty


def test_other_peoples_runs_in_the_experiment_are_passed_over(own: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=own)
    experiment = client.get_experiment_by_name("dipa-bench/sr")
    client.create_run(experiment.experiment_id)
    assert len(load_results(own, "sr").methods) == 2


def test_a_run_is_found_by_its_id(filled: str, hand: SimpleNamespace, tmp_path: Path) -> None:
    methods = load_results(filled, "sr").methods
    assert find_run(filled, methods["run_id"][1]) == hand.method_record("small", "none", 1)
    for wrong in ("0" * 32, "../../etc/passwd", ""):
        with pytest.raises(UserError, match="no run"):
            find_run(filled, wrong)
    with pytest.raises(UserError, match="no run"):
        find_run(sqlite_uri(tmp_path / "absent.db"), "0" * 32)


def test_a_dead_server_is_told() -> None:
    with pytest.raises(StoreUnavailable):
        load_results("http://127.0.0.1:9", "sr")
