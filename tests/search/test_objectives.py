"""What a search is for: several objectives, and training that grows for what survives."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import optuna
import pytest
import torch
from pydantic import Field

from dipa_bench.config.entry import Entry
from dipa_bench.errors import UserError
from dipa_bench.execution.study_folder import study_folder
from dipa_bench.methods import Iterative
from dipa_bench.parameters import Parameters, Search
from dipa_bench.preconditioners import Identity
from dipa_bench.search import journal
from dipa_bench.search.journal import trial_records
from dipa_bench.search.objectives import objectives_of
from dipa_bench.solvers import SolveParameters

EPOCHS = 6


class Padded(Identity):
    """P = I with numbers that do nothing."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("ballast", torch.zeros(count))


class Sized(Parameters):
    size: Annotated[int, Field(ge=1, description="numbers"), Search(1, 50)] = 10
    solve: SolveParameters = SolveParameters()


def sized(task, values, context) -> Iterative:
    return context.reconstructor(task, values.solve, Padded(values.size))


def trials(root: Path, entry: str) -> list:
    return trial_records(study_folder(root, "small") / entry)


def opened(root: Path, entry: str, study, context) -> optuna.Study:
    folder = study_folder(root, "small") / entry
    space = Entry.of(study, entry).distributions(context.task)
    return journal.open_study(folder, space, optuna.samplers.RandomSampler(), objectives_of(study))


def dominated(trial, others) -> bool:
    """Whether another is at least as good in PSNR and size and better in one."""
    mine = (trial.metrics["val/psnr"], -trial.metrics["parameters"])
    for other in others:
        theirs = (other.metrics["val/psnr"], -other.metrics["parameters"])
        if theirs != mine and all(b >= a for a, b in zip(mine, theirs, strict=True)):
            return True
    return False


