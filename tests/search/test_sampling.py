"""What a trial tries: given points, Sobol, then a model; the same after any interruption."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from branched_space import BRANCHES, CONDITIONS, COUNTS
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from scipy.stats.qmc import Sobol

from dipa_bench import digests
from dipa_bench.config.entry import Entry
from dipa_bench.config.space import sobol_point
from dipa_bench.execution.study_folder import study_folder
from dipa_bench.methods import relative
from dipa_bench.search import journal, sampling
from dipa_bench.search.sampling import NumberedSampler, ask
from dipa_bench.testing import small_task
from dipa_bench.tracking import records
from dipa_bench.tracking.records import RunRecord

SPACE = {
    "a": FloatDistribution(-1.0, 3.0),
    "b": FloatDistribution(1e-4, 1e2, log=True),
    "c": CategoricalDistribution(("x", "y", "z")),
    "d": IntDistribution(2, 5),
}


def begun(study: optuna.Study, index: int, space=SPACE) -> optuna.Trial:
    """A trial of that index, whatever its number."""
    study.enqueue_trial({}, user_attrs={"index": index})
    return ask(study, space)


def draws(count: int, seed: int = 1, space=SPACE, points=(), value=None) -> list[dict]:
    """Parameters of the first `count` trials of a fresh in-memory search."""
    sampler = NumberedSampler(space, seed, points)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    found = []
    for index in range(count):
        trial = begun(study, index, space)
        found.append(trial.params)
        study.tell(trial, value(trial.params) if value else float(index))
    return found


def test_sobol_points_are_scipys_of_the_same_seed() -> None:
    unit = Sobol(4, scramble=True, rng=np.random.default_rng(77)).random(16)
    for index, (a, b, c, d) in enumerate(unit.tolist()):
        found = sobol_point(SPACE, index, 77)
        assert found["a"] == pytest.approx(-1 + 4 * a)
        assert found["b"] == pytest.approx(math.exp(math.log(1e-4) + b * math.log(1e6)))
        assert found["c"] == "xyz"[int(3 * c)]
        assert found["d"] == 2 + int(4 * d)
        assert type(found["d"]) is int


def test_every_choice_and_whole_number_gets_its_share() -> None:
    points = [sobol_point(SPACE, index, 5) for index in range(512)]
    for name, values in (("c", "xyz"), ("d", (2, 3, 4, 5))):
        counts = [sum(point[name] == value for point in points) for value in values]
        assert min(counts) > 0.9 * 512 / len(values)


def test_whole_numbers_on_a_logarithmic_scale_stay_inside() -> None:
    space = {"n": IntDistribution(1, 8, log=True)}
    found = [sobol_point(space, index, 3)["n"] for index in range(256)]
    assert set(found) == set(range(1, 9))
    assert found.count(1) > found.count(2) > found.count(4) > found.count(8)


@pytest.mark.parametrize("space", [{}, {"one": FloatDistribution(0.5, 0.5)}])
def test_a_space_without_freedom(space) -> None:
    assert draws(18, space=space) == [{name: 0.5 for name in space}] * 18


@pytest.mark.parametrize("kind", sampling.KINDS)
def test_the_index_counts_and_not_the_order(kind: str) -> None:
    """Trials that were numbered otherwise get the draws of their index, at the start-up."""
    study = optuna.create_study(sampler=NumberedSampler(SPACE, 1, kind=kind))
    found = {index: begun(study, index).params for index in (9, 3, 15, 0)}
    other = optuna.create_study(sampler=NumberedSampler(SPACE, 1, kind=kind))
    plain = [ask(other, SPACE).params for _ in range(16)]  # without an index: by number
    assert all(found[index] == plain[index] for index in found)


def test_draws_depend_on_seed_and_index_alone() -> None:
    assert draws(6, seed=1) == draws(12, seed=1)[:6]
    assert draws(6, seed=1)[0] != draws(6, seed=2)[0]
    assert draws(4) == [sobol_point(SPACE, index, 1) for index in range(4)]


def test_points_to_evaluate_come_first_and_are_filled_up() -> None:
    points = [{"a": 0.0, "b": 1.0, "c": "y", "d": 3}, {"a": 2.0}]
    found = draws(4, points=points)
    assert found[0] == points[0]
    assert found[1] == sobol_point(SPACE, 1, 1) | {"a": 2.0}
    assert found[2:] == [sobol_point(SPACE, index, 1) for index in (2, 3)]


def test_tpe_takes_over_and_goes_where_it_was_good() -> None:
    def bowl(params: dict) -> float:
        return -((params["a"] - 1) ** 2)

    count = sampling.STARTUP + 8
    found = draws(count, value=bowl)
    assert found == draws(count, value=bowl)
    assert found[:16] == [sobol_point(SPACE, index, 1) for index in range(16)]
    later = found[16:]
    assert all(point != sobol_point(SPACE, 16 + i, 1) for i, point in enumerate(later))
    mean = np.mean([abs(point["a"] - 1) for point in later])
    assert mean < np.mean([abs(point["a"] - 1) for point in found[:16]])
    assert found[16:] != draws(count, value=lambda params: -bowl(params))[16:]


def test_tpe_works_where_nothing_ever_finished() -> None:
    sampler = NumberedSampler(SPACE, 1)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    for index in range(18):
        study.tell(begun(study, index), state=optuna.trial.TrialState.FAIL)
    assert len(study.trials) == 18


# ---------------------------------------------------------------------------- in a study


def trials(root: Path, entry: str = "identity", name: str = "small") -> list[RunRecord]:
    found = journal.trial_records(study_folder(root, name) / entry)
    return [record for record in found if record.state != "interrupted"]


def essence(root: Path, entry: str = "identity") -> list[tuple]:
    return [
        (record.notes["index"], record.seed, record.params, record.metrics.get("val/psnr"))
        for record in trials(root, entry)
    ]


def test_defaults_then_published_then_sobol(tmp_path: Path, lab: SimpleNamespace) -> None:
    study = lab.resolved(["identity"], trials=4)
    lab.search(study, tmp_path, "identity")
    task, entry = small_task(), Entry.of(study, "identity")
    found = [record.params for record in trials(tmp_path)]
    assert found[0] == entry.defaults(task)
    published = relative(entry.published(task), task.norm_squared())
    space = entry.space(task)
    admitted = {name for name in space if space[name].admits(published[name])}
    assert admitted >= {"solve.momentum", "solve.start", "solve.strength"}
    seed = digests.seed(0, "solver settings")

    def drawn(index: int) -> dict:
        return sobol_point(entry.distributions(task), index, seed)

    expected = drawn(1) | {name: published[name] for name in admitted}
    assert {name: found[1][name] for name in space} == pytest.approx(expected)
    for index in (2, 3):
        assert {name: found[index][name] for name in space} == pytest.approx(drawn(index))


def test_absolute_published_settings_are_converted() -> None:
    values = {"solve.units": "absolute", "solve.step": 0.4, "solve.weight": 1.0}
    assert relative(values, 0.25)["solve.step"] == pytest.approx(0.1)
    assert relative(values, 0.25)["solve.weight"] == pytest.approx(4.0)
    assert relative({"solve.step": 0.4}, 0.25) == {"solve.step": 0.4}


@pytest.mark.exhaustive(after=1)
@pytest.mark.parametrize("entry", ["identity", "ldipa"])
def test_three_and_three_is_six(entry: str, tmp_path: Path, lab: SimpleNamespace) -> None:
    at_once, in_parts = tmp_path / "a", tmp_path / "b"
    whole = lab.search(lab.resolved([entry], trials=6), at_once, entry)
    lab.search(lab.resolved([entry], trials=3), in_parts, entry)
    assert len(trials(in_parts, entry)) == 3
    resumed = lab.search(lab.resolved([entry], trials=6), in_parts, entry)
    assert essence(at_once, entry) == essence(in_parts, entry)
    assert [entry[0] for entry in essence(in_parts, entry)] == list(range(6))
    assert whole.params == resumed.params
    assert whole.metrics["test/psnr"] == resumed.metrics["test/psnr"]


def test_tpe_goes_on_as_if_never_stopped(tmp_path: Path, lab: SimpleNamespace) -> None:
    at_once, in_parts = tmp_path / "a", tmp_path / "b"
    lab.search(lab.resolved(["identity"], trials=20), at_once, "identity")
    for count in (17, 18, 20):
        lab.search(lab.resolved(["identity"], trials=count), in_parts, "identity")
    assert essence(at_once) == essence(in_parts)


class Killed(BaseException):
    """Ends a study as a kill would: nothing more is written."""


@pytest.mark.exhaustive(after=1)
@pytest.mark.parametrize("victims", [(0, 1, 5), (0,), (4,)])
def test_a_killed_trial_is_run_again_as_it_was(
    victims: tuple, tmp_path: Path, lab: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once, in_parts = tmp_path / "a", tmp_path / "b"
    study = lab.resolved(["identity"], trials=6)
    whole = lab.search(study, at_once, "identity")
    real, pending = records.write, list(victims)

    def write(folder: Path, record: RunRecord) -> None:
        real(folder, record)
        ours = record.kind == "trial" and record.state == "running"
        if ours and pending and record.notes["index"] == pending[0]:
            pending.pop(0)
            raise Killed

    monkeypatch.setattr(records, "write", write)
    for _ in victims:
        with pytest.raises(Killed):
            lab.search(study, in_parts, "identity")
    resumed = lab.search(study, in_parts, "identity")
    assert essence(at_once, "identity") == essence(in_parts, "identity")
    assert resumed.params == whole.params
    folder = study_folder(in_parts, "small") / "identity"
    states = [record.state for record in journal.trial_records(folder)]
    assert states.count("interrupted") == len(victims)
    assert states.count("finished") + states.count("pruned") == 6


def test_another_seed_is_another_search(tmp_path: Path, lab: SimpleNamespace) -> None:
    for seed in (0, 1):
        lab.search(
            lab.resolved(["identity"], trials=4, seed=seed), tmp_path / str(seed), "identity"
        )
    first, second = essence(tmp_path / "0"), essence(tmp_path / "1")
    assert first[0][2] == second[0][2]  # the defaults
    assert first[0][1] != second[0][1]
    assert all(a[2] != b[2] for a, b in zip(first[2:], second[2:], strict=True))


def test_rows_try_the_same_solver_settings(tmp_path: Path, lab: SimpleNamespace) -> None:
    study = lab.resolved({"identity": {}, "plain": {"method": "identity"}}, trials=4)
    for entry in study.methods:
        lab.search(study, tmp_path, entry)
    ours, theirs = essence(tmp_path), essence(tmp_path, "plain")
    assert [trial[2:] for trial in ours] == [trial[2:] for trial in theirs]


def test_other_methods_and_frozen_settings_do_not_shift_the_shared_draws(
    tmp_path: Path, lab: SimpleNamespace
) -> None:
    entries = {"identity": {}, "hessian": {}, "some": {"method": "identity"}}
    entries["some"]["set"] = {"solve.step": 0.5}
    study = lab.resolved(entries, trials=5)
    for entry in entries:
        lab.search(study, tmp_path, entry)
    plain, other, frozen = (essence(tmp_path, entry) for entry in entries)
    settings = [name for name in plain[0][2] if name.startswith("solve.")]
    for index in range(2, 5):
        assert all(plain[index][2][name] == other[index][2][name] for name in settings)
        assert frozen[index][2] == plain[index][2] | {"solve.step": 0.5}
    assert len({trial[2]["mu"] for trial in other[2:]}) == 3


def test_points_to_evaluate_of_the_study_are_tried_by_every_row(
    tmp_path: Path, lab: SimpleNamespace
) -> None:
    tip = {"solve.start": "zero", "solve.step": 1.25, "solve.strength": 0.07}
    beyond = {"solve.start": "lmmse", "solve.strength": 1e6}  # no such strength in the range
    study = lab.resolved({"identity": {}, "hessian": {}}, trials=4)
    study = study.model_copy(update={"points_to_evaluate": [tip, beyond]})
    for entry in study.methods:
        lab.search(study, tmp_path, entry)
        first, _, third, fourth = (params for _, _, params, _ in essence(tmp_path, entry))
        assert third == first | tip
        assert fourth == first | {
            "solve.start": "lmmse",
            "solve.strength": fourth["solve.strength"],
        }
        assert fourth["solve.strength"] < 1


def branched(count: int, value, admits=lambda draw: True, points=(), restart_at=None) -> list[dict]:
    """Parameters of the first trials of a search with conditions, journal and all."""

    def make() -> NumberedSampler:
        return NumberedSampler(BRANCHES, 3, points, conditions=CONDITIONS, admits=admits)

    found: list[dict] = []
    study = optuna.create_study(sampler=make(), direction="maximize")
    for index in range(count):
        if index == restart_at:
            study.sampler = make()
        trial = begun(study, index, BRANCHES)
        found.append(trial.params)
        study.tell(trial, value(trial.params))
    return found


def test_only_what_counts_is_drawn() -> None:
    """Of every trial, Sobol's and TPE's alike: the branch's parameters and no others."""
    found = branched(60, lambda draw: draw["rate"])
    assert {draw["kind"] for draw in found} == {"a", "b", "c"}
    assert all(set(draw) == COUNTS[draw["kind"]] for draw in found)
    assert all(draw["a.only"] == 5 for draw in found if draw["kind"] == "a")


