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
from cmaes import CatCMAwM
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import TrialState

from dipa_bench import digests
from dipa_bench.search import samplers
from dipa_bench.search.samplers import Tried, ranked, tried
from dipa_bench.search.sampling import (
    KINDS,
    STARTUP,
    NumberedSampler,
    ask,
    refuses,
    sobol_point,
    uniform_point,
)
from dipa_bench.search.schema import SearchSpec

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


@pytest.mark.parametrize(
    ("kind", "count", "seeds", "part"),
    [("tpe", 60, 7, 0.15), ("cmaes", 60, 9, 0.5), ("nsga2", 60, 9, 0.7), ("gp", 30, 3, 0.1)],
)
def test_models_find_more_than_chance(kind: str, count: int, seeds: int, part: float) -> None:
    assert 0 < regret(kind, count, seeds) < part * regret("random", 60, 9)


def test_cma_es_finds_a_bound_and_a_whole_number() -> None:
    found = [search("cmaes", 90, seed, MIXED, edge).best_params for seed in range(5)]
    assert statistics.median(best["tip"] for best in found) > 0.95
    assert statistics.median(best["count"] for best in found) == 6
    assert sum(best["kind"] == "y" and best["flag"] == 0 for best in found) >= 4


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


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("branched", [False, True], ids=["plain", "branches"])
def test_a_search_goes_on_as_if_never_stopped(tmp_path: Path, kind: str, branched: bool) -> None:
    """Across processes, with trials that died; the journal holds trials and nothing else."""
    space = BRANCHES if branched else SPACE
    value = branch_value if branched else bowl
    more = {"conditions": CONDITIONS} if branched else {}
    whole = search(kind, 24, 4, space, value, **more)
    done: set[int] = set()
    for stop in (15, 17, 20, 24):  # each a process; all but the last die in their last trial
        study = opened(tmp_path / "journal.log", kind, space, **more)
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            study.tell(trial.number, state=TrialState.FAIL)
        for index in range(stop):
            if index in done:
                continue
            trial = begun(study, index, space)
            if index == stop - 1 and stop < 24:
                continue
            study.tell(trial, value(trial.params))
            done.add(index)
    ended = study.get_trials(states=(TrialState.COMPLETE,))
    lines = map(json.loads, (tmp_path / "journal.log").read_text().splitlines())
    kept = [entry["system_attr"] for entry in lines if "system_attr" in entry]
    assert len(study.trials) == 24 + 3
    assert [trial.user_attrs["index"] for trial in ended] == list(range(24))
    assert [trial.params for trial in ended] == params(whole)
    for name, text in (pair for attribute in kept for pair in attribute.items()):
        assert name.startswith("tpe:relative_params")  # Optuna's own, of what it draws
        assert json.loads(text).keys() <= space.keys()
    assert all(trial.user_attrs.keys() == {"index"} for trial in study.trials)


@pytest.mark.parametrize("kind", KINDS)
def test_another_seed_is_another_search(kind: str) -> None:
    """At the start-up and beyond."""
    one, same, other = (params(search(kind, 19, seed)) for seed in (1, 1, 2))
    assert one == same
    assert one[0] != other[0]
    assert one[18] != other[18]


@pytest.mark.parametrize("kind", KINDS)
def test_known_points_and_the_start_up_are_alike(kind: str) -> None:
    known = [{"a": 0.5, "kind": "z"}]
    found = params(search(kind, 17, 1, known=known))
    point = uniform_point if kind == "random" else sobol_point
    expected = [point(SPACE, index, 1) for index in range(17)]
    assert found[0] == expected[0] | known[0]
    assert found[1:16] == expected[1:16]
    assert (found[16] == expected[16]) == (kind in ("qmc", "random"))


@pytest.mark.parametrize("kind", ["qmc", "random"])
def test_rows_share_settings_for_good_without_a_model(kind: str) -> None:
    """Also where one row froze some of them."""
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


# ---------------------------------------------------------------------------- CMA-ES