@pytest.mark.parametrize("lost", [False, True], ids=["kept", "journal lost"])
def test_several_objectives_give_a_front(tmp_path: Path, lab, register, lost: bool) -> None:
    """Optuna's best trials are those that no other dominates; the winner has the best PSNR."""
    register("sized", sized, Sized)
    objectives = ["psnr", "parameters"]
    study = lab.resolved(["sized"], trials=12, raw={"objectives": objectives})
    found = lab.search(study, tmp_path, "sized")
    made = trials(tmp_path, "sized")
    best = max(made, key=lambda trial: trial.metrics["val/psnr"])
    assert found.metrics["val/psnr"] == best.metrics["val/psnr"]
    if lost:
        (study_folder(tmp_path, "small") / "sized" / journal.JOURNAL).write_text("garbage\n")
    kept = opened(tmp_path, "sized", study, lab.context(study, tmp_path))
    assert [direction.name for direction in kept.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert [trial.values for trial in kept.trials] == [
        [trial.metrics["val/psnr"], trial.metrics["parameters"]] for trial in made
    ]
    front = {trial.number for trial in made if not dominated(trial, made)}
    assert {trial.number for trial in kept.best_trials} == front
    assert 0 < len(front) < 12


def test_a_search_with_objectives_continues(tmp_path: Path, lab, register) -> None:
    """More trials later: the old ones are not run again."""
    register("sized", sized, Sized)
    raw = {"objectives": ["psnr", "seconds", "parameters"]}
    for count in (3, 5):
        lab.search(lab.resolved(["sized"], trials=count, raw=raw), tmp_path, "sized")
    assert [trial.number for trial in trials(tmp_path, "sized")] == list(range(5))


@pytest.mark.parametrize(
    ("objectives", "named"),
    [(["parameters"], "psnr"), (["psnr", "psnr"], "once"), (["psnr", "speed"], "speed")],
)
def test_objectives_that_make_no_sense(lab, objectives, named) -> None:
    with pytest.raises(UserError, match=named) as caught:
        lab.resolved(["identity"], raw={"objectives": objectives})
    assert "\n" not in str(caught.value)


class Ruled(Parameters):
    """`quality` says how good a fit will be."""

    quality: Annotated[float, Field(description="q"), Search(0.0, 1.0)] = 0.5
    solve: SolveParameters = SolveParameters()


def test_what_is_not_in_the_best_third_is_given_up(tmp_path: Path, lab, register) -> None:
    """At the ends of rungs alone, against the trials before; survivors train to the end."""
    lengths: list[int] = []

    def fit(task, values, context) -> Iterative:
        lengths.append(0)
        for epoch in range(1, context.budget.epochs + 1):
            lengths[-1] = epoch
            context.report(epoch, values.quality + 0.01 * epoch)
        return context.reconstructor(task, values.solve, Identity())

    register("ruled", fit, Ruled)
    budget = {"epochs": EPOCHS, "rungs": 3}
    lab.search(lab.resolved(["ruled"], trials=16, budget=budget), tmp_path, "ruled")
    earlier: dict[int, list[float]] = {2: [], 4: []}
    for number, trial in enumerate(trials(tmp_path, "ruled")):
        quality, expected = trial.params["quality"], EPOCHS
        for end, others in earlier.items():
            if expected == EPOCHS:
                rank = sorted([*others, quality], reverse=True).index(quality)  # ties: in front
                if rank >= max(1, (len(others) + 1) // 3):
                    expected = end
                others.append(quality)
        assert lengths[number] == expected, number
        assert trial.state == ("finished" if expected == EPOCHS else "pruned")
    assert {trial.state for trial in trials(tmp_path, "ruled")} == {"finished", "pruned"}


def test_rungs_have_equal_lengths(lab) -> None:
    with pytest.raises(UserError, match=r"epochs = 5 .*rungs = 3") as caught:
        lab.resolved(["identity"], budget={"epochs": 5, "rungs": 3})
    assert "\n" not in str(caught.value)


def test_images_grow_for_trials_and_not_for_finals(tmp_path: Path, lab, register) -> None:
    """The search's fits have rungs, the winner's have all images from the start."""
    seen: list[SimpleNamespace] = []

    def fit(task, values, context) -> Iterative:
        seen.append(SimpleNamespace(rungs=context.budget.rungs, epochs=context.budget.epochs))
        return context.reconstructor(task, values.solve, Identity())

    register("seen", fit, Ruled, stochastic=True)
    budget = {"epochs": 4, "final_epochs": 5, "rungs": 2}
    lab.search(lab.resolved(["seen"], trials=3, budget=budget), tmp_path, "seen")
    assert [(one.rungs, one.epochs) for one in seen] == [(2, 4)] * 3 + [(1, 5)]


def test_a_name_with_a_slash_is_one_folder(tmp_path: Path, lab, register) -> None:
    """`ndipa/vit` and its like: found again by name, trials beside it."""
    from dipa_bench.runs import rerun

    register("kin/one")
    found = lab.search(lab.resolved(["kin/one"]), tmp_path, "kin/one")
    assert found.method == "kin/one"
    folder = study_folder(tmp_path, "small") / "kin__one"
    assert rerun.find("small/kin/one", tmp_path) == folder
    assert rerun.find("small/kin/one/trial-0001", tmp_path) == folder / "trial-0001"
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == ["kin__one"]
    with pytest.raises(UserError, match="dot in front"):
        lab.resolved({"kin/../two": {"method": "identity"}})
    shutil.rmtree(folder)
    assert math.isfinite(found.metrics["test/psnr"])


def test_a_lost_journal_comes_back_with_what_was_reported(tmp_path: Path, lab, register) -> None:
    """Rungs compare reported values: the best up to each epoch, the untrained one's too."""

    def fit(task, values, context) -> Iterative:
        context.series["val/psnr_by_epoch"] = curve = [(0, values.quality / 2)]
        context.report(*curve[0])
        for epoch in range(1, context.budget.epochs + 1):
            curve.append((epoch, values.quality + 0.1 * (-1) ** epoch))
            context.report(*curve[-1])
        return context.reconstructor(task, values.solve, Identity())

    register("ruled", fit, Ruled)
    study = lab.resolved(["ruled"], trials=9, budget={"epochs": EPOCHS, "rungs": 3})
    lab.search(study, tmp_path, "ruled")
    context = lab.context(study, tmp_path)
    before = [
        trial.intermediate_values for trial in opened(tmp_path, "ruled", study, context).trials
    ]
    assert {len(values) for values in before} >= {1, EPOCHS + 1}
    assert list(before[0].values()) == sorted(before[0].values())
    (study_folder(tmp_path, "small") / "ruled" / journal.JOURNAL).write_text("garbage\n")
    after = opened(tmp_path, "ruled", study, context).trials
    assert [trial.intermediate_values for trial in after] == before
