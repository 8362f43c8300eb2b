"""What is tested of an entry: its winner with every seed, and once its published settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dipa_bench import registry
from dipa_bench.config.entry import Entry
from dipa_bench.data.images import ImageSet
from dipa_bench.errors import Diverged
from dipa_bench.metrics import psnr
from dipa_bench.parameters import build
from dipa_bench.preconditioners import Identity
from dipa_bench.runs.rerun import find, name_of, repeat
from dipa_bench.search.journal import trial_records
from dipa_bench.testing import small_task
from dipa_bench.tracking import records
from dipa_bench.tracking.records import RunRecord

STRENGTH, STEP = 0.05, 0.25


def published(task: Any) -> dict[str, Any]:
    return {"solve.step": STEP, "solve.strength": STRENGTH}


def test_published_settings_are_fitted_and_tested_once(tmp_path: Path, lab, register) -> None:
    fitted = []

    def fit(task, values, context):
        fitted.append((values.solve.step, context.budget.epochs))
        return context.reconstructor(task, values.solve, Identity())

    register("known", fit, published=published)
    budget = {"epochs": 2, "final_epochs": 5}
    study = lab.resolved(["known"], budget=budget)
    heard = lab.Heard()
    done = lab.search(study, tmp_path, "known", heard)
    assert done.state == "finished"
    assert fitted.count((STEP, 5)) == 1, "with the final budget"
    (run,) = [record for record in heard.records if record.kind == "published"]
    assert (run.params["solve.step"], run.params["solve.strength"]) == (STEP, STRENGTH)
    assert done.metrics["published/psnr"] == run.metrics["test/psnr"]
    assert run.metrics["test/psnr"] != done.metrics["test/psnr"]
    reads = (tmp_path / "studies" / "small" / "test-reads.log").read_text().splitlines()
    assert [line.split(maxsplit=1)[1] for line in reads] == [
        "small / known: the winner",  # and no trial
        "small / known: published settings",
    ]
    # the same as the study's own run of these settings
    alone = lab.search(
        lab.resolved(["known"], budget=budget, name="alone", protocol="published"),
        tmp_path,
        "known",
    )
    assert alone.params["solve.step"] == STEP and "published/psnr" not in alone.metrics
    fitted.clear()
    assert lab.search(study, tmp_path, "known").metrics == done.metrics
    assert not fitted, "it is on disk"


def test_only_the_first_replicate_has_them_and_only_what_was_published(
    tmp_path: Path, lab, register
) -> None:
    register("known", published=published)
    register("unknown")
    study = lab.resolved(["known", "unknown"])
    later = study.model_copy(update={"replicate": 1, "name": "small-replicate1"})
    for one, name, has in (
        (study, "known", True),
        (study, "unknown", False),
        (later, "known", False),
    ):
        done = lab.search(one, tmp_path, name)
        assert ("published/psnr" in done.metrics) == has
        assert (tmp_path / "studies" / one.name / name / "published").exists() == has


def test_published_settings_that_diverge_are_told_and_cost_nothing_else(
    tmp_path: Path, lab, register
) -> None:
    def fit(task, values, context):
        if values.solve.step == STEP and context.budget.epochs == 5:
            raise Diverged("PSNR is NaN")
        return context.reconstructor(task, values.solve, Identity())

    register("known", fit, published=published)
    budget = {"epochs": 2, "final_epochs": 5, "trials": 1}
    done = lab.search(lab.resolved(["known"], budget=budget), tmp_path, "known")
    assert done.state == "finished" and "published/psnr" not in done.metrics
    assert done.notes["published"] == "diverged: PSNR is NaN"


def test_its_record_repeats_it(tmp_path: Path, lab) -> None:
    root = lab.kept(tmp_path, {"identity": {}}, {"trials": 1})
    place = root / "studies" / "kept" / "identity" / "published"
    record = records.read(place)
    assert find(name_of(record), root) == place
    assert repeat(record, root, torch.device("cpu")).agrees()
    assert Entry.of(lab.resolved(["identity"]), "identity").method.title == record.title


def test_trials_are_scored_on_validation_images_and_the_winner_on_test_images(
    tmp_path: Path, lab, context
) -> None:
    """As both come out by hand, from the settings in the records."""
    study = lab.resolved(["identity"], trials=2)
    done = lab.search(study, tmp_path, "identity")
    task, method = small_task(seed=study.seed), registry.get("methods", "identity")

    def by_hand(record: RunRecord, images: ImageSet) -> float:
        made = method.fit(task, build(method.parameters, record.params), context())
        found = made.run(task.measure(images), task.student).estimate
        return float(psnr(found, task.pixels(images)).mean())

    trials = trial_records(tmp_path / "studies" / "small" / "identity")
    assert len(trials) == 2
    for trial in trials:
        expected = by_hand(trial, task.images.validation)
        assert trial.metrics["val/psnr"] == pytest.approx(expected, abs=1e-3)
    expected = by_hand(done, task.images.test("a test of the test"))
    assert done.metrics["test/psnr"] == pytest.approx(expected, abs=1e-3)
    assert abs(done.metrics["test/psnr"] - done.metrics["val/psnr"]) > 0.01