def driven(count: int, seed: int, batch: int, fails: set[int]) -> list[dict]:
    """`MIXED` searched with the package `cmaes` alone, by ask and tell, from the same start."""
    points = [sobol_point(MIXED, index, seed) for index in range(STARTUP)]
    start = max(points, key=edge)
    optimizer = CatCMAwM(
        x_space=[[0, 1], [0, 1]],
        z_space=[np.linspace(0, 1, 9)],
        c_space=[2, 3],
        mean=np.array(
            [math.log10(start["rate"] * 1e3) / 4, start["tip"], (start["count"] - 1) / 8]
        ),
        sigma=1 / 6,
        cov=np.eye(3),
    )
    found, queue = [], []
    for index in range(STARTUP, count):
        optimizer.reseed_rng(digests.seed(seed, index, 0) % 2**32)
        drawn = optimizer.ask()
        draw = {
            "rate": 1e-3 * 10 ** (4 * drawn.x[0]),
            "tip": drawn.x[1],
            "count": 1 + round(8 * drawn.z[0]),
            "flag": int(np.argmax(drawn.c[0])),
            "kind": "xyz"[int(np.argmax(drawn.c[1]))],
        }
        found.append(draw)
        if index not in fails:
            queue.append((drawn, -edge(draw)))
        if (index + 1 - STARTUP) % batch == 0 and len(queue) >= optimizer.population_size:
            group = queue[: optimizer.population_size]
            order = sorted(group, key=lambda pair: pair[1])
            optimizer.tell([(pair[0], float(rank)) for rank, pair in enumerate(order)])
            queue = queue[optimizer.population_size :]
    assert optimizer.generation >= 5
    return found


@pytest.mark.parametrize("batch", [1, 6])
def test_the_replay_is_cma_es_itself(batch: int) -> None:
    """Six generations, trials that fail, several at once: the draws that the library makes."""
    count, seed, fails = STARTUP + 54, 3, {20, 37, 38}
    study = optuna.create_study(
        direction="maximize", sampler=NumberedSampler(MIXED, seed, kind="cmaes")
    )
    for first in (*range(STARTUP), *range(STARTUP, count, batch)):
        size = batch if first >= STARTUP else 1
        for trial in [begun(study, first + place, MIXED) for place in range(size)]:
            if trial.number in fails:
                study.tell(trial, state=TrialState.FAIL)
            else:
                study.tell(trial, edge(trial.params))
    for ours, theirs in zip(
        params(study)[STARTUP:], driven(count, seed, batch, fails), strict=True
    ):
        assert (ours.pop("kind"), ours.pop("flag")) == (theirs.pop("kind"), theirs.pop("flag"))
        assert ours == pytest.approx(theirs, rel=1e-9)


def test_cma_es_is_told_what_it_did_not_draw() -> None:
    """Trials of unknown origin move it as well."""
    study = optuna.create_study(
        direction="maximize", sampler=NumberedSampler(MIXED, 1, kind="cmaes")
    )
    corner = {"rate": 10.0, "tip": 0.0, "count": 9, "flag": 1, "kind": "z"}
    for index in range(200):
        study.add_trial(
            optuna.trial.create_trial(
                params=corner | {"tip": 0.05 * (index % 2)},
                distributions=MIXED,
                value=float(-index),
                user_attrs={"index": index},
            )
        )
    found = [begun(study, 200 + place, MIXED).params for place in range(10)]
    assert statistics.median(draw["count"] for draw in found) >= 8
    assert statistics.median(draw["rate"] for draw in found) > 1
    assert sum(draw["kind"] == "z" for draw in found) >= 5


def test_the_best_come_first_and_those_given_up_last() -> None:
    trials = {
        "ok": Tried(0, {}, (1.0,)),
        "best": Tried(1, {}, (3.0,)),
        "tie": Tried(2, {}, (1.0,)),
        "late": Tried(3, {}, (0.5,), last=4),
        "early": Tried(4, {}, (9.0,), last=2),
        "poor": Tried(5, {}, (0.1,), last=4),
    }
    names = {one.index: name for name, one in trials.items()}
    order = [names[one.index] for one in ranked([*trials.values()], StudyDirection.MAXIMIZE)]
    assert order == ["best", "ok", "tie", "late", "poor", "early"]
    order = [names[one.index] for one in ranked([*trials.values()], StudyDirection.MINIMIZE)]
    assert order == ["ok", "tie", "best", "poor", "late", "early"]


# ---------------------------------------------------------------------------- NSGA-II


def test_nsga2_breeds_from_what_was_tried() -> None:
    """Most values of a child are those of a parent from an earlier generation."""
    found = params(search("nsga2", 40, 2))
    for generation in (1, 2):
        low, high = samplers.GENERATION * generation, samplers.GENERATION * (generation + 1)
        earlier = {draw[name] for draw in found[:low] for name in ("a", "b", "c", "rate")}
        values = [draw[name] for draw in found[low:high] for name in ("a", "b", "c", "rate")]
        inherited = statistics.mean(value in earlier for value in values)
        assert 0.6 < inherited < 1


# ---------------------------------------------------------------------------- what all accept


