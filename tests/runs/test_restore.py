"""Operators that a study kept reconstruct as they did when it tested them."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit
from urllib.request import url2pathname

import mlflow
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file, save_file

import dipa_bench
from dipa_bench import names
from dipa_bench.data.images import ImageSet, Splits
from dipa_bench.errors import UserError
from dipa_bench.evaluation.evaluate import evaluate
from dipa_bench.preconditioners import Dense, Identity, Scalar
from dipa_bench.runs import restore
from dipa_bench.tracking import records, sync_state
from dipa_bench.tracking.connection import guarded
from dipa_bench.tracking.location import sqlite_uri
from dipa_bench.tracking.store import Store

ROWS = {
    "identity": {},
    "ldipa": {"set": {"solve.start": "adjoint", "train.initial": "identity"}},
    "convolution+distilled": {"set": {"solve.start": "adjoint"}},
    "each": {"method": "dense+supervised", "set": {"train.operators": "each"}},
    "started": {"method": "scalar+greedy", "set": {"solve.start": "lmmse"}},
    "lmmse": {},
    "lmmse-preconditioner": {},
    "nystrom": {"set": {"rank": 9}},
    "ndipa/cnn": {"set": {"solve.start": "adjoint"}},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, lab: SimpleNamespace) -> Path:
    """The results folder of a study with learned and analytic entries, made once."""
    budget = {"trials": 1, "train_images": 6}
    return lab.kept(tmp_path_factory.mktemp("restore"), ROWS, budget, test_noise=0.02)


@pytest.fixture
def copied(root: Path, tmp_path: Path) -> Path:
    """A copy of the results that a test may spoil."""
    shutil.copytree(root, tmp_path / "mlruns")
    return tmp_path / "mlruns"


def kept(root: Path, run: str) -> Path:
    entry = next((entry for entry in ROWS if run == entry or run.startswith(f"{entry}/")), run)
    return records.method_folder(root / "studies" / "kept", entry) / run[len(entry) + 1 :]


def change(folder: Path, **update: object) -> None:
    records.write(folder, records.read(folder).model_copy(update=update))


@pytest.mark.parametrize("entry", ROWS)
def test_every_row_gives_its_recorded_figures_to_the_bit(entry: str, root: Path) -> None:
    recorded = records.read(kept(root, entry)).metrics
    for run in (entry, f"{entry}/seed-0"):
        one = dipa_bench.load(f"kept/{run}", root, "cpu")
        assert one.place == kept(root, run)
        images = one.task.images.test("a test")
        again = evaluate(one.reconstructor, one.task.tested, images, with_quality=True)
        for name, value in again.metrics("test").items():
            if name != "cost/seconds":
                assert value == recorded[name], name
        scores = pd.read_parquet(kept(root, run) / "images.parquet")
        assert again.psnr.double().tolist() == scores["psnr"].tolist()


def test_a_run_says_what_it_is(root: Path) -> None:
    run = dipa_bench.load(kept(root, "ldipa/seed-0"), root, "cpu")
    assert (run.record.kind, run.record.number, run.entry.name) == ("seed", 0, "ldipa")
    assert isinstance(run.operator, Dense)
    stored = load_file(kept(root, "ldipa/seed-0") / names.OPERATOR)
    assert torch.equal(run.operator.matrix, stored["matrix"])
    assert not torch.equal(stored["matrix"], torch.eye(256)[None])
    assert run.parameters == run.record.params
    assert run.study.name == "kept"
    assert run.same_images
    assert not any(part.requires_grad for part in run.operator.parameters())


def test_each_iteration_keeps_its_operator(root: Path) -> None:
    run = dipa_bench.load("kept/each", root, "cpu")
    assert run.operator.copies == 3
    assert len(run.operator.matrix) == 3


def test_a_trial_kept_no_operator(root: Path) -> None:
    with pytest.raises(UserError, match=r"kept no operator: give the method.*kept/ldipa.*rerun"):
        dipa_bench.load("kept/ldipa/trial-0000", root, "cpu")


def test_a_trial_without_learning_loads(root: Path) -> None:
    run = dipa_bench.load("kept/identity/trial-0000", root, "cpu")
    found = evaluate(run.reconstructor, run.task, run.task.images.validation)
    assert found.metrics("val")["val/psnr"] == run.record.metrics["val/psnr"]


@pytest.mark.parametrize("state", ["running", "failed", "skipped", "diverged"])
def test_a_run_that_did_not_finish(state: str, copied: Path) -> None:
    change(kept(copied, "ldipa"), state=state, reason="because")
    with pytest.raises(UserError, match=f"is {state} .because.: give a method or a seed"):
        dipa_bench.load("kept/ldipa", copied, "cpu")


def test_a_missing_operator(copied: Path) -> None:
    (kept(copied, "ldipa") / names.OPERATOR).unlink()
    with pytest.raises(UserError, match=r"holds no operator\.safetensors"):
        dipa_bench.load("kept/ldipa", copied, "cpu")


def test_a_damaged_operator(copied: Path) -> None:
    (kept(copied, "ldipa") / names.OPERATOR).write_bytes(b"no tensors")
    with pytest.raises(UserError, match="damaged operator"):
        dipa_bench.load("kept/ldipa", copied, "cpu")


def test_an_operator_of_another_structure(copied: Path) -> None:
    save_file({"matrix": torch.eye(9)[None]}, kept(copied, "ldipa") / names.OPERATOR)
    with pytest.raises(UserError, match="stored numbers"):
        dipa_bench.load("kept/ldipa", copied, "cpu")


def test_other_images_matter_only_where_they_are_used(
    copied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for entry in ("ldipa", "started", "lmmse"):
        change(kept(copied, entry), data_digest="0123456789abcdef")
    with caplog.at_level(logging.WARNING):
        run = dipa_bench.load("kept/ldipa", copied, "cpu")
    assert not run.same_images
    assert "0123456789abcdef" in caplog.text
    with pytest.raises(UserError, match="starts from the LMMSE map"):
        dipa_bench.load("kept/started", copied, "cpu")
    with pytest.raises(UserError, match="made from the training images"):
        dipa_bench.load("kept/lmmse", copied, "cpu")


def test_a_row_that_joined_later_finds_the_identity(copied: Path) -> None:
    place = kept(copied, "ldipa")
    study = records.read(place).study_file
    change(place, study_file=study | {"methods": {"ldipa": study["methods"]["ldipa"]}})
    (kept(copied, "nystrom") / records.RECORD).write_text("{")  # another's damage
    run = dipa_bench.load("kept/ldipa", copied, "cpu")
    found = restore.tuned_identity(run)
    assert found.entry.name == "identity"
    assert isinstance(found.operator, Identity)


def test_a_study_without_identity(copied: Path) -> None:
    shutil.rmtree(kept(copied, "identity"))
    run = dipa_bench.load("kept/ldipa", copied, "cpu")
    assert restore.tuned_identity(run) is None
    made = restore.untuned_identity(run)
    assert made.reconstructor.solver.step_size == run.reconstructor.solver.step_size
    assert isinstance(made.operator, Identity)


def test_a_folder_by_itself(root: Path, tmp_path: Path) -> None:
    """A run folder that was copied elsewhere is enough; its reads of test images stay with it."""
    shutil.copytree(kept(root, "ldipa/seed-0"), tmp_path / "mine")
    run = dipa_bench.load(tmp_path / "mine", root, "cpu")
    assert run.context.folder == tmp_path / "mine"
    assert restore.tuned_identity(run) is None


def only(height: int, width: int) -> Splits:
    pixels = torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(0))
    return Splits(*(ImageSet(pixels, ("x",), (part,)) for part in "abc"))


@pytest.mark.parametrize("entry", ["convolution+distilled", "ndipa/cnn"])
def test_operators_without_a_shape_move(entry: str, root: Path) -> None:
    run = dipa_bench.load(f"kept/{entry}", root, "cpu")
    context = restore.at_shape(run, only(20, 28))
    moved = run.at(context)
    assert type(moved.preconditioner) is type(run.operator)
    kept_state = run.operator.state_dict()
    for name, part in moved.preconditioner.state_dict().items():
        assert torch.equal(part, kept_state[name])
    assert context.task.shape == (1, 20, 28)
    y = context.task.measure(context.task.images.validation)
    assert y.shape == (1, 1, 5, 7)
    assert moved.run(y, context.task.student).estimate.shape == (1, 1, 20, 28)
    assert moved.solver.step_size * context.task.norm_squared() == pytest.approx(
        run.reconstructor.solver.step_size * run.task.norm_squared()
    )


def test_the_own_shape_is_home(root: Path) -> None:
    run = dipa_bench.load("kept/ldipa", root, "cpu")
    assert restore.at_shape(run, only(16, 16)) is run.context


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("ldipa", r"ldipa works on images of shape \(1, 16, 16\).*\(1, 20, 20\)"),
        ("lmmse-preconditioner", "keeps no numbers that could be moved"),
    ],
)
def test_operators_with_a_shape_do_not_move(entry: str, reason: str, root: Path) -> None:
    run = dipa_bench.load(f"kept/{entry}", root, "cpu")
    with pytest.raises(UserError, match=reason):
        run.at(restore.at_shape(run, only(20, 20)))


def test_a_start_from_training_images_moves_to_squares_alone(root: Path) -> None:
    run = dipa_bench.load("kept/started", root, "cpu")
    context = restore.at_shape(run, only(20, 20))
    assert context.task.images.shape == (1, 20, 20)
    assert len(context.task.images.train) == len(run.task.images.train)
    moved = run.at(context)
    assert isinstance(moved.preconditioner, Scalar)
    y = context.task.measure(context.task.images.validation)
    assert moved.run(y, context.task.student).estimate.shape[2:] == (20, 20)
    with pytest.raises(UserError, match="square, not 20 x 28: give a --size"):
        restore.at_shape(run, only(20, 28))


def test_importing_the_package_is_light() -> None:
    code = "import sys, dipa_bench; dipa_bench.load; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture(scope="module")
def registered(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A copy of the results, and the address of a store that has two of its winners, sent twice."""
    folder = tmp_path_factory.mktemp("registered")
    shutil.copytree(root, folder / "mlruns")
    uri = sqlite_uri(folder / "mlflow.db")
    for _ in range(2):
        store = Store(uri)
        for entry in ("ldipa", "ndipa/cnn"):
            place = records.method_folder(folder / "mlruns" / "studies" / "kept", entry)
            assert not store.send_method(place).failed
            sync_state.forget(place)
    return folder / "mlruns", uri


