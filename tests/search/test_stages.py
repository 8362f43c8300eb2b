"""Tune, fit, tune: what each stage runs, what wins, and that a stopped search goes on alike."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from dipa_bench.config.entry import Entry
from dipa_bench.config.study_file import StudyFile
from dipa_bench.evaluation.race import Raced, race
from dipa_bench.execution import trials
from dipa_bench.execution.context import StudyContext
from dipa_bench.execution.study_folder import open_context, run_entry, study_folder
from dipa_bench.methods import Iterative
from dipa_bench.preconditioners import Identity
from dipa_bench.runs.rerun import repeat
from dipa_bench.search import journal
from dipa_bench.search.callbacks import StudyCallback
from dipa_bench.search.journal import trial_records
from dipa_bench.search.settings_tuner import FEWEST
from dipa_bench.search.stages import ENOUGH, FITS, planned_trials, stages_of
from dipa_bench.testing import small_task
from dipa_bench.tracking import records
from dipa_bench.tracking.records import RunRecord

IMAGES = 12
STAGES = ("settings", "fit", "tuned")
BUDGET = {"settings": ENOUGH // 2, "fits": 2, "epochs": 1, "final_epochs": 1}


def resolved(lab: Any, entry: str, **budget: int) -> StudyFile:
    return lab.resolved([entry], budget=BUDGET | budget, raw={"search": {}})


def searched(
    study: StudyFile, root: Path, entry: str, callback: StudyCallback | None = None
) -> tuple[RunRecord, list[RunRecord]]:
    """The entry's record and its trials', by index."""
    context = open_context(study, root, small_task(seed=study.seed, count=IMAGES))
    found = run_entry(context, Entry.of(study, entry), callback or StudyCallback())
    folder = study_folder(root, study.name) / entry
    ended = [one for one in trial_records(folder) if one.state != "interrupted"]
    return found, sorted(ended, key=lambda one: one.index)


def settings(params: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if name.startswith("solve.")}


def psnr(record: RunRecord) -> float:
    return record.metrics.get("val/psnr", record.metrics.get("val/psnr_estimate", -math.inf))


@pytest.mark.parametrize(
    ("entry", "names"),
    [
        ("identity", ["settings"]),
        ("circulant", ["settings"]),  # its probes are random, its operator does without settings
        ("ldipa", ["settings", "fit", "tuned"]),
        ("scalar", ["settings", "fit", "tuned"]),
        ("restormer", [""]),
        ("bicubic", [""]),
    ],
)
def test_what_fits_tunes_before_and_after(entry: str, names: list[str], lab) -> None:
    study = resolved(lab, entry, settings=ENOUGH)
    found = stages_of(Entry.of(study, entry), small_task(), study)
    assert [stage.name for stage in found] == names
    assert {stage.count for stage in found if stage.tunes} <= {ENOUGH}  # as many for each operator


def test_few_settings_are_drawn_together_with_what_is_fitted(lab) -> None:
    for entry, settings, count in (
        ("identity", ENOUGH - 1, ENOUGH - 1),
        ("ldipa", FEWEST - 1, 2),
    ):
        study = resolved(lab, entry, settings=settings)
        assert [stage.name for stage in stages_of(Entry.of(study, entry), small_task(), study)] == [
            ""
        ]
        assert planned_trials(Entry.of(study, entry), small_task(), study) == count


@pytest.mark.exhaustive(after=1)
@pytest.mark.parametrize("entry", ["ldipa", "scalar", "unrolled-identity"])
def test_an_entry_that_fits_goes_through_three_stages(entry: str, tmp_path: Path, lab) -> None:
    found, trials = searched(resolved(lab, entry), tmp_path, entry)
    stages = {name: [one for one in trials if one.stage == name] for name in STAGES}
    assert [one.stage for one in trials] == [one.stage for name in STAGES for one in stages[name]]
    assert len(stages["fit"]) == 2
    assert 2 <= len(stages["settings"]) <= 30
    assert 2 <= len(stages["tuned"]) <= 30
    # the fits are at the best settings of what they start from
    best = max((one for one in stages["settings"] if len(one.validation) == IMAGES), key=psnr)
    assert all(settings(one.params) == settings(best.params) for one in stages["fit"])
    # the settings that follow are those of the best fit, which is not fitted again
    fit = max((one for one in stages["fit"] if one.state == "finished"), key=psnr)
    for one in stages["tuned"]:
        assert one.fitted_at == settings(fit.params)
        assert {**one.params, **settings(fit.params)} == fit.params
        assert one.seed == fit.seed
    # the fit's own settings take part, with the numbers that the fit had
    same = next(one for one in stages["tuned"] + [fit] if one.params == fit.params)
    assert same.validation == fit.validation[: len(same.validation)]
    assert found.notes["winner"] in {one.number for one in stages["fit"] + stages["tuned"]}
    assert found.metrics["val/psnr"] == max(
        one.metrics["val/psnr"] for one in trials if one.state == "finished"
    )
    assert found.metrics["val/psnr"] >= fit.metrics["val/psnr"]
    assert 0 <= found.metrics["search/late_gain"] < 5
    folder = study_folder(tmp_path, "small") / entry
    assert not (folder / FITS).exists()


def test_what_is_not_fitted_yet_never_wins(tmp_path: Path, lab) -> None:
    _, trials = searched(resolved(lab, "ldipa"), tmp_path, "ldipa")
    initial = [one for one in trials if one.stage == "settings"]
    assert all(one.state in ("pruned", "diverged") for one in initial)
    assert any("not fitted yet" in (one.reason or "") for one in initial)
    assert all("val/psnr" not in one.metrics for one in initial)


def test_a_winner_is_refitted_where_it_was_fitted_and_run_where_it_was_tuned(
    tmp_path: Path, lab
) -> None:
    study = resolved(lab, "ldipa")
    found, trials = searched(study, tmp_path, "ldipa")
    winner = next(one for one in trials if one.number == found.notes["winner"])
    assert (found.params, found.fitted_at) == (winner.params, winner.fitted_at)
    seed = records.read(study_folder(tmp_path, "small") / "ldipa" / "seed-0")
    assert (seed.params, seed.fitted_at) == (winner.params, winner.fitted_at)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, lab: Any) -> Path:
    return lab.kept(tmp_path_factory.mktemp("kept"), {"ldipa": {}}, BUDGET)


@pytest.mark.exhaustive(after=3)
@pytest.mark.parametrize("stage", [*STAGES, "seed"])
def test_a_run_of_each_stage_is_repeated_from_its_record(stage: str, kept: Path) -> None:
    folder = kept / "studies" / "kept" / "ldipa"
    if stage == "seed":
        record = records.read(folder / "seed-0")
        assert record.fitted_at == records.read(folder).fitted_at
    else:
        record = [one for one in trial_records(folder) if one.stage == stage][-1]
    assert record.state == "finished" or record.validation
    assert repeat(record, kept, torch.device("cpu")).agrees()


class Stops(StudyCallback):
    """Ends the process's work, so to speak, after so many trials."""

    def __init__(self, after: int) -> None:
        self.left = after

    def ended(self, record: RunRecord) -> None:
        self.left -= record.kind == "trial"
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, lab: Any) -> Any:
    """A search that was never stopped."""
    return searched(resolved(lab, "ldipa"), tmp_path_factory.mktemp("whole"), "ldipa")


