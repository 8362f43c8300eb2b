"""Damage to a journal costs nothing: the trials' records bring it back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState

from dipa_bench.errors import UserError
from dipa_bench.execution.study_folder import study_folder
from dipa_bench.search import journal
from dipa_bench.search.sampling import NumberedSampler
from dipa_bench.tracking import records
from dipa_bench.tracking.records import RunRecord


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def garble(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lines[len(lines) // 2] = b"\x00\xff garbage\n"
    path.write_bytes(b"".join(lines))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def lose(path: Path) -> None:
    path.unlink()


def forget(path: Path) -> None:
    """Whole lines are missing at the end, as after a crash of the machine."""
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: len(lines) // 2]))


def nonsense(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = b'{"op_code": 99, "worker_id": "x"}\n'
    path.write_bytes(b"".join(lines))


def table(path: Path) -> None:
    path.write_bytes(b"[]\n" + path.read_bytes())


DAMAGES = [truncate, garble, empty, lose, forget, nonsense, table]


def opened(folder: Path) -> optuna.Study:
    backend = optuna.storages.journal.JournalFileBackend(str(folder / journal.JOURNAL))
    storage = optuna.storages.JournalStorage(backend)
    return optuna.load_study(study_name=folder.name, storage=storage)


def facts(folder: Path) -> list[tuple]:
    return [
        (trial.number, trial.state, trial.value, trial.params) for trial in opened(folder).trials
    ]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_damaged_journal_comes_back_from_the_records(
    damage: Callable[[Path], None],
    tmp_path: Path,
    lab: SimpleNamespace,
    caplog: pytest.LogCaptureFixture,
) -> None:
    study = lab.resolved(["identity"], trials=6)
    whole = lab.search(study, tmp_path / "a", "identity")
    lab.search(lab.resolved(["identity"], trials=4), tmp_path / "b", "identity")
    folder = study_folder(tmp_path / "b", "small") / "identity"
    before = facts(folder)
    kept = {path: path.read_bytes() for path in folder.glob("trial-*/record.json")}
    damage(folder / journal.JOURNAL)
    resumed = lab.search(study, tmp_path / "b", "identity")
    assert facts(folder)[:4] == before
    assert facts(folder) == facts(study_folder(tmp_path / "a", "small") / "identity")
    assert len(facts(folder)) == 6
    assert {path: path.read_bytes() for path in kept} == kept
    assert resumed.params == whole.params
    assert resumed.metrics["search/trials"] == 6
    aside = list(folder.glob("journal.log.damaged*"))
    if damage not in (empty, lose):
        assert len(aside) == 1
    assert len(aside) == sum("damaged journal" in text for text in caplog.messages)


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_trial_numbers_survive_a_gap(tmp_path: Path, lab: SimpleNamespace) -> None:
    """A record that was moved away is a trial to do again, under a new number."""
    study = lab.resolved(["identity"], trials=5)
    whole = lab.search(study, tmp_path, "identity")
    folder = study_folder(tmp_path, "small") / "identity"
    before = records.read(folder / "trial-0002")
    (folder / "trial-0002" / records.RECORD).unlink()
    truncate(folder / journal.JOURNAL)
    resumed = lab.search(study, tmp_path, "identity")
    again = records.read(folder / "trial-0005")
    assert again.notes["index"] == 2
    assert (again.params, again.seed) == (before.params, before.seed)
    assert again.metrics["val/psnr"] == before.metrics["val/psnr"]
    assert [fact[0] for fact in facts(folder)] == list(range(6))
    assert resumed.params == whole.params
    indices = [record.notes["index"] for record in journal.trial_records(folder)]
    assert sorted(indices) == list(range(5))


def test_damage_twice_sets_both_aside(tmp_path: Path, lab: SimpleNamespace) -> None:
    folder = study_folder(tmp_path, "small") / "identity"
    for trials in (2, 3, 4):
        lab.search(lab.resolved(["identity"], trials=trials), tmp_path, "identity")
        truncate(folder / journal.JOURNAL)
    lab.search(lab.resolved(["identity"], trials=4), tmp_path, "identity")
    assert len(list(folder.glob("journal.log.damaged-*"))) == 3


def test_a_lock_that_a_killed_process_held_does_not_block(
    tmp_path: Path, lab: SimpleNamespace
) -> None:
    lab.search(lab.resolved(["identity"], trials=2), tmp_path, "identity")
    folder = study_folder(tmp_path, "small") / "identity"
    (folder / f"{journal.JOURNAL}.lock").symlink_to(folder / journal.JOURNAL)
    started = time.monotonic()
    lab.search(lab.resolved(["identity"], trials=3), tmp_path, "identity")
    assert len(journal.trial_records(folder)) == 3
    assert time.monotonic() - started < 20  # Optuna's patience with such a lock is 30 s


@pytest.mark.parametrize("place", ["trial-0001", "seed-0"])
def test_a_damaged_record_is_one_line(place: str, tmp_path: Path, lab: SimpleNamespace) -> None:
    study = lab.resolved(["identity"], trials=2)
    lab.search(study, tmp_path, "identity")
    path = study_folder(tmp_path, "small") / "identity" / place / records.RECORD
    path.write_text(path.read_text()[:100])
    with pytest.raises(UserError, match="damaged run record") as caught:
        lab.search(study, tmp_path, "identity")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_damaged_study_file_is_one_line(tmp_path: Path, lab: SimpleNamespace) -> None:
    study = lab.resolved(["identity"], trials=1)
    lab.context(study, tmp_path)
    (study_folder(tmp_path, "small") / "study.json").write_text('{"task": ')
    with pytest.raises(UserError, match=r"damaged study file .*study\.json"):
        lab.context(study, tmp_path)


def test_ranges_that_changed_are_told(tmp_path: Path) -> None:
    from optuna.distributions import FloatDistribution

    narrow, wide = ({"x": FloatDistribution(0.0, high)} for high in (1.0, 2.0))
    study = journal.open_study(
        tmp_path / "row", narrow, NumberedSampler(narrow, 1), journal.Objectives()
    )
    study.tell(study.ask(narrow), 1.0)
    with pytest.raises(UserError, match="searched x in"):
        journal.open_study(tmp_path / "row", wide, NumberedSampler(wide, 1), journal.Objectives())


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"seed": 1}, "seed = 0, not 1"),
        ({"protocol": "published"}, "problem.iterations = 10, not 20"),
        ({"sets": ["problem.iterations=7"]}, "problem.iterations = 10, not 7"),
        ({"sets": ["budget.epochs=7"]}, "budget.epochs = 1, not 7"),
        ({"sets": ["solve.step=0.5"]}, "methods.identity.set.solve.step = None, not 0.5"),
    ],
)
def test_a_name_stands_for_one_study(
    settings: dict, key: str, tmp_path: Path, lab: SimpleNamespace
) -> None:
    lab.context(lab.resolved(["identity"]), tmp_path)
    with pytest.raises(UserError) as caught:
        lab.context(lab.resolved(["identity"], **settings), tmp_path)
    assert key in str(caught.value)
    assert "give another --name" in str(caught.value)


def test_rows_and_trials_may_be_added(tmp_path: Path, lab: SimpleNamespace) -> None:
    lab.context(lab.resolved({"identity": {"set": {"solve.step": 0.5}}}), tmp_path)
    lab.context(lab.resolved(["hessian"], trials=9), tmp_path)
    kept = json.loads((study_folder(tmp_path, "small") / "study.json").read_text())
    assert set(kept["methods"]) == {"identity", "hessian"}
    with pytest.raises(UserError, match=r"set\.solve\.step = 0\.5, not None"):
        lab.context(lab.resolved(["identity", "hessian"]), tmp_path)


def test_a_study_is_not_continued_with_other_images(tmp_path: Path, lab: SimpleNamespace) -> None:
    study = lab.resolved(["identity"])
    lab.context(study, tmp_path)
    lab.context(study, tmp_path)
    path = study_folder(tmp_path, study.name) / "task.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"images": "0123"}))
    with pytest.raises(UserError, match="begun with other images"):
        lab.context(study, tmp_path)


def test_a_trial_that_was_entered_but_never_begun_does_not_hold_its_index(
    tmp_path: Path, lab: SimpleNamespace
) -> None:
    """As after a stop between the two; a search would wait for it for ever."""
    lab.search(lab.resolved(["identity"], trials=2), tmp_path, "identity")
    folder = study_folder(tmp_path, "small") / "identity"
    opened(folder).enqueue_trial({}, user_attrs={journal.INDEX: 2})
    lab.search(lab.resolved(["identity"], trials=4), tmp_path, "identity")
    ended = journal.trial_records(folder)
    assert [(trial.number, trial.index) for trial in ended] == [(0, 0), (1, 1), (3, 2), (4, 3)]


@pytest.mark.parametrize(
    ("state", "metrics", "expected"),
    [
        ("finished", {journal.PSNR: 20.0}, TrialState.COMPLETE),
        ("pruned", {}, TrialState.PRUNED),
        ("pruned", {journal.ESTIMATE: 19.0}, TrialState.COMPLETE),
        ("diverged", {}, TrialState.FAIL),
        ("failed", {}, TrialState.FAIL),
        ("interrupted", {}, TrialState.FAIL),
    ],
)
def test_optuna_learns_from_what_has_a_value(
    state: str, metrics: dict[str, float], expected: TrialState
) -> None:
    """Samplers take a pruned trial for one worse than others; a failed one says nothing."""
    record = RunRecord(kind="trial", study="s", task="t", method="m", state=state, metrics=metrics)
    assert journal.state_of(record) == expected
