"""Winners tested at other settings, as they are."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from dipa_bench import registry
from dipa_bench.config.entry import Entry
from dipa_bench.config.schema import Shift
from dipa_bench.errors import UserError
from dipa_bench.evaluation.evaluate import evaluate
from dipa_bench.execution.shifts import shifted
from dipa_bench.execution.study_folder import run_entry, study_folder
from dipa_bench.methods import Budget, FitContext
from dipa_bench.parameters import build
from dipa_bench.preconditioners import Identity
from dipa_bench.testing import small_task
from dipa_bench.tracking import records

SETTINGS = {
    "blur": {"options": {"factor": 1}},
    "noisy": {"noise": 0.1},
    "longer": {"iterations": 9},
}


def run(lab, root: Path, methods: list[str]) -> dict[str, pd.DataFrame]:
    study = lab.resolved(methods, raw={"shifts": SETTINGS})
    for entry in methods:
        assert lab.search(study, root, entry).state == "finished", entry
    folder = study_folder(root, "small")
    return {entry: pd.read_parquet(folder / entry / "shifts.parquet") for entry in methods}


def test_a_shift_changes_what_it_names() -> None:
    task = small_task(noise=0.02, test_noise=0.3)
    blur = shifted(task, Shift(options={"factor": 1}))
    x = task.pixels(task.images.test("test"))
    assert blur.student.A(x).shape[-1] == 16
    assert task.student.A(x).shape[-1] == 4
    assert (blur.noise, blur.test_noise, blur.iterations) == (0.02, 0.3, task.iterations)
    noisy = shifted(task, Shift(noise=0.5))
    assert (noisy.tested.noise, noisy.operators) == (0.5, task.operators)
    assert shifted(task, Shift(iterations=7)).iterations == 7
    with pytest.raises(UserError, match="factor"):
        shifted(task, Shift(options={"faktor": 1}))


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_scores_are_those_of_the_moved_operator(tmp_path: Path, lab) -> None:
    """Of every setting: what restoring the stored numbers there and testing gives."""
    scores = run(lab, tmp_path, ["identity", "hessian", "ldipa", "lmmse", "adjoint"])
    task = small_task(seed=0)
    images = task.images.test("test")
    for entry in ("identity", "hessian", "ldipa"):
        found = scores[entry]
        assert list(dict.fromkeys(found["setting"])) == ["matched", *SETTINGS]
        folder = study_folder(tmp_path, "small") / entry
        own = pd.read_parquet(folder / "images.parquet")
        matched = found[found["setting"] == "matched"]
        assert matched["psnr"].tolist() == own["psnr"].tolist()
        assert found.groupby("setting")["seed"].nunique().tolist() == [own["seed"].nunique()] * 4
        method = registry.get("methods", entry)
        context = lab.context(lab.resolved([entry], raw={"shifts": SETTINGS}), tmp_path)
        seed = records.read(folder / "seed-0")
        stored = folder / "seed-0" / "operator.safetensors"
        state = load_file(stored) if method.restore else {}
        for name, shift in SETTINGS.items():
            there = shifted(task, Shift(**shift))
            values = build(method.parameters, seed.params)
            context = FitContext(seed.seed, Budget(1), context.teachers, context.lmmse)
            made = (
                method.restore(there, values, state, context)
                if method.restore
                else method.fit(there, values, context)
            )
            expected = evaluate(made, there, images).psnr
            ours = found[(found["setting"] == name) & (found["seed"] == 0)]["psnr"]
            torch.testing.assert_close(torch.tensor(ours.tolist()), expected, check_dtype=False)
            assert seed.metrics[f"shift/{name}/psnr"] == pytest.approx(expected.mean().item())
    assert set(scores["lmmse"]["setting"]) == {"matched"}  # keeps no numbers to move
    assert set(scores["adjoint"]["setting"]) == {"matched", *SETTINGS}


@pytest.mark.parametrize(
    ("shifts", "named"),
    [
        ({"blur": {}}, "blur"),
        ({"matched": {"noise": 0.1}}, "matched"),
        ({"a/b": {"noise": 0.1}}, "letters"),
        ({"blur": {"nois": 0.1}}, "noise"),
        ({"blur": {"noise": -1.0}}, "noise"),
    ],
)
def test_bad_shifts_are_told(lab, shifts, named) -> None:
    with pytest.raises(UserError, match=named) as caught:
        lab.resolved(["identity"], raw={"shifts": shifts})
    assert "\n" not in str(caught.value)


@pytest.mark.exhaustive
def test_a_shift_that_changes_nothing_scores_the_same(tmp_path: Path, lab) -> None:
    """The test images' own noise included; what the fit noted stays as it was."""
    study = lab.resolved(["hessian"], raw={"shifts": {"same": {"options": {"blur": 1.0}}}})
    context = lab.context(study, tmp_path, noise=0.01, test_noise=0.1)
    found = run_entry(context, Entry.of(study, "hessian"), lab.Heard())
    scores = pd.read_parquet(study_folder(tmp_path, "small") / "hessian" / "shifts.parquet")
    matched, same = (scores[scores["setting"] == name]["psnr"] for name in ("matched", "same"))
    assert matched.tolist() == pytest.approx(same.tolist())
    assert found.metrics["test/psnr"] == pytest.approx(same.mean())
    other = {"factor 2": {"options": {"factor": 2}}}
    moved = lab.resolved(["nystrom"], name="moved", raw={"shifts": other})
    plain = lab.resolved(["nystrom"], name="plain")
    notes = [
        run_entry(lab.context(one, tmp_path), Entry.of(one, "nystrom"), lab.Heard()).notes
        for one in (moved, plain)
    ]
    assert notes[0] == notes[1]


def test_a_setting_that_fails_leaves_the_others(tmp_path: Path, lab, register) -> None:
    """With the reason in the record; the seed's own figures count."""

    def fit(task, values, context):
        if task.iterations == 9:
            raise RuntimeError("no room")
        return context.reconstructor(task, values.solve, Identity())

    register("moody", fit)
    shifts = {"longer": {"iterations": 9}, "noisy": {"noise": 0.2}}
    found = lab.search(lab.resolved(["moody"], raw={"shifts": shifts}), tmp_path, "moody")
    assert found.state == "finished"
    assert found.notes["shift longer"] == "none: RuntimeError: no room"
    scores = pd.read_parquet(study_folder(tmp_path, "small") / "moody" / "shifts.parquet")
    assert set(scores["setting"]) == {"matched", "noisy"}