@pytest.mark.exhaustive(after=1)
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")  # MLflow's import
@pytest.mark.parametrize("entry", ["ldipa", "ndipa/cnn"])
def test_winners_are_models_of_mlflow_without_pickles(
    registered, entry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, uri = registered
    name = f"kept.{entry.replace('/', '-')}"
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    (version,) = client.search_model_versions(f"name = '{name}'")  # one, though sent twice
    assert client.get_run(version.run_id).data.tags["dipa.method"] == entry
    assert entry in client.get_registered_model(name).description
    kinds = {path.suffix for path in Path(url2pathname(urlsplit(version.source).path)).iterdir()}
    assert kinds <= {".json", ".parquet", ".safetensors", ".log", ""}

    run = dipa_bench.load(f"models:/{name}", there, "cpu", tracking_uri=uri)
    assert run.place == records.method_folder(there / "studies" / "kept", entry)
    measured = run.task.measure(run.task.images.validation)
    with torch.no_grad():
        wanted = run.reconstructor.run(measured, run.task.student).estimate.numpy()
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI"):
        monkeypatch.setenv(variable, uri)  # what MLflow's setters would leave behind
    with guarded(uri):
        model = mlflow.pyfunc.load_model(f"models:/{name}/1")
    assert (model.predict(measured.numpy()) == wanted).all()
    with pytest.raises(UserError, match="measurement 0 is float32 of shape"):
        model.predict(measured.numpy()[..., :-1])


@pytest.mark.parametrize(
    "name", ["kept.ldipa/7", "kept.ldipa@best", "kept.nothing", "kept.x/y", ""]
)
def test_models_that_are_not_there(registered, name: str) -> None:
    there, uri = registered
    with pytest.raises(UserError, match="no registered model 'models:/"):
        dipa_bench.load(f"models:/{name}", there, "cpu", tracking_uri=uri)


@pytest.mark.parametrize("form", ["", "/1", "/latest", "@best"])
def test_models_are_named_as_mlflow_names_them(registered, form: str) -> None:
    there, uri = registered
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    if form == "@best":
        client.set_registered_model_alias("kept.ldipa", "best", "1")
    assert restore.locate(f"models:/kept.ldipa{form}", there, uri).name == "ldipa"
    client.delete_registered_model_alias("kept.ldipa", "best")


def test_the_newest_version_is_the_largest_number(registered) -> None:
    there, uri = registered
    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    ours, theirs = (
        client.get_model_version(f"kept.{name}", "1") for name in ("ldipa", "ndipa-cnn")
    )
    client.create_registered_model("many")
    for one in [ours] * 9 + [theirs]:
        client.create_model_version("many", one.source, one.run_id)
    assert restore.locate("models:/many", there, uri).name == "ndipa__cnn"
    assert restore.locate("models:/many/9", there, uri).name == "ldipa"
