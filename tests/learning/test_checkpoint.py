"""A fit that was interrupted ends as one that never was."""

import json
import logging

import pytest
import torch
from safetensors.torch import save_file

from dipa_bench import registry
from dipa_bench.learning import checkpoint
from dipa_bench.learning.checkpoint import Checkpoint
from dipa_bench.learning.distillation import LDIPA
from dipa_bench.parameters import build, defaults
from dipa_bench.testing import small_task

EPOCHS = 6
FITS = {
    "dense, cosine": ("ldipa", {"train.initial": "identity"}),
    "dense, weight decay": ("ldipa", {"train.optimizer": "adamw", "train.initial": "identity"}),
    "network, plateau": (
        "ndipa/cnn",
        {"train.patience": 0, "train.learning_rate": 1e-2, "operator.width": 8},
    ),
    "network, scales": ("ndipa/mlp", {"operator.normalise": "iteration"}),
}


class Stop(BaseException):
    """As a kill would: nothing of the method catches it."""


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Checkpoints after every epoch, however short."""
    monkeypatch.setattr(checkpoint, "PAUSE", 0.0)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "checkpoints"


@pytest.fixture(scope="module")
def task():
    return small_task(shape=(1, 12, 12), iterations=2)


def fit(task, context, name, values, folder=None, stop_after=None, **budget):
    """The fitted module and its context; stopped in the report of an epoch, if so asked."""
    reports = []

    def report(epoch, value):
        reports.append((epoch, value))
        if epoch == stop_after:
            raise Stop

    method = registry.get("methods", name)
    flat = defaults(method.parameters, task.solver, task) | values
    budget = {"epochs": EPOCHS, "batch_size": 2} | budget
    found = context(report=report, **budget)
    found.folder = folder
    made = method.fit(task, build(method.parameters, flat), found)
    return made.module, found, reports


def rates(found):
    return found.notes["learning_rate_at_end"]


@pytest.mark.covering
@pytest.mark.parametrize("rungs", [1, 3])
@pytest.mark.parametrize("which", FITS)
def test_resumed_is_uninterrupted(task, context, folder, which, rungs):
    """The same numbers, curves and reports bit for bit, after stops in epochs 2 and 5."""
    name, values = FITS[which]
    whole, reference, told = fit(task, context, name, values, rungs=rungs)
    for stop in (2, 5):
        with pytest.raises(Stop):
            fit(task, context, name, values, folder, stop, rungs=rungs)
    module, found, reports = fit(task, context, name, values, folder, rungs=rungs)
    assert found.notes["resumed_after_epoch"] == 5
    assert "resumed_after_epoch" not in reference.notes
    for key, part in whole.state_dict().items():
        assert torch.equal(module.state_dict()[key], part), key
    for series in ("train/loss", "val/psnr_by_epoch"):
        assert found.series[series] == reference.series[series]
    assert reports == told
    assert rates(found) == rates(reference)
    assert not list(folder.iterdir())  # an ended fit leaves none


def test_the_rate_has_fallen_before_the_stop(task, context):
    """What is resumed above has a plateau behind it, which it must not forget."""
    name, values = FITS["network, plateau"]
    _, found, _ = fit(task, context, name, values, epochs=5)
    assert rates(found) < values["train.learning_rate"]


def test_seconds_go_on(task, context, folder):
    """Time before the stop counts as part of the fit."""
    with pytest.raises(Stop):
        fit(task, context, "ldipa", {}, folder, 4)
    _, found, _ = fit(task, context, "ldipa", {}, folder)
    times = [second for _, second in found.series["train/seconds"]]
    assert times == sorted(times)
    assert 0 < found.earlier == times[4]


@pytest.mark.parametrize("other", [{"train.learning_rate": 1e-4}, {"train.clip": 0.5}])
def test_another_fit_does_not_read_it(task, context, folder, other):
    with pytest.raises(Stop):
        fit(task, context, "ldipa", {}, folder, 3)
    _, found, _ = fit(task, context, "ldipa", other, folder)
    assert "resumed_after_epoch" not in found.notes


def test_another_budget_does_not_read_it(task, context, folder):
    with pytest.raises(Stop):
        fit(task, context, "ldipa", {}, folder, 3)
    _, found, _ = fit(task, context, "ldipa", {}, folder, epochs=EPOCHS + 1)
    assert "resumed_after_epoch" not in found.notes


@pytest.mark.parametrize("harm", ["cut", "no facts"])
def test_a_damaged_one_starts_over(task, context, folder, harm, caplog):
    """With a warning, and the same end."""
    whole, _, _ = fit(task, context, "ldipa", {})
    with pytest.raises(Stop):
        fit(task, context, "ldipa", {}, folder, 3)
    (path,) = folder.iterdir()
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    else:
        save_file({"x": torch.zeros(1)}, path)
    with caplog.at_level(logging.WARNING):
        made, found, _ = fit(task, context, "ldipa", {}, folder)
    assert "damaged" in caplog.text
    assert "resumed_after_epoch" not in found.notes
    assert torch.equal(made.matrix, whole.matrix)


def test_written_no_more_often_than_asked(folder, monkeypatch):
    """A pause between writings; the first comes after one as well."""
    now = [0.0]
    monkeypatch.setattr(checkpoint, "PAUSE", 5.0)
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    kept = Checkpoint(folder, "key")
    written = []
    for second in (1, 4, 5, 9, 10, 11, 16):
        now[0] = second
        kept.offer(lambda second=second: ({"x": torch.zeros(2)}, {"second": second}))
        found = Checkpoint(folder, "key").read()
        written.append(found and found[1]["second"])
    assert written == [None, None, 5, 5, 10, 10, 16]
    assert Checkpoint(None, "key").read() is None


def test_nothing_in_it_can_run(task, context, folder):
    """Tensors and JSON, readable without the project."""
    with pytest.raises(Stop):
        fit(task, context, "ldipa", {}, folder, 3)
    (path,) = folder.iterdir()
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert json.loads(header["__metadata__"]["facts"])["epoch"] == 3
    assert LDIPA.name not in header
