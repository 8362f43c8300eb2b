"""A learned operator at settings that it was not made for."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

import dipa_bench
from dipa_bench import statistics
from dipa_bench.errors import UserError
from dipa_bench.runs import restore, transfer
from dipa_bench.runs.restore import LearnedRun
from dipa_bench.solvers import SolveParameters, build_solver
from dipa_bench.tracking import records
from dipa_bench.tracking.test_reads import TEST_READS

START = {"solve.start": "adjoint"}
ROWS = {
    "identity": {"set": START},
    "ldipa": {"set": START},
    "convolution+supervised": {"set": START},
    "hessian": {"set": START},
    "lmmse-preconditioner": {},
    "lmmse": {},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, lab: SimpleNamespace) -> Path:
    """The results folder of a study, made once."""
    budget = {"trials": 2, "train_images": 6}
    return lab.kept(tmp_path_factory.mktemp("transfer"), ROWS, budget, test_noise=0.03)


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "mlruns")
    return tmp_path / "mlruns"


@pytest.fixture
def open_run(root: Path) -> Callable[[str], LearnedRun]:
    return lambda entry: dipa_bench.load(f"kept/{entry}", root, "cpu")


def moved(run: LearnedRun, *sets: str, **options) -> list[transfer.Line]:
    return transfer.transfer(run, transfer.changed(run.study, sets), **options)


def reads(root: Path) -> list[str]:
    log = (root / "studies" / "kept" / TEST_READS).read_text().splitlines()
    return [line.split(" ", 1)[1] for line in log if "evaluate" in line]


@pytest.mark.parametrize("entry", ROWS)
def test_at_home_the_study_repeats_itself(entry: str, open_run, root: Path) -> None:
    lines = moved(open_run(entry))
    assert [line.name for line in lines] == [entry, "identity"][: 1 if entry == "identity" else 2]
    for line in lines:
        folder = root / "studies" / "kept" / line.name
        recorded = records.read(folder).metrics
        assert line.psnr.mean == pytest.approx(recorded["test/psnr"], abs=1e-5)
        assert line.psnr.low == recorded["test/psnr_low"]
        assert line.ssim.high == recorded["test/ssim_high"]
        kept = pd.read_parquet(folder / "images.parquet")
        assert line.images["psnr"].tolist() == kept["psnr"].tolist()
        assert line.images["image"].tolist() == kept["image"].tolist()
        assert line.images["ssim"].tolist() == kept["ssim"].tolist()
    if entry != "identity":
        tables = [line.images for line in lines]
        assert lines[0].difference == statistics.paired_difference(*tables)
    assert lines[-1].difference is None
    assert reads(root) == [f"evaluate kept / {entry}: the study's"]


def test_another_number_of_iterations(open_run, root: Path) -> None:
    """Against a solver that is put together by hand."""
    run = open_run("ldipa")
    lines = moved(run, "problem.iterations=5")
    assert [line.setting for line in lines] == ["the study's"] * 2 + ["iterations=5"] * 2
    values = {name.removeprefix("solve."): value for name, value in lines[2].solve.items()}
    assert lines[2].solve == lines[0].solve
    task = run.task
    solver = build_solver(
        "pnp-fista",
        task.prior,
        SolveParameters(**values),
        iterations=5,
        largest=task.norm_squared(),
    )
    images = task.images.test("a test")
    truth, y = task.pixels(images), task.tested.measure(images)
    with torch.no_grad():
        estimate = solver.run(y, task.student, run.operator).estimate
    expected = -10 * (estimate - truth).square().mean((1, 2, 3)).log10().double()
    got = torch.tensor(lines[2].images["psnr"].tolist(), dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    assert reads(root) == [
        f"evaluate kept / ldipa: {name}" for name in (transfer.HOME, "iterations=5")
    ]


def test_between_solvers(open_run) -> None:
    run = open_run("convolution+supervised")
    heard = []
    lines = moved(run, "problem.solver=red-fista", trials=5, tell=heard.append)
    assert len(heard) == 2
    away = lines[2:]
    assert [line.name for line in away] == ["convolution+supervised", "identity"]
    assert all("solve.weight" in line.solve for line in away)
    assert all(line.source == "best of 5 on validation images" and line.tuned for line in away)
    assert all(line.psnr.mean > 10 for line in away)
    assert away[0].difference.mean == pytest.approx(away[0].psnr.mean - away[1].psnr.mean, abs=1e-3)
    assert all(line.solve["solve.start"] == "adjoint" for line in away)  # the entry's frozen one


def test_tuning_takes_the_best_on_validation_images(open_run) -> None:
    """More trials are never worse there, and the first are what was known before."""
    run = open_run("ldipa")
    context = transfer._context_of(run, transfer.changed(run.study, ["problem.prior=tv"]))
    identity = restore.tuned_identity(run)
    carried = {
        one.entry.name: transfer._carried(one, context.task, True) for one in (run, identity)
    }
    task = context.task
    truth = task.pixels(task.images.validation)
    y = task.measure(task.images.validation)

    def quality(values) -> float:
        with torch.no_grad():
            found = run.at(context, values).run(y, task.student).estimate
        return (-10 * (found - truth).square().mean((1, 2, 3)).log10()).mean().item()

    plain = transfer._Entrant(run, carried["ldipa"], "a test")
    scores = [
        quality(transfer._tuned(plain, context, carried, trials).values)
        for trials in (1, 2, 3, 8, 18)
    ]
    assert scores == sorted(scores)
    assert scores[0] == pytest.approx(quality(carried["ldipa"]))
    assert scores[1] == pytest.approx(
        max(quality(carried["ldipa"]), quality(carried["ldipa"] | solve(carried["identity"])))
    )
    assert scores[-1] > scores[0]


def solve(values) -> dict:
    return {name: value for name, value in values.items() if name.startswith("solve.")}


def test_a_strength_of_another_unit_is_not_carried(open_run) -> None:
    run = open_run("ldipa")
    run = replace(
        run,
        record=run.record.model_copy(
            update={"params": run.record.params | {"solve.strength": 0.123}}
        ),
    )
    for prior, expected in (("tv", False), ("dncnn-small", True)):
        context = transfer._context_of(run, transfer.changed(run.study, [f"problem.prior={prior}"]))
        carried = transfer._carried(run, context.task, True)
        assert (carried["solve.strength"] == 0.123) is expected
        assert carried["solve.step"] == run.parameters["solve.step"]
    assert context.task.prior.strength.name == "sigma"


def test_absolute_steps_become_relative_for_a_search_alone(open_run) -> None:
    run = open_run("identity")
    absolute = run.record.params | {"solve.units": "absolute", "solve.step": 0.4}
    run = replace(run, record=run.record.model_copy(update={"params": absolute}))
    assert transfer._carried(run, run.task, False)["solve.step"] == 0.4
    found = transfer._carried(run, run.task, True)
    assert found["solve.units"] == "relative"
    assert found["solve.step"] == pytest.approx(0.4 * run.task.norm_squared())


@pytest.mark.exhaustive
def test_trials_by_default(open_run, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    seen = []

    def tuned(entrant, context, carried, trials):
        seen.append(trials)
        return entrant

    monkeypatch.setattr(transfer, "_tuned", tuned)
    moved(open_run("ldipa"), "problem.iterations=4")
    assert seen == []
    moved(open_run("ldipa"), "problem.prior=tv")
    assert seen == [16, 16]
    moved(open_run("ldipa"), "problem.prior=tv", trials=0)
    assert seen == [16, 16]
    shutil.rmtree(root / "studies" / "kept" / "identity")
    moved(open_run("ldipa"), "problem.iterations=4")
    assert seen == [16] * 4
    away = moved(open_run("ldipa"), "problem.iterations=4", trials=0)
    assert [line.source for line in away] == [
        transfer.RECORDED,
        transfer.RECORDED,
        "those of ldipa",
    ]
    assert seen == [16] * 4
    assert [line.name for line in away] == ["ldipa", "ldipa", "identity"]


def test_operators_without_a_shape_go_to_other_sizes_and_operators(open_run) -> None:
    lines = moved(open_run("convolution+supervised"), "problem.size=20")
    assert lines[2].setting == "size=20"
    lines = moved(open_run("ldipa"), "problem.options.factor=2")
    assert lines[2].setting == "options.factor=2"
    assert lines[2].psnr.mean > lines[0].psnr.mean + 1  # four times the measurements


def test_analytic_operators_are_made_anew(open_run) -> None:
    run = open_run("hessian")
    context = transfer._context_of(run, transfer.changed(run.study, ["problem.options.factor=2"]))
    made = run.at(context)
    fitted = run.method.fit(
        context.task, run.method.parameters(), restore._fit_context(context, 0)
    ).preconditioner
    assert type(made.preconditioner) is type(fitted)
    assert made.preconditioner.mu == pytest.approx(
        run.parameters["mu"] * context.task.norm_squared()
    )


@pytest.mark.parametrize(
    ("entry", "sets", "reason"),
    [
        ("ldipa", ["problem.size=20"], r"works on images of shape \(1, 16, 16\)"),
        ("lmmse", ["problem.iterations=4"], "keeps no numbers that could be moved"),
        ("lmmse-preconditioner", ["problem.prior=tv"], "keeps no numbers"),
        ("ldipa", ["problem.prio=tv"], "did you mean 'prior'"),
        ("ldipa", ["problem.solver=admm"], "problem.solver = 'admm'"),
        ("ldipa", ["problem.options.facto=3"], "did you mean 'factor'"),
        ("ldipa", ["budget.trials=3"], "changes the problem alone"),
        ("ldipa", ["solve.step=1"], "changes the problem alone"),
        ("ldipa", ["problem.size"], "is not key=value"),
        ("ldipa", ["problem.prior=nothing"], "unknown prior"),
    ],
)
def test_what_cannot_be_done_is_said_before_a_test_image_is_read(
    entry: str, sets: list[str], reason: str, open_run, root: Path
) -> None:
    with pytest.raises(UserError, match=reason):
        moved(open_run(entry), *sets)
    assert reads(root) == []


def test_other_images_are_refused(open_run, root: Path) -> None:
    folder = root / "studies" / "kept" / "ldipa"
    record = records.read(folder)
    records.write(folder, record.model_copy(update={"data_digest": "0123456789abcdef"}))
    with pytest.raises(UserError, match="bring them back"):
        moved(open_run("ldipa"))


def test_divergence_is_a_note_and_no_number(open_run) -> None:
    run = open_run("ldipa/seed-0")
    wild = run.record.model_copy(update={"params": run.record.params | {"solve.step": 1e6}})
    run = replace(run, record=wild)
    lines = moved(run, "problem.iterations=8")
    assert math.isnan(lines[2].psnr.mean)
    assert math.isnan(lines[2].difference.mean)
    assert "left the image range" in lines[2].note
    assert not math.isnan(lines[3].psnr.mean)


def test_nothing_that_works_is_one_line(open_run) -> None:
    run = open_run("ldipa")
    entry = replace(
        run.entry,
        spec=run.entry.spec.model_copy(
            update={"set": {"solve.step": 1e9, "solve.start": "adjoint"}}
        ),
    )
    carried = {"ldipa": dict(run.parameters) | {"solve.step": 1e9}}
    with pytest.raises(UserError, match="none of 3 solver settings of ldipa worked, the last:"):
        entrant = transfer._Entrant(replace(run, entry=entry), carried["ldipa"], "a test")
        transfer._tuned(entrant, run.context, carried, 3)


def test_the_table_has_everything(open_run) -> None:
    lines = moved(open_run("ldipa"))
    found = transfer.table(lines)
    assert found["row"].tolist() == ["ldipa", "identity"]
    assert found["psnr"].tolist() == [line.psnr.mean for line in lines]
    assert found["difference"].tolist()[0] == lines[0].difference.mean
    assert math.isnan(found["difference"][1])
    assert found["solve.start"].tolist() == ["adjoint", "adjoint"]


def test_tuning_sees_validation_images_and_tries_what_any_entrant_brought(
    open_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seen = open_run("ldipa"), []
    own = dict(run.parameters) | {"solve.step": 0.51}
    other = dict(run.parameters) | {"solve.step": 0.77}
    real = transfer.evaluate

    def spied(made, task, images, **options):
        seen.append((made.solver.step_size * task.norm_squared(), images.names))
        return real(made, task, images, **options)

    monkeypatch.setattr(transfer, "evaluate", spied)
    entrant = transfer._Entrant(run, own, "a test")
    transfer._tuned(entrant, run.context, {"ldipa": own, "identity": other}, 2)
    assert [step for step, _ in seen] == pytest.approx([0.51, 0.77])
    assert {names for _, names in seen} == {run.task.images.validation.names}
