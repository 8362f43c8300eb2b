"""The work that is planned against the images that a prior was given."""

from __future__ import annotations

from pathlib import Path

import pytest

from dipa_bench.config.entry import Entry
from dipa_bench.execution.study_folder import run_entry
from dipa_bench.execution.work import SMALL_BATCHES, TUNING_IMAGES, Work, work_of


@pytest.mark.parametrize("entry", ["identity", "hessian", "lmmse-identity"])
def test_what_is_planned_is_what_is_run(entry: str, tmp_path: Path, lab) -> None:
    """Where nothing is given up early: all trials, the test and the published settings."""
    study = lab.resolved([entry], budget={"trials": 5})
    context = lab.context(study, tmp_path)
    seen = []
    context.task.prior.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    own, heard = Entry.of(study, entry), lab.Heard()
    work = work_of(own, context.task, study)
    run_entry(context, own, heard)
    assert sum(seen) == context.task.iterations * work.total
    assert sum(work.done_by(record) for record in heard.records) == work.total


def test_stages_are_counted_apart(tmp_path: Path, lab) -> None:
    budget = {"settings": 60, "fits": 3, "epochs": 2, "final_epochs": 4}
    study = lab.resolved(["ldipa", "identity"], budget={"trials": None} | budget)
    task = lab.context(study, tmp_path).task
    own, train = Entry.of(study, "ldipa"), len(task.images.train)
    validation, test = len(task.images.validation), task.images.test_count
    work = work_of(own, task, study, {"ldipa": 5.0})
    assert (work.settings, work.fits, work.finals) == (2 * 60, 3, 2)
    assert work.setting == SMALL_BATCHES * min(TUNING_IMAGES, validation)
    assert work.fit == 2 * (5 * train + validation) + validation
    assert work.final == 4 * (5 * train + validation) + 3 * test
    assert work.total == 120 * work.setting + 3 * work.fit + 2 * work.final
    assert not work.shared
    after = study.model_copy(update={"methods": dict(reversed(study.methods.items()))})
    assert list(after.methods) == ["identity", "ldipa"]  # whose search is ldipa's first
    shares = work_of(own, task, after, {"ldipa": 5.0})
    assert (shares.settings, shares.shared) == (60, 60)
    assert shares.total == work.total - 60 * work.setting
    again = study.model_copy(update={"replicate": 1})  # published settings are run once
    assert work_of(own, task, again).finals == 1
    timed = study.model_copy(
        update={"budget": study.budget.model_copy(update={"minutes": 2.0, "settings": 60})}
    )
    assert work_of(Entry.of(timed, "identity"), task, timed).total == 120


def test_what_cannot_run_is_no_work(tmp_path: Path, lab) -> None:
    study = lab.resolved(["bicubic", "circulant"], raw={"task": "cs"})
    task = lab.context(study.model_copy(update={"task": "sr"}), tmp_path, name="cs").task
    assert work_of(Entry.of(study, "bicubic"), task, study) == Work()
