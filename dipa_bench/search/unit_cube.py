"""Numbers of a search space as points of the unit cube, in which a tuner moves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from optuna.distributions import CategoricalDistribution, IntDistribution

from dipa_bench.config.space import Block
from dipa_bench.parameters import Value

Range = tuple[float, float]


class UnitCube:
    """A coordinate for each number of a search space, from 0 to 1 over its range.

    A strength that changes geometrically over the iterations is given by its geometric mean and by
    the ratio of its last value to its first. A reconstruction may depend on the last value hardly
    at all, so that PSNR has a ridge along it, across both numbers. With `schedules` the first and
    the last value are the coordinates instead; where they lead out of a range, its end is taken.

    Args:
        space: parameter to distribution.
        schedules: parameter that is a geometric mean to the one that is the ratio; without effect
            unless both are searched on a logarithmic scale.
    """

    def __init__(self, space: Block, schedules: Mapping[str, str] | None = None) -> None:
        self._space, self._schedules = dict(space), dict(schedules or {})

    def names(self, params: Mapping[str, Value]) -> list[str]:
        """Names of the numbers among some parameters that can be moved: one a coordinate."""
        return [
            name
            for name, found in self._space.items()
            if name in params
            and not isinstance(found, CategoricalDistribution)
            and not found.single()
        ]

    def units(self, params: Mapping[str, Value], names: Sequence[str]) -> np.ndarray:
        """The point of the unit cube at which numbers lie."""
        values = {name: self._scaled(name, float(params[name])) for name in names}
        ranges = {name: self._range(name) for name in names}
        for mean, ratio in self._pairs(names):
            half = values[ratio] / 2
            values[mean], values[ratio] = values[mean] - half, values[mean] + half
            (low, high), (down, up) = ranges[mean], ranges[ratio]
            ranges[mean] = low - up / 2, high - down / 2
            ranges[ratio] = low + down / 2, high + up / 2
        found = [(values[name] - low) / (high - low) for name, (low, high) in ranges.items()]
        return np.clip(found, 0.0, 1.0)

    def moved(
        self, start: Mapping[str, Value], names: Sequence[str], units: np.ndarray
    ) -> dict[str, Value]:
        """A point with its numbers where a point of the unit cube is, within their ranges."""
        values = dict(zip(names, np.clip(units, 0.0, 1.0).tolist(), strict=True))
        ranges = {name: self._range(name) for name in names}
        for mean, ratio in self._pairs(names):
            (low, high), (down, up) = ranges[mean], ranges[ratio]
            first = low - up / 2 + values[mean] * (high - low + (up - down) / 2)
            last = low + down / 2 + values[ratio] * (high - low + (up - down) / 2)
            values[mean] = ((first + last) / 2 - low) / (high - low)
            values[ratio] = (last - first - down) / (up - down)
        return {**start, **{name: self._value(name, unit) for name, unit in values.items()}}

    def _pairs(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """Means and ratios that can both be moved."""
        return [
            pair
            for pair in self._schedules.items()
            if set(pair) <= set(names) and all(self._space[name].log for name in pair)
        ]

    def _scaled(self, name: str, value: float) -> float:
        return math.log(value) if self._space[name].log else value

    def _range(self, name: str) -> Range:
        low, high = self._space[name].low, self._space[name].high
        return self._scaled(name, low), self._scaled(name, high)

    def _value(self, name: str, unit: float) -> Value:
        """The value at a part of its range."""
        low, high = self._space[name].low, self._space[name].high
        unit = min(max(unit, 0.0), 1.0)
        value = low * (high / low) ** unit if self._space[name].log else low + unit * (high - low)
        if isinstance(self._space[name], IntDistribution):
            return round(value)
        return min(max(value, low), high)