@pytest.mark.parametrize("kind", KINDS)
def test_branches_and_refusals_are_respected(kind: str) -> None:
    def admits(draw: dict) -> bool:
        return draw["kind"] != "a" or draw["a.width"] <= 4

    def value(draw: dict) -> float:
        return draw["rate"]

    free = search(kind, 26, 5, BRANCHES, value, conditions=CONDITIONS)
    held = search(kind, 26, 5, BRANCHES, value, conditions=CONDITIONS, admits=admits)
    for study in (free, held):
        assert all(set(draw) == COUNTS[draw["kind"]] for draw in params(study))
    assert not all(map(admits, params(free)))
    assert all(map(admits, params(held)))
    assert {draw["kind"] for draw in params(held)} == {"a", "b", "c"}


@pytest.mark.parametrize("kind", ["gp", "cmaes", "nsga2"])
def test_a_model_that_insists_makes_way(kind: str) -> None:
    """All of the best half is refused."""

    def admits(draw: dict) -> bool:
        return draw["a"] > 0.9

    space = {"a": SPACE["a"], "b": SPACE["b"]}
    found = params(search(kind, 20, 1, space, lambda draw: -draw["a"], admits=admits))
    assert all(map(admits, found))
    assert len({(draw["a"], draw["b"]) for draw in found[STARTUP:]}) > 1


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not refuses(kind, ("psnr", "seconds"))])
def test_several_objectives(kind: str) -> None:
    """Both directions at once; models draw near the front."""
    space = {"a": FloatDistribution(0.0, 1.0), "n": IntDistribution(1, 64, log=True)}
    study = optuna.create_study(
        directions=["maximize", "minimize"], sampler=NumberedSampler(space, 1, kind=kind)
    )
    for index in range(24):
        trial = begun(study, index, space)
        drawn = trial.params
        study.tell(trial, (-abs(drawn["a"] - 0.4) + 0.01 * drawn["n"], float(drawn["n"])))
    late = [abs(trial.params["a"] - 0.4) for trial in study.trials[STARTUP:]]
    chance = [abs(trial.params["a"] - 0.4) for trial in study.trials[:STARTUP]]
    assert len(study.best_trials) > 1
    if kind in ("tpe", "gp", "nsga2"):
        assert statistics.mean(late) < statistics.mean(chance)


def test_what_a_sampler_cannot_do_is_one_line() -> None:
    assert get_args(SearchSpec.model_fields["sampler"].annotation) == KINDS
    assert {kind for kind in KINDS if refuses(kind, ("psnr", "seconds"))} == {"cmaes"}
    assert not any(refuses(kind, ("psnr",)) for kind in KINDS)
    line = refuses("cmaes", ("psnr", "seconds"))
    assert "\n" not in line
    assert all(word in line for word in ("cmaes", "psnr, seconds", "tpe", "one objective"))
    assert "anneal" in refuses("anneal", ("psnr",))
    with pytest.raises(ValueError, match="anneal"):
        NumberedSampler(SPACE, 1, kind="anneal")


@pytest.mark.parametrize("kind", KINDS)
def test_workers_side_by_side(kind: str) -> None:
    """Trials that wait, run, fail or are given up break nothing; no two draws are the same."""
    study = optuna.create_study(direction="maximize", sampler=NumberedSampler(SPACE, 6, kind=kind))
    for index in range(27):
        study.enqueue_trial({}, user_attrs={"index": index})
    for _ in range(9):
        finished, given_up, other = (ask(study, SPACE) for _ in range(3))
        study.tell(finished, bowl(finished.params))
        given_up.report(bowl(given_up.params), 1)
        study.tell(given_up, state=TrialState.PRUNED)
        if other.number % 2:  # the others run on
            study.tell(other, state=TrialState.FAIL)
    assert [trial.user_attrs["index"] for trial in study.trials] == list(range(27))
    assert all(trial.params.keys() == SPACE.keys() for trial in study.trials)
    assert len({tuple(draw.values()) for draw in params(study)}) == 27
    assert [one.index for one in tried(study)] == [n for n in range(27) if n % 3 < 2]


@pytest.mark.parametrize("kind", KINDS)
def test_searches_without_freedom_or_success(kind: str) -> None:
    single = {"one": FloatDistribution(0.5, 0.5)}
    assert params(search(kind, 18, 1, single, lambda draw: 0.0)) == [{"one": 0.5}] * 18
    study = optuna.create_study(sampler=NumberedSampler(SPACE, 1, kind=kind))
    for index in range(18):
        study.tell(begun(study, index, SPACE), state=TrialState.FAIL)
    assert params(search(kind, 18, 1, value=lambda draw: 1.0))[17].keys() == SPACE.keys()