@pytest.mark.exhaustive(after=1)
@pytest.mark.parametrize("after", [3, 25, 40])
def test_a_search_that_was_stopped_goes_on_alike(after: int, tmp_path: Path, lab, whole) -> None:
    study = resolved(lab, "ldipa")
    with pytest.raises(KeyboardInterrupt):
        searched(study, tmp_path, "ldipa", Stops(after))
    if after == 25:
        (study_folder(tmp_path, "small") / "ldipa" / journal.JOURNAL).unlink()
    again, ours = searched(study, tmp_path, "ldipa")
    found, theirs = whole
    assert [(one.index, one.state, one.params, one.validation) for one in ours] == [
        (one.index, one.state, one.params, one.validation) for one in theirs
    ]
    assert (again.params, again.fitted_at) == (found.params, found.fitted_at)
    assert again.metrics["test/psnr"] == found.metrics["test/psnr"]


@pytest.mark.exhaustive
def test_a_budget_may_grow(tmp_path: Path, lab) -> None:
    _, before = searched(resolved(lab, "ldipa"), tmp_path, "ldipa")
    found, after = searched(resolved(lab, "ldipa", fits=3, settings=60), tmp_path, "ldipa")
    known = {(one.index, one.number) for one in before}
    assert known < {(one.index, one.number) for one in after}
    assert len([one for one in after if one.stage == "fit"]) == 3
    assert found.state == "finished"


def test_entries_that_start_from_the_identity_share_what_it_scored(
    tmp_path: Path, lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Theirs are the identity's own scores, charged for as if each had run them itself."""
    entries, raced, took = ["identity", "ldipa", "unrolled-identity", "pointwise"], [], [0.05]

    def slow_race(*args: Any, **options: Any) -> list[Raced]:
        raced.append(args[0])
        time.sleep(took[0])
        return race(*args, **options)

    monkeypatch.setattr(trials, "race", slow_race)
    study = lab.resolved(
        entries, budget=BUDGET | {"settings": ENOUGH, "fits": 1}, raw={"search": {}}
    )

    def scores(context: StudyContext, entry: str) -> list[tuple]:
        run_entry(context, Entry.of(study, entry), StudyCallback())
        found = trial_records(context.folder / entry)
        first = sorted((one for one in found if one.stage == "settings"), key=lambda one: one.index)
        assert sum(one.metrics["trial/seconds"] for one in first) >= charged
        return [(one.index, settings(one.params), one.validation) for one in first]

    shared = open_context(study, tmp_path / "shared", small_task(seed=study.seed, count=IMAGES))
    charged = 0.0
    known = scores(shared, "identity")
    charged, took[0] = took[0] * len(raced), 0.0  # what its races slept
    for entry in entries[1:]:
        before, kept = len(raced), len(shared.scores)
        assert scores(shared, entry) == known
        assert len(shared.scores) == kept  # what has an operator, or a schedule, is not shared
        plain = [one for race in raced[before:] for one in race if type(one) is Iterative]
        assert not any(isinstance(one.preconditioner, Identity) for one in plain)
        tuned = [one for one in trial_records(shared.folder / entry) if one.stage == "tuned"]
        assert sum(map(len, raced[before:])) >= len(tuned)
    charged = 0.0
    alone = open_context(study, tmp_path / "alone", small_task(seed=study.seed, count=IMAGES))
    before = len(raced)
    assert scores(alone, "pointwise") == known
    assert len(raced) - before >= len(known) / 8
