"""Points that a surrogate chooses from, and the rounds in which it does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dipa_bench.search.branched_space import BranchedSpace
from dipa_bench.search.evaluations import Params
from dipa_bench.search.surrogate import Request, Surrogate

ROUND = 3  # points that are chosen together
FAVOURED = 0.9  # weight of the prediction, for the best of all
BRANCH = 0.95  # for the best of another branch
OTHERS = 6  # branches after the best one, of which each has its turn
NEW = 0.5  # for something new
GROUP = 12  # candidates that differ in numbers alone
ANYWHERE = 5  # groups of them in each branch, anywhere
SPREADS = (0.02, 0.08, 0.2)  # standard deviations of those around a point, in the unit cube
MOVED = 0.6  # probability that one of its numbers is moved
REDRAWN = 0.2  # probability that a choice beside the branch's is


class Candidates:
    """Draws candidates and lets a surrogate choose.

    Args:
        space: of the points.
    """

    def __init__(self, space: BranchedSpace) -> None:
        self._space = space

    def chosen(
        self, ranked: Sequence[Params], values: Sequence[float], turn: int, seed: int
    ) -> list[Params]:
        """What to evaluate next: the most promising of all, that of another branch, and something
        new.

        Args:
            ranked: what was evaluated, the best first; at least one.
            values: its PSNR [dB].
            turn: of the round, from 0: which other branch it looks at.
            seed: of the draws.

        Returns:
            At most `ROUND` points that the task admits.
        """
        space = self._space
        bases, units = self._drawn(ranked, seed)
        if not bases:
            return []
        owners = np.repeat(np.arange(len(bases)), GROUP)
        choices = np.stack([space.indicators(base) for base in bases])
        vectors = np.concatenate([units, choices[owners]], axis=1)
        branches = list(dict.fromkeys(map(space.branch, ranked)))
        other = branches[(1 + turn % OTHERS) % len(branches)]
        inside = np.array([space.branch(base) == other for base in bases])[owners]
        everywhere = np.ones(len(vectors), dtype=bool)
        requests = [
            Request(FAVOURED, everywhere),
            Request(BRANCH, inside),
            Request(NEW, everywhere),
        ]
        surrogate = Surrogate(np.stack([space.vector(one) for one in ranked]), np.asarray(values))
        found = surrogate.choose(vectors, requests)
        points = [space.moved(bases[owners[index]], units[index]) for index in found]
        return [point for point in points if space.admits(point)]

    def _drawn(self, ranked: Sequence[Params], seed: int) -> tuple[list[Params], np.ndarray]:
        """In each branch: anywhere, around its best two, and around the best of all.

        Returns:
            Points that groups of candidates have their choices of, and all candidates' numbers in
            the unit cube, (`GROUP` times as many, numbers).
        """
        space, found, units = self._space, [], []
        generators = space.generators(seed)
        for branch in space.branches:
            inside = [one for one in ranked if space.branch(one) == space.branch(branch)]
            moved = space.complete(ranked[0], branch)
            groups = [(moved, None)] * ANYWHERE
            groups += [(base, spread) for base in (*inside[:2], moved) for spread in SPREADS]
            for base, spread in groups:
                point = self._redrawn(base, 1.0 if spread is None else REDRAWN, generators)
                if space.admits(point):
                    found.append(point)
                    units.append(self._around(point, spread, generators))
        return found, np.concatenate(units) if units else np.empty((0, len(space.numbers)))

    def _redrawn(
        self, point: Params, probability: float, generators: dict[str, np.random.Generator]
    ) -> Params:
        """A point with some of its own choices drawn anew."""
        change = {}
        for name, values in self._space.choices.items():
            if name not in self._space.branching and generators[name].random() < probability:
                change[name] = values[generators[name].integers(len(values))]
        return self._space.complete(point, change)

    def _around(
        self, point: Params, spread: float | None, generators: dict[str, np.random.Generator]
    ) -> np.ndarray:
        """Numbers in the unit cube, (GROUP, numbers): around a point's, or anywhere."""
        at = self._space.units(point)
        found = np.tile(at, (GROUP, 1))
        for place, name in enumerate(self._space.numbers):
            generator = generators[name]
            if name not in point:
                continue
            if spread is None:
                found[:, place] = generator.random(GROUP)
            else:
                moved = generator.random(GROUP) < MOVED
                found[:, place] += moved * spread * generator.standard_normal(GROUP)
        return np.clip(found, 0.0, 1.0)
