"""GP, CMA-ES, NSGA-II, QMC, random: better, the same again, nothing but trials kept."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import get_args

import numpy as np
import optuna
import pytest
from branched_space import BRANCHES, CONDITIONS, COUNTS
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from dipa_bench.config.schema import SearchSpec
from dipa_bench.config.space import sobol_point, uniform_point
from dipa_bench.search.samplers import tried
from dipa_bench.search.sampling import KINDS, MODELS, STARTUP, NumberedSampler, ask

SPACE = {
    "a": FloatDistribution(0.0, 1.0),
    "b": FloatDistribution(0.0, 1.0),
    "c": FloatDistribution(0.0, 1.0),
    "rate": FloatDistribution(1e-3, 1e1, log=True),
    "kind": CategoricalDistribution(("x", "y", "z")),
}
MIXED = {
    "rate": FloatDistribution(1e-3, 1e1, log=True),
    "tip": FloatDistribution(0.0, 1.0),
    "count": IntDistribution(1, 9),
    "flag": IntDistribution(0, 1),
    "kind": CategoricalDistribution(("x", "y", "z")),
}


def bowl(params: dict) -> float:
    """Minus a quadratic in four dimensions and a choice; 0 at the best."""
    x = [params["a"] - 0.3, params["b"] - 0.62, params["c"] - 0.81]
    x.append((math.log10(params["rate"]) + 1.2) / 4)
    return -sum(number**2 for number in x) - {"x": 0.3, "y": 0.0, "z": 0.15}[params["kind"]]


def edge(params: dict) -> float:
    """Minus a quadratic whose best point lies at a bound, in numbers, whole ones and a choice."""
    found = (params["tip"] - 1) ** 2 + ((math.log10(params["rate"]) + 1.2) / 4) ** 2
    found += ((params["count"] - 6) / 8) ** 2 + 0.2 * params["flag"]
    return -found - {"x": 0.3, "y": 0.0, "z": 0.15}[params["kind"]]


def branch_value(params: dict) -> float:
    return -abs(params.get("a.width", 20) - 7) + params["rate"]


def begun(study: optuna.Study, index: int, space: dict) -> optuna.Trial:
    study.enqueue_trial({}, user_attrs={"index": index})
    return ask(study, space)


def search(
    kind: str,
    count: int,
    seed: int = 0,
    space: dict = SPACE,
    value: Callable[[dict], float] = bowl,
    **sampler: object,
) -> optuna.Study:
    """A finished search in memory."""
    study = optuna.create_study(
        direction="maximize", sampler=NumberedSampler(space, seed, kind=kind, **sampler)
    )
    for index in range(count):
        trial = begun(study, index, space)
        study.tell(trial, value(trial.params))
    return study


def params(study: optuna.Study) -> list[dict]:
    return [trial.params for trial in study.trials]


# ---------------------------------------------------------------------------- how good


@cache
def regret(kind: str, count: int, seeds: int) -> float:
    """Median over seeds of what the best trial lacks."""
    return statistics.median(-search(kind, count, seed).best_value for seed in range(seeds))


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("kind", "count", "seeds", "part"),
    [("tpe", 60, 3, 0.15), ("gp", 28, 1, 0.15)],
)
def test_models_find_more_than_chance(kind: str, count: int, seeds: int, part: float) -> None:
    assert 0 < regret(kind, count, seeds) < part * regret("random", 60, 9)


# ---------------------------------------------------------------------------- the same again


def opened(path: Path, kind: str, space: dict, **sampler: object) -> optuna.Study:
    return optuna.create_study(
        study_name="row",
        storage=JournalStorage(JournalFileBackend(str(path))),
        direction="maximize",
        sampler=NumberedSampler(space, 4, kind=kind, **sampler),
        load_if_exists=True,
    )


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.mark.covering
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("branched", [False, True], ids=["plain", "branches"])
def test_a_search_goes_on_as_if_never_stopped(tmp_path: Path, kind: str, branched: bool) -> None:
    """Across processes, with trials that died; the journal holds trials and nothing else."""
    space = BRANCHES if branched else SPACE
    value = branch_value if branched else bowl
    more = {"conditions": CONDITIONS} if branched else {}
    whole = search(kind, 19, 4, space, value, **more)
    done: set[int] = set()
    for stop in (15, 17, 18, 19):  # each a process; all but the last die in their last trial
        study = opened(tmp_path / "journal.log", kind, space, **more)
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
        for index in range(stop):
            if index in done:
                continue
            trial = begun(study, index, space)
            if index == stop - 1 and stop < 19:
                continue
            study.tell(trial, value(trial.params))
            done.add(index)
    ended = study.get_trials(states=(TrialState.COMPLETE,))
    lines = map(json.loads, (tmp_path / "journal.log").read_text().splitlines())
    kept = [entry["system_attr"] for entry in lines if "system_attr" in entry]
    assert len(study.trials) == 19 + 3
    assert [trial.user_attrs["index"] for trial in ended] == list(range(19))
    assert [trial.params for trial in ended] == params(whole)
    for name, text in (pair for attribute in kept for pair in attribute.items()):
        assert name.startswith("tpe:relative_params")  # Optuna's own, of what it draws
        assert json.loads(text).keys() <= space.keys()
    assert all(trial.user_attrs.keys() == {"index"} for trial in study.trials)


@pytest.mark.exhaustive(after=1)
@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_is_another_search(kind: str) -> None:
    """At the start-up and beyond."""
    one, same, other = (params(search(kind, 17, seed)) for seed in (1, 1, 2))
    assert one == same
    assert one[0] != other[0]
    assert one[16] != other[16]


@pytest.mark.parametrize("kind", KINDS)
def test_points_to_evaluate_and_the_start_up_are_alike(kind: str) -> None:
    points = [{"a": 0.5, "kind": "z"}]
    found = params(search(kind, 17, 1, points=points))
    point = uniform_point if kind == "random" else sobol_point
    expected = [point(SPACE, index, 1) for index in range(17)]
    assert found[0] == expected[0] | points[0]
    assert found[1:16] == expected[1:16]
    assert (found[16] == expected[16]) == (kind in ("qmc", "random"))


@pytest.mark.parametrize("kind", ["qmc", "random"])
def test_rows_share_settings_for_good_without_a_model(kind: str) -> None:
    """Also where one entry froze some of them."""
    few = {name: SPACE[name] for name in ("b", "kind")}
    shared = {"shared": ("a", "b"), "shared_seed": 9}
    one = params(search(kind, 30, 1, **shared))
    two = params(search(kind, 30, 2, few, value=lambda draw: 0.0, **shared))
    assert [draw["b"] for draw in one] == [draw["b"] for draw in two]
    assert all(
        a["rate"] != b["rate"] for a, b in zip(one, params(search(kind, 30, 2)), strict=True)
    )


def test_random_points_are_uniform_or_log_uniform() -> None:
    points = [uniform_point(SPACE, index, 3) for index in range(2000)]
    for found in (
        [draw["a"] for draw in points],
        [math.log10(p["rate"]) / 4 + 0.75 for p in points],
    ):
        counts, _ = np.histogram(found, bins=4, range=(0, 1))
        assert min(counts) > 430
    assert abs(np.corrcoef([p["a"] for p in points], [p["b"] for p in points])[0, 1]) < 0.06


@pytest.mark.parametrize("kind", KINDS)
def test_branches_and_refusals_are_respected(kind: str) -> None:
    def admits(draw: dict) -> bool:
        return draw["kind"] != "a" or draw["a.width"] <= 4

    def value(draw: dict) -> float:
        return draw["rate"]

    free = search(kind, 19, 5, BRANCHES, value, conditions=CONDITIONS)
    held = search(kind, 19, 5, BRANCHES, value, conditions=CONDITIONS, admits=admits)
    for study in (free, held):
        assert all(set(draw) == COUNTS[draw["kind"]] for draw in params(study))
    assert not all(map(admits, params(free)))
    assert all(map(admits, params(held)))
    assert {draw["kind"] for draw in params(held)} == {"a", "b", "c"}


def test_a_model_that_insists_makes_way() -> None:
    """All of the best half is refused."""

    def admits(draw: dict) -> bool:
        return draw["a"] > 0.9

    space = {"a": SPACE["a"], "b": SPACE["b"]}
    found = params(search("gp", 18, 1, space, lambda draw: -draw["a"], admits=admits))
    assert all(map(admits, found))
    assert len({(draw["a"], draw["b"]) for draw in found[STARTUP:]}) > 1


@pytest.mark.exhaustive(after=1)
@pytest.mark.parametrize("kind", KINDS)
def test_several_objectives(kind: str) -> None:
    """Both directions at once; models draw near the front."""
    space = {"a": FloatDistribution(0.0, 1.0), "n": IntDistribution(1, 64, log=True)}
    study = optuna.create_study(
        directions=["maximize", "minimize"], sampler=NumberedSampler(space, 1, kind=kind)
    )
    for index in range(20):
        trial = begun(study, index, space)
        drawn = trial.params
        study.tell(trial, (-abs(drawn["a"] - 0.4) + 0.01 * drawn["n"], float(drawn["n"])))
    late = [abs(trial.params["a"] - 0.4) for trial in study.trials[STARTUP:]]
    chance = [abs(trial.params["a"] - 0.4) for trial in study.trials[:STARTUP]]
    assert len(study.best_trials) > 1
    if kind in MODELS:
        assert statistics.mean(late) < statistics.mean(chance)


def test_what_is_no_sampler_is_refused() -> None:
    assert get_args(SearchSpec.model_fields["sampler"].annotation) == KINDS
    with pytest.raises(ValueError, match="anneal"):
        NumberedSampler(SPACE, 1, kind="anneal")


@pytest.mark.exhaustive(after=1)
@pytest.mark.parametrize("kind", KINDS)
def test_workers_side_by_side(kind: str) -> None:
    """Trials that wait, run, fail or are given up break nothing; no two draws are the same."""
    study = optuna.create_study(direction="maximize", sampler=NumberedSampler(SPACE, 6, kind=kind))
    for index in range(21):
        study.enqueue_trial({}, user_attrs={"index": index})
    for _ in range(7):
        finished, given_up, other = (ask(study, SPACE) for _ in range(3))
        study.tell(finished, bowl(finished.params))
        given_up.report(bowl(given_up.params), 1)
        study.tell(given_up, state=TrialState.PRUNED)
        if other.number % 2:  # the others run on
            study.tell(other, state=TrialState.FAIL)
    assert [trial.user_attrs["index"] for trial in study.trials] == list(range(21))
    assert all(trial.params.keys() == SPACE.keys() for trial in study.trials)
    assert len({tuple(draw.values()) for draw in params(study)}) == 21
    assert [one.index for one in tried(study)] == [n for n in range(21) if n % 3 < 2]


@pytest.mark.parametrize("kind", KINDS)
def test_searches_without_freedom_or_success(kind: str) -> None:
    single = {"one": FloatDistribution(0.5, 0.5)}
    assert params(search(kind, 18, 1, single, lambda draw: 0.0)) == [{"one": 0.5}] * 18
    study = optuna.create_study(sampler=NumberedSampler(SPACE, 1, kind=kind))
    for index in range(18):
        study.tell(begun(study, index, SPACE), state=TrialState.FAIL)
    assert params(search(kind, 18, 1, value=lambda draw: 1.0))[17].keys() == SPACE.keys()
