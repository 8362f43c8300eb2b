"""What is tested of an entry: its winner with every seed, and once its published settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dipa_bench.config.entry import Entry
from dipa_bench.errors import Diverged
from dipa_bench.preconditioners import Identity
from dipa_bench.runs.rerun import find, name_of, repeat
from dipa_bench.tracking import records

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
    reads = (tmp_path / "studies" / "small" / "test-reads.log").read_text()
    assert reads.count("small / known: published settings") == 1
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
