"""The space in which the tuner searches, and the points that it proposes in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from dipa_bench.parameters import When
from dipa_bench.search.branched_space import CHOICE, FAR, BranchedSpace
from dipa_bench.search.candidates import ROUND, Candidates

SPACE = {
    "solve.step": FloatDistribution(0.1, 2.0),
    "solve.strength": FloatDistribution(0.01, 1.0, log=True),
    "solve.start": CategoricalDistribution(("adjoint", "zero", "lmmse")),
    "family": CategoricalDistribution(("plain", "deep")),
    "degree": IntDistribution(1, 9),
}
CONDITIONS = {"degree": When("family", "deep")}
FIRST = {"solve.step": 0.8, "solve.strength": 0.1, "solve.start": "adjoint", "family": "plain"}


def space(**more: Any) -> BranchedSpace:
    return BranchedSpace(SPACE, ["solve.start"], **{"conditions": CONDITIONS} | more)


def settings_alone(**more: Any) -> BranchedSpace:
    settings = {name: found for name, found in SPACE.items() if name.startswith("solve.")}
    return BranchedSpace(settings, ["solve.start"], **more)


def psnr(point: Mapping[str, Any]) -> float:
    """Best is 30 dB, at a step of 1.5 and a strength of 0.03 from the LMMSE start, if plain."""
    start = {"adjoint": 1.0, "zero": 0.5, "lmmse": 0.0}[point["solve.start"]]
    start += 0.3 * (point.get("family") == "deep")
    strength = math.log(point["solve.strength"] / 0.03)
    return 30 - start - 2 * (point["solve.step"] - 1.5) ** 2 - 0.5 * strength**2


def ranked(one: BranchedSpace, count: int = 20) -> tuple[list[dict[str, Any]], list[float]]:
    drawn = (one.drawn(index) for index in range(count))
    found = sorted((one.complete(FIRST, draw) for draw in drawn), key=psnr, reverse=True)
    return found, [psnr(point) for point in found]


def test_a_point_has_what_counts_and_nothing_else() -> None:
    one = space()
    assert "degree" not in one.complete(FIRST, {})
    deep = one.complete(FIRST, {"family": "deep"})
    assert deep["degree"] == 5 and list(deep) == list(SPACE)
    assert one.complete(deep, {"family": "plain"}) == FIRST


def test_there_is_a_branch_for_each_choice_that_branches() -> None:
    assert space().branches == [{"solve.start": name} for name in ("adjoint", "zero", "lmmse")]
    assert BranchedSpace(SPACE, ["solve.start", "nothing"]).branching == ["solve.start"]
    assert BranchedSpace(SPACE).branches == [{}]


def test_coordinates_lead_back_to_the_point() -> None:
    one = space()
    for index in range(10):
        point = one.complete(FIRST, one.drawn(index))
        back = one.moved(point, one.units(point))
        assert [back.pop(name) for name in one.choices] == [point[name] for name in one.choices]
        assert back == pytest.approx({name: point[name] for name in back}, rel=1e-9)


def test_two_choices_are_half_an_edge_apart() -> None:
    one = space()
    other = one.complete(FIRST, {"solve.start": "zero"})
    apart = np.linalg.norm(one.vector(FIRST) - one.vector(other))
    assert apart == pytest.approx(CHOICE * math.sqrt(2)) == pytest.approx(0.5, abs=0.01)


def test_what_is_far_or_of_another_choice_is_apart() -> None:
    one = space()
    near = {**FIRST, "solve.step": 0.8 + 0.9 * FAR * 1.9}
    far = {**FIRST, "solve.step": 0.8 + 1.1 * FAR * 1.9}
    assert not one.apart(FIRST, near) and one.apart(FIRST, far)
    assert one.apart(FIRST, {**FIRST, "solve.start": "zero"})
    assert one.apart(FIRST, one.complete(FIRST, {"family": "deep"}))


def test_solver_settings_are_drawn_alike_whatever_else_there_is() -> None:
    few, all_of_them = settings_alone(seed=1, shared_seed=7), space(seed=2, shared_seed=7)
    assert few.drawn(3) == {name: all_of_them.drawn(3)[name] for name in few.drawn(3)}
    for name in few.drawn(3):
        draws = (one.generators(5)[name].random() for one in (few, all_of_them))
        assert len(set(draws)) == 1
    degrees = (space(seed=seed).generators(5)["degree"].random() for seed in (1, 2))
    assert len(set(degrees)) == 2


def test_a_round_has_the_most_promising_another_branch_and_something_new() -> None:
    one = settings_alone()
    points, values = ranked(one, 40)
    found = Candidates(one).chosen(points, values, turn=0, seed=0)
    assert len(found) == ROUND
    promising, other, _ = found
    assert psnr(promising) > values[0] - 0.2
    branches = list(dict.fromkeys(point["solve.start"] for point in points))
    assert other["solve.start"] == branches[1]
    vectors = np.stack([one.vector(point) for point in points])
    nearest = [np.linalg.norm(vectors - one.vector(point), axis=1).min() for point in found]
    assert nearest[2] == max(nearest)
    assert found == Candidates(settings_alone()).chosen(points, values, turn=0, seed=0)
    assert found != Candidates(settings_alone()).chosen(points, values, turn=0, seed=1)


def test_rounds_lead_to_the_best_of_all() -> None:
    """From points that are all of the worse family."""
    one = space()
    points = [point for point in ranked(one)[0] if point["family"] == "deep"]
    for turn in range(20):
        points.sort(key=psnr, reverse=True)
        points += Candidates(one).chosen(points, [psnr(point) for point in points], turn, turn)
    assert psnr(max(points, key=psnr)) > 29.95


def test_what_the_task_refuses_is_not_proposed() -> None:
    one = space(admits=lambda point: point["solve.start"] != "lmmse" and point["solve.step"] < 1)
    points = [point for point in ranked(one)[0] if one.admits(point)]
    for turn in range(8):
        found = Candidates(one).chosen(points, [psnr(point) for point in points], turn, turn)
        assert all(map(one.admits, found))


def test_where_the_task_refuses_all_nothing_is_proposed() -> None:
    one = space(admits=lambda point: False)
    assert Candidates(one).chosen([FIRST], [psnr(FIRST)], turn=0, seed=0) == []


def test_own_choices_have_what_hangs_on_them() -> None:
    one = space()
    points, values = ranked(one)
    for turn in range(8):
        for point in Candidates(one).chosen(points, values, turn, turn):
            assert ("degree" in point) == (point["family"] == "deep")
            assert isinstance(point.get("degree", 1), int)
