"""Methods that fail in any way are recorded as such, and the study goes on."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import optuna
import pytest
import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file

from dipa_bench import digests, files
from dipa_bench.config.entry import Entry
from dipa_bench.errors import Diverged, UserError
from dipa_bench.execution import artifacts
from dipa_bench.execution.study_folder import claimed, open_context, run_entry, study_folder
from dipa_bench.methods import published_solve
from dipa_bench.parameters import Parameters, Search
from dipa_bench.preconditioners import Dense, Identity
from dipa_bench.search.journal import trial_records
from dipa_bench.solvers import SolveParameters
from dipa_bench.testing import small_task
from dipa_bench.tracking import records
from dipa_bench.tracking.records import RunRecord


def trials(root: Path, entry: str) -> list[RunRecord]:
    return trial_records(study_folder(root, "small") / entry)


def breaking(error: BaseException, when=lambda context, values: True):
    """A fit that raises `error` where `when` says so."""

    def fit(task, values, context):
        if when(context, values):
            raise error
        return context.reconstructor(task, values.solve, Identity())

    return fit


ENDINGS = [
    (RuntimeError("out of luck\nsecond line"), "failed", "RuntimeError: out of luck"),
    (RuntimeError(), "failed", "RuntimeError"),
    (UserError("LMMSE cannot start here"), "failed", "LMMSE cannot start here"),
    (Diverged("loss nan\nmore"), "diverged", "loss nan"),
    (MemoryError("no room"), "failed", "MemoryError: no room"),
    (SystemExit(3), "failed", "SystemExit: 3"),
    (RecursionError("deep"), "failed", "RecursionError: deep"),
    (
        FileNotFoundError(2, "No such file", "my.csv"),
        "failed",
        "FileNotFoundError: [Errno 2] No such file: 'my.csv'",
    ),
]


@pytest.mark.parametrize(("error", "state", "reason"), ENDINGS)
def test_a_trial_that_fails_is_recorded_and_the_others_count(
    error: BaseException, state: str, reason: str, tmp_path: Path, lab, register
) -> None:
    register("moody", breaking(error, lambda context, values: values.solve.momentum != "textbook"))
    found = lab.search(lab.resolved(["moody"], trials=6), tmp_path, "moody")
    states = [trial.state for trial in trials(tmp_path, "moody")]
    assert states[:2] == ["finished", state]  # defaults, then the published momentum
    assert set(states) == {"finished", state}
    bad = trials(tmp_path, "moody")[1]
    assert bad.reason == reason
    traceback = study_folder(tmp_path, "small") / "moody" / "trial-0001" / "traceback.txt"
    assert traceback.exists() == (state == "failed")
    assert found.state == "finished"
    assert found.params["solve.momentum"] == "textbook"
    assert found.metrics["search/trials"] == 6


@pytest.mark.parametrize(("error", "state", "reason"), ENDINGS)
def test_a_method_that_always_fails_says_why(
    error: BaseException, state: str, reason: str, tmp_path: Path, lab, register
) -> None:
    register("broken", breaking(error))
    heard = lab.Heard()
    found = lab.search(lab.resolved(["broken"]), tmp_path, "broken", heard)
    assert (found.state, found.reason) == (state, f"all 3 trials {state}: {reason}")
    assert heard.records[-1] == found
    assert records.read(study_folder(tmp_path, "small") / "broken") == found
    assert not list((study_folder(tmp_path, "small") / "broken").glob("seed-*"))


def test_different_reasons_are_not_thrown_together(tmp_path: Path, lab, register) -> None:
    def fit(task, values, context):
        raise Diverged("nan") if values.solve.momentum == "textbook" else ValueError("bad")

    register("both", fit)
    found = lab.search(lab.resolved(["both"], trials=2), tmp_path, "both")
    assert found.state == "diverged"
    assert found.reason == "none of 2 trials finished (diverged, failed), the last: ValueError: bad"


def test_nan_is_divergence(tmp_path: Path, lab, register) -> None:
    class Poison(Identity):
        def forward(self, gradient, state):
            return gradient * float("nan")

    def fit(task, values, context):
        return context.reconstructor(task, values.solve, Poison())

    register("poison", fit)
    found = lab.search(lab.resolved(["poison"]), tmp_path, "poison")
    assert found.state == "diverged"
    assert "left the image range" in found.reason
    assert "val/psnr" not in trials(tmp_path, "poison")[0].metrics


def test_a_perfect_score_is_no_number(tmp_path: Path, lab, register) -> None:
    class Oracle:
        preconditioner = None

        def __init__(self, task):
            self.task = task

        def run(self, measurement, physics, **options):
            images = self.task.images.validation
            known = self.task.measure(images)
            found = [int((known - y).flatten(1).norm(dim=1).argmin()) for y in measurement]
            truth = self.task.pixels(images)[found]
            return SimpleNamespace(estimate=truth, curves=None, operator_calls=0, denoiser_calls=0)

    register("oracle", lambda task, values, context: Oracle(task))
    found = lab.search(lab.resolved(["oracle"]), tmp_path, "oracle")
    assert found.state == "diverged"
    assert "mean PSNR is inf" in found.reason


def test_what_is_no_reconstructor_is_a_failure(tmp_path: Path, lab, register) -> None:
    register("none", lambda task, values, context: None)
    found = lab.search(lab.resolved(["none"]), tmp_path, "none")
    assert found.state == "failed"
    assert "AttributeError" in found.reason


def journal_of(folder: Path) -> optuna.Study:
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "journal.log"))
    storage = optuna.storages.JournalStorage(backend)
    return optuna.load_study(study_name=folder.name, storage=storage)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_pruned_trials_are_pruned(tmp_path: Path, lab, register) -> None:
    def fit(task, values, context):
        quality = 10.0 if values.solve.momentum == "none" else 20.0
        context.series["val/psnr_by_epoch"] = [(1, quality), (2, float("nan"))]
        context.report(1, quality)
        return context.reconstructor(task, values.solve, Identity())

    register("slow", fit)
    study = lab.resolved(["slow"], trials=15, budget={"epochs": 2})
    found = lab.search(study, tmp_path, "slow")
    ended = trials(tmp_path, "slow")
    pruned = [trial for trial in ended if trial.state == "pruned"]
    assert pruned
    assert all(trial.number >= 4 for trial in pruned)
    assert all("10.00 dB at step 1 was below the median" in trial.reason for trial in pruned)
    assert all(trial.params["solve.momentum"] != "textbook" for trial in pruned)
    assert all(trial.series["val/psnr_by_epoch"] == [(1, 10.0)] for trial in pruned)
    assert found.state == "finished"
    assert found.notes["winner"] not in {trial.number for trial in pruned}
    assert len(ended) == 15
    folder = study_folder(tmp_path, "small") / "slow"
    states = [trial.state.name for trial in journal_of(folder).trials]
    assert states == ["PRUNED" if trial in pruned else "COMPLETE" for trial in ended]


def test_a_method_that_does_not_apply_is_skipped(tmp_path: Path, lab, register) -> None:
    register("elsewhere", skip=lambda task: f"not for {task.name}\nreally")
    found = lab.search(lab.resolved(["elsewhere"]), tmp_path, "elsewhere")
    assert (found.state, found.reason) == ("skipped", "not for sr")
    assert not trials(tmp_path, "elsewhere")


@pytest.mark.parametrize("broken", ["skip", "published"])
def test_a_stranger_whose_answers_raise_fails_alone(
    broken: str, tmp_path: Path, lab, register
) -> None:
    def answer(task):
        raise KeyError("strength")

    register("stranger", **{broken: answer})
    found = lab.search(lab.resolved(["stranger"]), tmp_path, "stranger")
    assert (found.state, found.reason) == ("failed", "KeyError: 'strength'")


def test_odd_notes_and_curves_do_not_stop_a_study(tmp_path: Path, lab, register) -> None:
    def fit(task, values, context):
        context.notes |= {"weights": torch.ones(2), "index": 99, "winner": 99, 3: [1]}
        context.series["loss"] = [(i, 1.0 / (i + 1)) for i in range(1000)]
        return context.reconstructor(task, values.solve, Identity())

    register("chatty", fit)
    found = lab.search(lab.resolved(["chatty"]), tmp_path, "chatty")
    ended = trials(tmp_path, "chatty")
    assert [trial.notes["index"] for trial in ended] == [0, 1, 2]
    assert found.notes["winner"] in (0, 1, 2)
    assert ended[0].notes["weights"] == "tensor([1., 1.])"
    points = ended[0].series["loss"]
    assert (len(points), points[0], points[-1]) == (100, (0, 1.0), (999, 1e-3))


def test_curves_without_sense_are_a_failure(tmp_path: Path, lab, register) -> None:
    def fit(task, values, context):
        context.series["loss"] = ["one", "two"]
        return context.reconstructor(task, values.solve, Identity())

    register("mute", fit)
    assert lab.search(lab.resolved(["mute"]), tmp_path, "mute").state == "failed"


def test_a_winner_that_fails_in_its_test_is_the_methods_end(tmp_path: Path, lab, register) -> None:
    def in_test(context, values) -> bool:
        return context.seed == digests.seed(0, "seed", 0)

    register("unlucky", breaking(Diverged("bad luck"), in_test), stochastic=True)
    found = lab.search(lab.resolved(["unlucky"]), tmp_path, "unlucky")
    assert found.state == "diverged"
    assert found.reason == "the winner diverged: bad luck"
    assert "test/psnr" not in found.metrics


# ---------------------------------------------------------------------------- disks and users


FULL = OSError(errno.ENOSPC, "No space left on device", "/disk/full")
RUST = SafetensorError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("error", [FULL, RUST])
def test_a_full_disk_stops_the_study_and_the_trial_is_run_again(
    error: Exception, tmp_path: Path, lab, register
) -> None:
    full = []

    def fit(task, values, context):
        if full:
            raise error
        return context.reconstructor(task, values.solve, Identity())

    register("plain", fit)
    lab.search(lab.resolved(["plain"], trials=2), tmp_path, "plain")
    full.append(True)
    study = lab.resolved(["plain"], trials=4)
    with pytest.raises(OSError) as caught:
        lab.search(study, tmp_path, "plain")
    assert caught.value.errno == errno.ENOSPC
    assert [trial.state for trial in trials(tmp_path, "plain")] == ["finished"] * 2 + ["running"]
    full.clear()
    found = lab.search(study, tmp_path, "plain")
    ended = trials(tmp_path, "plain")
    assert [trial.state for trial in ended] == ["finished"] * 2 + ["interrupted"] + ["finished"] * 2
    assert ended[2].params == ended[3].params
    assert found.metrics["search/trials"] == 4


def test_a_disk_that_fills_up_while_writing(tmp_path: Path, lab, monkeypatch) -> None:
    study = lab.resolved(["identity"], trials=4)
    real, calls = files.os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) == 6:
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        real(source, target)

    monkeypatch.setattr(files.os, "replace", replace)
    with pytest.raises(OSError, match="No space left"):
        lab.search(study, tmp_path, "identity")
    monkeypatch.undo()
    assert not list(tmp_path.rglob(".*.tmp*"))
    lab.search(study, tmp_path, "identity")
    ended = [t for t in trials(tmp_path, "identity") if t.state == "finished"]
    assert [trial.notes["index"] for trial in ended] == [0, 1, 2, 3]


def test_ctrl_c_marks_the_trial_and_the_next_run_repeats_it(tmp_path: Path, lab, register) -> None:
    pressed = [True]
    register("plain", breaking(KeyboardInterrupt(), lambda context, values: bool(pressed)))
    study = lab.resolved(["plain"], trials=2)
    with pytest.raises(KeyboardInterrupt):
        lab.search(study, tmp_path, "plain")
    (stopped,) = trials(tmp_path, "plain")
    assert (stopped.state, stopped.reason) == ("interrupted", "stopped by the user")
    pressed.clear()
    lab.search(study, tmp_path, "plain")
    ended = trials(tmp_path, "plain")
    assert [trial.state for trial in ended] == ["interrupted", "finished", "finished"]
    assert ended[1].params == ended[0].params


def test_one_study_is_run_by_one_process(tmp_path: Path) -> None:
    with claimed(tmp_path / "study"):
        with pytest.raises(UserError, match="'study' is being run by another process"):
            with claimed(tmp_path / "study"):
                pass
    with claimed(tmp_path / "study"):
        pass


# ---------------------------------------------------------------------------- what is kept


def test_a_finished_study_is_not_run_again(tmp_path: Path, lab, monkeypatch) -> None:
    study = lab.resolved(["ldipa"])
    first = lab.search(study, tmp_path, "ldipa")
    folder = study_folder(tmp_path, "small") / "ldipa"
    kept_files = {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.parent != folder
    }
    heard = lab.Heard()
    place = lab.context(study, tmp_path)
    second = lab.search(study, tmp_path, "ldipa", heard)
    assert [record.kind for record in heard.records] == ["method"]
    assert place.task.images.reads == []
    assert {path: path.read_bytes() for path in kept_files} == kept_files
    assert (first.params, first.metrics) == (second.params, second.metrics)


def test_pictures_and_matrix_survive_a_kill_after_the_test(
    tmp_path: Path, lab, monkeypatch
) -> None:
    study = lab.resolved(["ldipa"])
    real = records.write

    def write(folder: Path, record: RunRecord) -> None:
        if (record.kind, record.state) == ("method", "finished"):
            raise SystemError("killed")
        real(folder, record)

    monkeypatch.setattr(records, "write", write)
    with pytest.raises(SystemError):
        lab.search(study, tmp_path, "ldipa")
    monkeypatch.undo()
    lab.search(study, tmp_path, "ldipa")
    folder = study_folder(tmp_path, "small") / "ldipa"
    assert load_file(folder / "matrix.safetensors")["P"].shape == (256, 256)
    pictures = load_file(folder / "pictures.safetensors")
    assert {name.split("/")[0] for name in pictures} == {
        "original",
        "measurement",
        "reconstruction",
    }
    assert len(pictures) == 3 * artifacts.PICTURES
    assert not list(folder.glob("seed-*/pictures.safetensors"))


def test_the_matrix_is_the_operator(tmp_path: Path, lab) -> None:
    lab.search(lab.resolved(["ldipa"]), tmp_path, "ldipa")
    folder = study_folder(tmp_path, "small") / "ldipa"
    state = load_file(folder / "operator.safetensors")
    matrix = load_file(folder / "matrix.safetensors")["P"]
    assert torch.equal(matrix, state["matrix"][0])


def test_a_new_winner_is_fitted_and_shown_anew(tmp_path: Path, lab) -> None:
    few = lab.search(lab.resolved(["identity"], trials=1), tmp_path, "identity")
    folder = study_folder(tmp_path, "small") / "identity"
    before = load_file(folder / "pictures.safetensors")
    many = lab.search(lab.resolved(["identity"], trials=8), tmp_path, "identity")
    assert many.params != few.params
    assert records.read(folder / "seed-0").params == many.params
    after = load_file(folder / "pictures.safetensors")
    changed = [name for name in after if not torch.equal(after[name], before[name])]
    assert changed
    assert all(name.startswith("reconstruction/") for name in changed)


def test_the_first_of_equal_trials_wins(tmp_path: Path, lab, register) -> None:
    from baselines.controls import back_project
    from dipa_bench.methods import Direct

    register("same", lambda task, values, context: Direct(back_project))
    assert lab.search(lab.resolved(["same"]), tmp_path, "same").notes["winner"] == 0


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX locks")
def test_published_rules_run_once(tmp_path: Path, lab) -> None:
    study = lab.resolved(["identity"], trials=5, protocol="published")
    found = lab.search(study, tmp_path, "identity")
    assert len(trials(tmp_path, "identity")) == 1
    assert found.params["solve.units"] == "absolute"
    assert found.protocol == "published"


def test_the_matrix_of_a_complex_operator(tmp_path: Path, lab) -> None:
    """Shared by real and imaginary part it is kept once; pictures are magnitudes in [0, 1]."""
    study = lab.resolved(["ldipa"], trials=1)
    context = open_context(study, tmp_path, small_task("mri", seed=study.seed))
    run_entry(context, Entry.of(study, "ldipa"), lab.Heard())
    folder = study_folder(tmp_path, "small") / "ldipa"
    matrix = load_file(folder / "matrix.safetensors")["P"]
    assert matrix.shape == (256, 256)
    assert torch.equal(matrix, load_file(folder / "operator.safetensors")["matrix"][0])
    pictures = load_file(folder / "pictures.safetensors")
    for picture in pictures.values():
        assert picture.shape == (16, 16)
        assert 0 <= picture.min() and picture.max() <= 1
    images = context.task.images.test("pictures")
    expected = torch.linalg.vector_norm(images.pixels[0], dim=0)
    torch.testing.assert_close(pictures[f"original/{images.names[0]}"], expected.clamp(0, 1))


def test_a_matrix_over_all_channels_is_kept_whole() -> None:
    """Only one that repeats along the diagonal stands for every channel."""
    block = torch.rand(4, 4)
    other = torch.block_diag(block, 2 * block)
    mixing = torch.rand(8, 8)
    assert torch.equal(artifacts._of_one_channel(torch.block_diag(block, block), 2), block)
    assert torch.equal(artifacts._of_one_channel(other, 2), other)
    assert torch.equal(artifacts._of_one_channel(mixing, 2), mixing)
    assert torch.equal(artifacts._of_one_channel(block, 1), block)


def test_the_lmmse_start_reads_the_images_of_the_budget(tmp_path: Path, lab) -> None:
    """No entry has more training images than another: its mean is that of the first two."""
    task = small_task()
    for count in (2, None):
        study = lab.resolved(["identity"], budget={"train_images": count})
        context = open_context(study, tmp_path / str(count), task)
        expected = task.pixels(task.images.train.first(count)).mean(0)
        torch.testing.assert_close(context.lmmse(task).whole.mean, expected)


@pytest.mark.parametrize(("block", "reason"), [(3, "operator.block = 3"), (4, None)])
def test_what_a_row_freezes_decides_whether_it_can_be_had(block: int, reason, lab) -> None:
    """A frozen structure that no image has is skipped with its reason, not tried and failed."""
    entries = {"block-circulant+greedy": {"set": {"operator.block": block}}}
    study = lab.resolved(entries)
    found = Entry.of(study, "block-circulant+greedy").obstacle(small_task())
    assert (found and found[0]) == (reason and "skipped")
    assert reason is None or reason in found[1]


def test_a_frozen_structure_can_cure_the_defaults(lab) -> None:
    """18 x 18 pixels have no blocks of 4, but of 2; what is not frozen is searched."""
    task = small_task("deblur", (1, 18, 18))
    for frozen, able in (({}, True), ({"operator.block": 4}, False), ({"operator.block": 2}, True)):
        study = lab.resolved({"block-circulant+distilled": {"set": frozen}})
        assert (Entry.of(study, "block-circulant+distilled").obstacle(task) is None) == able


class Picky(Parameters):
    size: Annotated[int, Field(ge=1, description="s"), Search(1, 20)] = 10
    solve: SolveParameters = SolveParameters()


def test_untuned_parameters_that_do_not_fit_are_no_obstacle(tmp_path: Path, lab, register) -> None:
    """The entry searches what does; trial 0 keeps the solver settings that all entries try."""

    def refuses(task, values):
        return "too large" if values.size > 4 else None

    register("picky", parameters=Picky, refuses=refuses, published=published_solve)
    assert lab.search(lab.resolved(["picky"], trials=6), tmp_path, "picky").state == "finished"
    found = trials(tmp_path, "picky")
    assert all(trial.params["size"] <= 4 for trial in found)
    plain = lab.search(lab.resolved(["identity"], trials=6), tmp_path, "identity")
    assert plain.state == "finished"
    for ours, theirs in zip(found, trials(tmp_path, "identity"), strict=True):
        solve = {key: value for key, value in ours.params.items() if key.startswith("solve.")}
        assert solve == theirs.params
    register("never", parameters=Picky, refuses=lambda task, values: "never fits")
    skipped = lab.search(lab.resolved(["never"]), tmp_path, "never")
    assert (skipped.state, skipped.reason) == ("skipped", "never fits")


def test_a_reconstructor_without_a_module_keeps_its_preconditioner(
    tmp_path: Path, lab, register
) -> None:
    """A stranger's that knows nothing of `module`."""

    class Plain:
        def __init__(self, made):
            self.preconditioner, self._made = made.preconditioner, made

        def run(self, *arguments, **options):
            return self._made.run(*arguments, **options)

    def fit(task, values, context):
        return Plain(context.reconstructor(task, values.solve, Dense(task.shape)))

    register("plain", fit)
    found = lab.search(lab.resolved(["plain"]), tmp_path, "plain")
    assert found.state == "finished"
    assert found.metrics["parameters"] == 256**2


def test_pruning_looks_at_the_best_epoch_so_far(tmp_path: Path, lab, register) -> None:
    """As the fit does, which keeps it: a late dip costs nothing."""

    def fit(task, values, context):
        for epoch, value in enumerate((20.0, 5.0, 5.0), start=1):
            context.report(epoch, value)
        return context.reconstructor(task, values.solve, Identity())

    register("dips", fit)
    lab.search(lab.resolved(["dips"], trials=7, budget={"epochs": 4}), tmp_path, "dips")
    journal = journal_of(study_folder(tmp_path, "small") / "dips")
    assert {trial.state.name for trial in journal.trials} == {"COMPLETE"}
    assert journal.trials[0].intermediate_values == {1: 20.0, 2: 20.0, 3: 20.0}
