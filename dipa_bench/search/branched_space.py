"""A search space of numbers and choices, and its points as vectors."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from optuna.distributions import CategoricalDistribution

from dipa_bench.config.space import Block, sobol_point, value_at
from dipa_bench.parameters import Value, When, settings_of, without_settings
from dipa_bench.search.evaluations import Params, params_key
from dipa_bench.search.unit_cube import UnitCube

CHOICE = 0.35  # coordinate of a choice: two that differ in one are half a cube's edge apart
FAR = 0.3  # in one number: two optima, and not one


class BranchedSpace:
    """Points of a search space, which the combinations of some choices divide into branches.

    `cube` has its numbers, named in `numbers`; `choices` has the values of each choice, `branches`
    the combinations of those that branch.

    Args:
        space: parameter to distribution, at least one.
        branching: names of the choices of which each combination is a branch; others are ignored.
        conditions: parameter to the condition under which it counts.
        admits: whether the task has nothing against a point.
        seed: of the draws of parameters that are no solver settings.
        shared_seed: of the draws of solver settings.
    """

    def __init__(
        self,
        space: Block,
        branching: Sequence[str] = (),
        conditions: Mapping[str, When] | None = None,
        admits: Callable[[Params], bool] = lambda point: True,
        seed: int = 0,
        shared_seed: int = 0,
    ) -> None:
        self._space, self._conditions = dict(space), dict(conditions or {})
        self._seeds = {name: (seed, shared_seed)[name.startswith("solve.")] for name in space}
        self._seed, self._shared_seed = seed, shared_seed
        self.cube = UnitCube(space)
        self.numbers = self.cube.names(dict.fromkeys(space))
        self.choices = {
            name: found.choices
            for name, found in space.items()
            if isinstance(found, CategoricalDistribution)
        }
        self.branching = [name for name in branching if name in self.choices]
        values = (self.choices[name] for name in self.branching)
        self.branches = [
            dict(zip(self.branching, branch, strict=True)) for branch in itertools.product(*values)
        ]
        self._admits, self._admitted = admits, dict[tuple, bool]()
        self._vectors: dict[tuple, np.ndarray] = {}

    def complete(self, base: Mapping[str, Value], change: Mapping[str, Value]) -> Params:
        """A point changed, with all parameters that count then and no others."""
        found = {**base, **change}
        for name, options in self._space.items():
            if name not in found:
                found[name] = value_at(options, 0.5)
        return {
            name: found[name]
            for name in self._space
            if name not in self._conditions or self._conditions[name].holds(found)
        }

    def drawn(self, index: int) -> Params:
        """A Sobol point: solver settings that all entries have, and own parameters."""
        shared, own = list(settings_of(self._space)), list(without_settings(self._space))
        draw = sobol_point(self._space, index, self._shared_seed, shared)
        return draw | sobol_point(self._space, index, self._seed, own)

    def generators(self, seed: int) -> dict[str, np.random.Generator]:
        """For each parameter a source of random draws, those of solver settings for all entries."""
        return {
            name: np.random.default_rng([own % 2**64, zlib.crc32(name.encode()), seed])
            for name, own in self._seeds.items()
        }

    def admits(self, point: Params) -> bool:
        """Whether the task has nothing against a point."""
        key = params_key(point)
        if key not in self._admitted:
            self._admitted[key] = self._admits(point)
        return self._admitted[key]

    def branch(self, point: Mapping[str, Value]) -> tuple:
        """What points of the same branch have in common."""
        return tuple(point.get(name) for name in self.branching)

    def apart(self, one: Params, other: Params) -> bool:
        """Whether two points differ in a choice, or lie far from each other in the unit cube."""
        moved = np.abs(self.vector(one) - self.vector(other))
        numbers, choices = np.split(moved, [len(self.numbers)])
        return bool(choices.any() or (numbers > FAR).any())

    def units(self, point: Params) -> np.ndarray:
        """All numbers in the unit cube, those that do not count in the middle."""
        counting = self.cube.names(point)
        at = dict(zip(counting, self.cube.units(point, counting).tolist(), strict=True))
        return np.array([at.get(name, 0.5) for name in self.numbers])

    def moved(self, point: Params, units: np.ndarray) -> Params:
        """A point with its numbers where all numbers are in the unit cube."""
        at = dict(zip(self.numbers, units.tolist(), strict=True))
        counting = self.cube.names(point)
        return self.cube.moved(point, counting, np.array([at[name] for name in counting]))

    def indicators(self, point: Params) -> np.ndarray:
        """A coordinate for each value of each choice."""
        return np.array(
            [
                CHOICE * (point.get(name) == value)
                for name, values in self.choices.items()
                for value in values
            ]
        )

    def vector(self, point: Params) -> np.ndarray:
        """Numbers and choices of a point."""
        key = params_key(point)
        if key not in self._vectors:
            self._vectors[key] = np.append(self.units(point), self.indicators(point))
        return self._vectors[key]
