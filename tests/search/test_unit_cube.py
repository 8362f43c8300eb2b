"""Numbers in the unit cube: there and back, and a schedule by its first and last value."""

from __future__ import annotations

import math

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from dipa_bench.search.tuning import SCHEDULES
from dipa_bench.search.unit_cube import UnitCube
from dipa_bench.solvers.fista import PnPFISTA

SPACE = {
    "solve.step": FloatDistribution(0.03, 2.0),
    "solve.strength": FloatDistribution(0.005, 0.3, log=True),
    "solve.decay": FloatDistribution(0.003, 3.0, log=True),
    "solve.start": CategoricalDistribution(("zero", "adjoint")),
    "degree": IntDistribution(1, 5),
    "mu": FloatDistribution(0.5, 0.5),
}
POINT = {
    "solve.step": 1.0,
    "solve.strength": 0.05,
    "solve.decay": 0.2,
    "solve.start": "zero",
    "degree": 2,
    "mu": 0.5,
}
STRENGTH, DECAY = 1, 2  # axes
K = 10


def strengths(params: dict) -> tuple[float, float]:
    """The prior's strength in the first and in the last iteration, as the solver has it."""
    options = {"step": 1.0, "strength": params["solve.strength"], "decay": params["solve.decay"]}
    solver = PnPFISTA(lambda image, strength: image, iterations=K, **options)
    return float(solver.strength_at(0)), float(solver.strength_at(K - 1))


def test_only_numbers_that_can_be_moved_are_coordinates() -> None:
    cube = UnitCube(SPACE)
    assert cube.names(POINT) == ["solve.step", "solve.strength", "solve.decay", "degree"]
    assert cube.names({"solve.start": "zero", "solve.step": 1.0}) == ["solve.step"]


def test_ends_of_ranges_are_zero_and_one_on_their_scale() -> None:
    cube, names = UnitCube(SPACE), ["solve.step", "solve.strength"]
    low, high = (
        {**POINT, "solve.step": a, "solve.strength": b} for a, b in ((0.03, 0.005), (2, 0.3))
    )
    middle = {**POINT, "solve.step": 1.015, "solve.strength": math.sqrt(0.005 * 0.3)}
    for params, unit in ((low, 0.0), (middle, 0.5), (high, 1.0)):
        assert cube.units(params, names) == pytest.approx([unit, unit])


@pytest.mark.parametrize("schedules", [{}, SCHEDULES])
def test_there_and_back(schedules: dict[str, str]) -> None:
    cube = UnitCube(SPACE, schedules)
    names = cube.names(POINT)
    found = cube.moved(POINT, names, cube.units(POINT, names))
    assert found == pytest.approx(POINT)
    assert isinstance(found["degree"], int)


@pytest.mark.parametrize("axis", [STRENGTH, DECAY])
def test_with_schedules_a_coordinate_is_the_first_or_the_last_strength(axis: int) -> None:
    cube = UnitCube(SPACE, SCHEDULES)
    names = cube.names(POINT)
    units = cube.units(POINT, names)
    units[axis] += 0.1
    moved = cube.moved(POINT, names, units)
    ratios = [
        after / before for before, after in zip(strengths(POINT), strengths(moved), strict=True)
    ]
    changed, kept = ratios if axis == STRENGTH else ratios[::-1]
    assert changed > 1.5
    assert kept == pytest.approx(1.0)
    assert moved["solve.step"] == pytest.approx(POINT["solve.step"])


def test_what_leads_out_of_a_range_stays_at_its_end() -> None:
    cube = UnitCube(SPACE, SCHEDULES)
    names = cube.names(POINT)
    for units in np.random.default_rng(0).uniform(-0.2, 1.2, (50, len(names))):
        found = cube.moved(POINT, names, units)
        for name in names:
            assert SPACE[name].low <= found[name] <= SPACE[name].high
    corner = cube.moved(POINT, names, np.array([0.5, 0.0, 1.0, 0.5]))
    assert corner["solve.decay"] == pytest.approx(3.0)


def test_every_point_of_the_ranges_is_reached() -> None:
    cube, rng = UnitCube(SPACE, SCHEDULES), np.random.default_rng(1)
    for _ in range(50):
        strength, decay = np.exp(rng.uniform(np.log([0.005, 0.003]), np.log([0.3, 3.0])))
        point = {**POINT, "solve.strength": float(strength), "solve.decay": float(decay)}
        names = cube.names(point)
        assert cube.moved(POINT, names, cube.units(point, names)) == pytest.approx(point)


def test_a_schedule_of_which_one_is_held_is_no_pair() -> None:
    held = {**SPACE, "solve.decay": FloatDistribution(1.0, 1.0, log=True)}
    linear = {**SPACE, "solve.decay": FloatDistribution(0.003, 3.0)}
    for space in (held, linear):
        cube, plain = UnitCube(space, SCHEDULES), UnitCube(space)
        names = plain.names(POINT)
        assert cube.units(POINT, names) == pytest.approx(plain.units(POINT, names))