def test_tpe_learns_within_the_branch() -> None:
    """The best branch and its parameter are found more often than chance would."""

    def value(draw: dict) -> float:
        return -abs(draw["a.width"] - 7) if draw["kind"] == "a" else -20.0

    late = branched(70, value)[40:]
    best = [draw for draw in late if draw["kind"] == "a" and draw["a.width"] in (6, 7, 8)]
    assert len(best) > 15  # of 30; a third times three eighths of them by chance
    assert branched(70, value, restart_at=50)[40:] == late


def test_what_the_task_refuses_is_drawn_again() -> None:
    """Known points too; the other draws stay as they were."""

    def admits(draw: dict) -> bool:
        return draw["kind"] != "a" or draw["a.width"] <= 2

    points = ({"kind": "a", "a.width": 8, "a.only": 5}, {"kind": "c"})
    free, held = (
        branched(40, lambda draw: draw["rate"], rule, points)
        for rule in (lambda draw: True, admits)
    )
    assert free[0]["a.width"] == 8
    assert all(map(admits, held))
    assert not all(map(admits, free))
    assert held[1]["kind"] == "c"
    same = [index for index in range(16) if admits(free[index])]
    assert [held[index] for index in same] == [free[index] for index in same]
    assert any(draw["kind"] == "a" for draw in held)


def test_a_task_that_refuses_everything_gets_the_last_draw() -> None:
    """The trial will say why; the search does not hang."""
    assert len(branched(3, lambda draw: 0.0, lambda draw: False)) == 3
