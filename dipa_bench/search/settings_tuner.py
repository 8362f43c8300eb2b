"""Tunes the solver settings of a fixed operator: screening, surrogate, trust regions, all images.

Settings are few, PSNR is smooth in those that are numbers, and a few images tell what is hopeless.
A tuner that knows this needs a fraction of what a sampler needs that learns it:

1. **Screening.** The given points; then, in every *branch* (each start with each momentum), numbers
   of its own from a Sobol sequence, as branches differ little where the numbers are bad in all of
   them; with many evaluations the numbers of the first point as well. On the first `SCREENED`
   validation images, where what is significantly worse leaves even sooner.
2. **Surrogate.** Rounds on the same images: a surrogate of PSNR over all numbers and choices says
   what is most promising of all, what is in another branch, and what would be new
   (`candidates.py`). After some of them the best is tried in all other branches.
3. **More images.** The best, and what these images do not tell from it, are run on `REFINED`; a
   trust region is followed from the best of them: COBYQA (Ragonneau and Zhang, "COBYQA", 2023),
   which needs no gradients and so takes any prior; then rounds of the surrogate on these images;
   both again while they gain. 2 and 3 again while there is budget, and while that gains.
4. **All images.** Only what was run on all of them can win: the best of what was seen.

An operator's own parameters (mu, degree, rank) are tuned with the settings, within the same number.

What comes next is a function of the settings that were evaluated, and of nothing else: the whole
procedure is gone through again for every question, with what is known of it. So a search that was
stopped goes on as if it never had been, and several workers share it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from dipa_bench.config.space import Block
from dipa_bench.parameters import Value, When
from dipa_bench.search.branched_space import BranchedSpace
from dipa_bench.search.candidates import Candidates
from dipa_bench.search.evaluations import (
    FAILED,
    Evaluation,
    Evaluations,
    Missing,
    Params,
    Proposal,
    params_key,
)
from dipa_bench.search.unit_cube import UnitCube

FEWEST = 24  # evaluations below which there is nothing to follow
SCREENED, REFINED = 10, 40  # validation images
SWEPT = 0.15  # of the surrogate's evaluations, after which the best is tried in other branches
PATIENCE = 12  # rounds in a row that gained nothing, after which there are no more
SHORT_PATIENCE = 4  # the same on more images
CONTENDERS = 4  # points that few images do not tell apart, at most
RADIUS = 0.15  # of the first trust region, in the unit cube
WIDER = 0.3  # of those after it, where another ended
SMALLEST = 0.01  # of the last: settings that close are less than 0.01 dB apart
GAIN = 0.01  # dB: what gained less of late is over


class SettingsTuner:
    """What to evaluate next, given what was.

    Args:
        space: parameter to distribution, at least one.
        points: to try first, each with a value for every parameter that counts; the first is what
            the entry is untuned.
        budget: evaluations, at least `FEWEST`.
        images: N, all validation images.
        branches: names of the choices of which all combinations are screened.
        schedules: of `UnitCube`, in trust regions.
        seed: of the entry's own parameters.
        shared_seed: of the solver settings, the same for all entries of a study.
        conditions: parameter to the condition under which it counts.
        admits: whether the task has nothing against a draw.
    """

    def __init__(
        self,
        space: Block,
        points: Sequence[Mapping[str, Value]],
        budget: int,
        images: int,
        *,
        branches: Sequence[str] = (),
        schedules: Mapping[str, str] | None = None,
        seed: int = 0,
        shared_seed: int = 0,
        conditions: Mapping[str, When] | None = None,
        admits: Callable[[Params], bool] = lambda draw: True,
    ) -> None:
        self._space = BranchedSpace(space, branches, conditions, admits, seed, shared_seed)
        self._candidates = Candidates(self._space)
        self._cube = UnitCube(space, schedules)
        first = self._space.complete({}, points[0] if points else {})
        self._points = [self._space.complete(first, point) for point in points] or [first]
        self._screened, self._refined = min(SCREENED, images), min(REFINED, images)
        self._images, self._budget = images, budget
        self._plan = _Plan.of(budget, len(self._points), len(self._space.branches))
        self._screening = self._to_screen()
        # what is over, of which every step asks again
        self._rounds: dict[tuple, list[Params]] = {}
        self._regions: dict[tuple, list[Proposal]] = {}

    def closing(self, evaluations: Sequence[Evaluation]) -> list[Proposal]:
        """The best of what was evaluated, on all images, for a search that has no time left."""
        known = Evaluations(evaluations)
        known.need([Proposal(dict(one.params), 0, races=True) for one in evaluations])
        ranked = known.ranked(self._screened)[: self._plan.all_images]
        found = [Proposal(params, self._images, races=False) for params in ranked]
        return [one for one in found if known.found(one) is None]

    def late_gain(self, evaluations: Sequence[Evaluation]) -> float:
        """What the last quarter of the evaluations brought, in dB, on `REFINED` images.

        Images that settings were not run on are estimated by the difference to the best.
        """
        known = Evaluations(evaluations)
        known.need([Proposal(dict(one.params), 0, races=True) for one in evaluations])
        early = [dict(one.params) for one in evaluations[: -(-3 * len(evaluations) // 4)]]
        if not early:
            return 0.0
        ends = (known.best(self._refined), known.ranked(self._refined, early)[0])
        last, before = (known.value(params, self._refined) for params in ends)
        return last - before

    def proposals(
        self, evaluations: Sequence[Evaluation], running: Sequence[Mapping[str, Value]] = ()
    ) -> list[Proposal] | None:
        """What could be evaluated now.

        Args:
            evaluations: what was, in the order in which it was begun.
            running: parameters that are being evaluated.

        Returns:
            In the order of their importance; empty where all of it runs already, None where the
            search is over.
        """
        known = Evaluations(evaluations)
        try:
            self._tune(known)
        except Missing as missing:
            busy = set(map(params_key, running))
            return [one for one in missing.proposals if params_key(one.params) not in busy]
        return None

    # -------------------------------------------------------------------------------- procedure

    def _tune(self, known: Evaluations) -> None:
        """The whole search.

        Raises:
            Missing: as far as it is known.
        """
        plan, few, images = self._plan, self._screened, self._refined
        known.need([Proposal(self._points[0], self._images, races=False)])  # the untuned ones
        known.need([Proposal(point, few, races=True) for point in self._screening])
        self._explore(known, few, plan.before_sweep, PATIENCE)
        if plan.before_sweep:
            self._sweep(known)
        self._explore(known, few, plan.after_sweep, PATIENCE)
        reached = -math.inf
        while self._left(known) > 0:
            known.need([Proposal(one, images, races=False) for one in self._contenders(known)])
            self._refine(known)
            if known.value(known.best_seen(images), images) - reached < GAIN:
                break
            reached = known.value(known.best_seen(images), images)
            self._explore(known, few, self._left(known) // 2, PATIENCE // 2)
        ranked, whole = known.ranked(images), known.seen(images)
        seen = [params for params in ranked if params in whole]
        rest = [params for params in ranked if params not in whole]
        # an estimate from few images flatters what is best on these: one of them is enough
        last = seen[: plan.all_images - 1] + rest[: 1 if seen else plan.all_images]
        known.need([Proposal(params, self._images, races=False) for params in last])

    def _explore(self, known: Evaluations, images: int, most: int, patience: int) -> None:
        """Rounds of what a surrogate proposes.

        Args:
            known: what was evaluated.
            images: of each; what is significantly worse leaves sooner.
            most: evaluations.
            patience: rounds in a row that gained next to nothing, after which it ends.
        """
        fruitless, turn, end = 0, 0, known.runs + most
        reached = known.value(known.best(images), images)
        while known.runs < end and fruitless < patience:
            place = (images, known.runs, turn)
            if place not in self._rounds:
                ranked = known.ranked(images)
                values = [known.value(one, images) for one in ranked]
                self._rounds[place] = self._candidates.chosen(ranked, values, turn, known.runs)
            points = self._rounds[place][: end - known.runs]
            known.need([Proposal(point, images, races=True) for point in points])
            best = known.value(known.best(images), images)
            fruitless, turn = 0 if best - reached >= GAIN else fruitless + 1, turn + 1
            reached = best

    def _sweep(self, known: Evaluations) -> None:
        """The best on few images with the choices of each other branch."""
        best = known.best(self._screened)
        moved = [self._space.complete(best, branch) for branch in self._space.branches]
        found = [one for one in moved if one != best and self._space.admits(one)]
        known.need([Proposal(one, self._screened, races=True) for one in found])

    def _contenders(self, known: Evaluations) -> list[Params]:
        """The best on few images, and what is far from it that these do not tell from it."""
        few, found = self._screened, [known.best(self._screened)]
        for one in known.ranked(few, known.seen(few)):
            if len(found) == min(CONTENDERS, max(1, self._left(known) // 4)):
                break
            far = all(self._space.apart(one, other) for other in found)
            if far and known.alike(found[0], one, few):
                found.append(one)
        return found

    def _refine(self, known: Evaluations) -> None:
        """Trust regions and rounds of the surrogate on more images, for as long as they gain."""
        images = self._refined
        while self._left(known) > 0:
            self._climb(known)
            reached = known.value(known.best_seen(images), images)
            self._explore(known, images, self._left(known), SHORT_PATIENCE)
            if known.value(known.best_seen(images), images) - reached < GAIN:
                return

    def _climb(self, known: Evaluations) -> None:
        """Trust regions from the best, for as long as they gain.

        A region that has become small in a curved valley ends before the optimum; one that begins
        anew there, and wider, goes on.
        """
        images, radius = self._refined, RADIUS
        while self._left(known) > 0:
            reached = known.value(known.best_seen(images), images)
            self._follow(known, known.best_seen(images), self._left(known), radius)
            if known.value(known.best_seen(images), images) - reached < GAIN:
                return
            radius = WIDER

    def _left(self, known: Evaluations) -> int:
        """Evaluations of the budget that are left for those on more images."""
        final = 1 if self._refined == self._images else self._plan.all_images
        return self._budget - known.runs - final

    def _to_screen(self) -> list[Params]:
        """The points; the first one's numbers in every branch, with many evaluations; and in every
        branch a point of its own.
        """
        space, first = self._space, self._points[0]
        found = list(self._points)
        if self._plan.defaults:
            found += [space.complete(first, branch) for branch in space.branches]
        for index, branch in enumerate(space.branches):
            found.append(space.complete(first | space.drawn(index), branch))
        distinct = {params_key(point): point for point in found}
        return [point for point in distinct.values() if space.admits(point)]

    def _follow(self, known: Evaluations, start: Params, count: int, radius: float) -> None:
        """A trust region from a point, until it gains no more.

        Args:
            known: what was evaluated.
            start: where it begins.
            count: evaluations, at most.
            radius: of the region, in the unit cube.

        Raises:
            Missing: the next point that is not known yet.
        """
        from scipy.optimize import minimize

        names, place = self._cube.names(start), (params_key(start), count, radius)
        if not names or not count:
            return
        if place in self._regions:  # over: what it saw is looked up again
            known.need(self._regions[place])
            return
        origin = self._cube.units(start, names)
        visited: dict[tuple, Proposal] = {}
        best: list[float] = []  # after each evaluation
        window = 3 * (len(names) + 1)  # of evaluations, longer than its first model takes

        def loss(units: np.ndarray) -> float:
            at_start = np.array_equal(units, origin)
            params = start if at_start else self._cube.moved(start, names, units)
            if not self._space.admits(params):
                return -FAILED
            key = params_key(params)
            if key not in visited and len(visited) == count:
                raise _Over
            if len(best) > window and best[-1] - best[-1 - window] < GAIN:
                raise _Over
            visited[key] = Proposal(params, self._refined, races=False)
            known.need([visited[key]])
            found = known.value(params, self._refined)
            best.append(max([found, *best[-1:]]))
            return -found

        with suppress(_Over):
            minimize(
                loss,
                origin,
                method="COBYQA",
                bounds=[(0.0, 1.0)] * len(names),
                options={"initial_tr_radius": radius, "final_tr_radius": SMALLEST},
            )
        self._regions[place] = list(visited.values())


@dataclass(frozen=True)
class _Plan:
    """How many evaluations each part gets.

    Attributes:
        defaults: whether the first point's numbers are screened in every branch.
        before_sweep, after_sweep: in rounds of the surrogate on few images, before and after the
            best is tried in all other branches; where there is none before, it is not tried there.
        all_images: points that are run on all images.
    """

    defaults: bool
    before_sweep: int
    after_sweep: int
    all_images: int

    @staticmethod
    def of(budget: int, points: int, branches: int) -> _Plan:
        """A share of the budget for each part.

        Args:
            budget: evaluations.
            points, branches: of the screening.
        """
        defaults = budget >= 12 * branches
        all_images = 4 if budget >= 6 * branches else 2
        spare = max(0, budget - points - (1 + defaults) * branches - all_images)
        explored = 2 * spare // 3
        if explored < 2 * branches:
            return _Plan(defaults, 0, explored, all_images)
        before = int(SWEPT * explored)
        return _Plan(defaults, before, explored - before - (branches - 1), all_images)


class _Over(Exception):
    """A trust region has had its evaluations."""
