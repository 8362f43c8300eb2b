"""Tunes the solver settings of a fixed operator: screening, then trust regions, then all images.

Settings are few, and PSNR is smooth in those that are numbers. So a tuner that knows this needs a
fraction of what a sampler needs that learns it:

1. **Screening.** The given points; then, in every *branch* (each start with each momentum), numbers
   of its own from a Sobol sequence, as branches differ little where the numbers are bad in all of
   them; with many evaluations the numbers of the first point as well. On the first `SCREENED`
   validation images, where what is significantly worse leaves even sooner.
2. **Trust region.** From the best of these a quadratic model is followed over all numbers at once,
   in the unit cube of their ranges: COBYQA (Ragonneau and Zhang, "COBYQA", 2023), which needs no
   gradients and so takes any prior. It ends where it gains no more.
3. **Sweep.** What it found is tried in all other branches, and with each number near either end of
   its range, as PSNR may have two modes.
4. **Further trust regions**, from the best with another start, then from what is far from where
   others began and ended; what is better is tried with each other choice, and near the ends.
5. The best, and what these images do not tell from it, are run on `REFINED` images, and the best of
   them is followed there; then the best other choice with its numbers, or wider regions where the
   last one ended; 4 and 5 again while there is budget, and the best of what was seen is run on all
   images. Only what was run on all can win.

An operator's own parameters (mu, degree, rank) are tuned with the settings, within the same number:
numbers in the trust regions, choices in the screening and the sweep.

What comes next is a function of the settings that were evaluated, and of nothing else: the whole
procedure is gone through again for every question, with what is known of it. So a search that was
stopped goes on as if it never had been, and several workers share it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from optuna.distributions import CategoricalDistribution

from dipa_bench.config.space import Block, sobol_point, value_at
from dipa_bench.parameters import Value, When
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
RADIUS = 0.15  # of the first trust region, in the unit cube
FURTHER = 0.25  # of those after the first sweep
WIDER = 0.3  # of one that begins anew where another ended
PATIENCE = 3  # of those in a row that found nothing better, after which there are no more
PROBES = (0.2, 0.8)  # of a number's range: at the ends themselves hardly anything is any good
FAR = 0.3  # from one optimum, where there may be another
SMALLEST = 0.01  # of the last: settings that close are less than 0.01 dB apart
GAIN = 0.01  # dB: a trust region that gained less of late is over, a search with its last one


class SettingsTuner:
    """What to evaluate next, given what was.

    Args:
        space: parameter to distribution, at least one.
        points: to try first, each with a value for every parameter that counts; the first is what
            the entry is untuned.
        budget: evaluations, at least `FEWEST`.
        images: N, all validation images.
        branches: names of the choices of which all combinations are screened; a trust region
            begins from several values of the first of them.
        limits: number to the choice that it depends on, with a limit for each of its values; where
            that choice is changed, the number stays the same fraction of its limit.
        schedules: of `UnitCube`, in regions on more images than those of the screening.
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
        limits: Mapping[str, tuple[str, Mapping[str, float]]] | None = None,
        schedules: Mapping[str, str] | None = None,
        seed: int = 0,
        shared_seed: int = 0,
        conditions: Mapping[str, When] | None = None,
        admits: Callable[[Params], bool] = lambda draw: True,
    ) -> None:
        self._space = dict(space)
        self._cube = UnitCube(space)
        self._schedule_cube = UnitCube(space, schedules)
        self._seed, self._shared_seed = seed, shared_seed
        self._conditions, self._limits = dict(conditions or {}), dict(limits or {})
        self._task_admits = admits
        self._choices = [
            name for name, found in space.items() if isinstance(found, CategoricalDistribution)
        ]
        self._shared = [name for name in space if name.startswith("solve.")]
        self._branching = [name for name in branches if name in self._choices]
        values = (self._space[name].choices for name in self._branching)
        self._branches = [
            dict(zip(self._branching, branch, strict=True)) for branch in itertools.product(*values)
        ]
        first = self._complete({}, points[0] if points else {})
        self._points = [self._complete(first, point) for point in points] or [first]
        self._screened, self._refined = min(SCREENED, images), min(REFINED, images)
        self._images = images
        # what follows from the space alone, or is over, of which every step asks again
        self._regions: dict[tuple, list[Proposal]] = {}
        self._starts: dict[int, Params | None] = {}  # by how many regions there were
        self._places: dict[tuple, _Place] = {}
        self._admitted: dict[tuple, bool] = {}
        width = len(self._cube.names(dict.fromkeys(self._space)))
        self._budget, self._shortest = budget, 2 * width + 1
        others = sum(len(self._space[name].choices) - 1 for name in self._choices)
        self._plan = _Plan.of(budget, len(self._points), len(self._branches), others, width)

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
        ends = (known.best(self._refined), known.best(self._refined, early))
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
        plan, few = self._plan, self._screened
        known.need([Proposal(self._points[0], self._images, races=False)])  # the untuned ones
        self._on_few(known, self._screening)
        start = known.best(few)
        self._follow(known, start, plan.region, few)
        found = self._on_all(known, known.best(few))
        if plan.sweeps:
            moved = [*self._neighbours(found, self._branches), *self._probes(found)]
            self._on_few(known, moved)
        self._follow_on(known, [_Region(start, found)])
        ranked = known.ranked(self._refined)
        seen = [params for params in ranked if params in known.seen(self._refined)]
        rest = [params for params in ranked if params not in seen]
        # an estimate from few images flatters what is best on these: one of them is enough
        last = seen[: plan.all_images - 1] + rest[: 1 if seen else plan.all_images]
        known.need([Proposal(params, self._images, races=False) for params in last])

    def _follow_on(self, known: Evaluations, regions: list[_Region]) -> None:
        """Further regions on few images, then others on more from the best of them; again, while
        that leads to another best on few images, or to one that these do not tell from it and that
        is better on more.

        Args:
            known: what was evaluated.
            regions: those that there were.
        """
        few, images, done = self._screened, self._refined, []
        while True:
            if self._plan.sweeps:
                limits = (1, self._shortest) if done else (PATIENCE, self._plan.refined)
                regions = self._further_regions(known, regions, *limits)
            fresh = [one for one in self._contenders(known, regions) if one not in done]
            if not fresh:
                return
            reached = known.value(known.best_seen(images), images)
            another = fresh[0] == known.best(few)
            several = len(fresh) > 1 or not another
            if several and self._left(known) >= len(fresh) + self._shortest:
                known.need([Proposal(one, images, races=False) for one in fresh])
            start = known.best(images, fresh)
            if not another and known.value(start, images) - reached < GAIN:
                return
            self._refine(known, start)
            done += [*fresh, known.best(few)]
            regions = [*regions, _Region(start, known.best_seen(images))]

    def _further_regions(
        self, known: Evaluations, regions: Sequence[_Region], patience: int, reserve: int
    ) -> list[_Region]:
        """Further trust regions on few images, until several in a row found nothing better. What is
        better is tried with each other choice, and with each number near the ends of its range.

        Args:
            known: what was evaluated.
            regions: those that there were.
            patience: how many in a row may find nothing better.
            reserve: evaluations to leave for more images.

        Returns:
            The same with the further ones.
        """
        plan, few, regions, fruitless = self._plan, self._screened, list(regions), 0
        while fruitless < patience and self._left(known) >= plan.region + reserve:
            if len(regions) not in self._starts:
                self._starts[len(regions)] = self._next_start(known, regions)
            start = self._starts[len(regions)]
            if start is None:
                break
            before, reached = len(known.asked), known.value(known.best(few), few)
            self._follow(known, start, plan.region, few, FURTHER, reached)
            regions.append(_Region(start, known.best(few, [start, *known.asked[before:]])))
            if known.value(known.best(few), few) - reached < GAIN:
                fruitless += 1
                continue
            found, fruitless = self._on_all(known, known.best(few)), 0
            moved = self._neighbours(found, self._single_changes)
            self._on_few(known, [*moved, *self._probes(found)])
        return regions

    def _next_start(self, known: Evaluations, regions: Sequence[_Region]) -> Params | None:
        """Where a further region begins, given where others did and ended; None for nowhere.

        The second of all at the best of the screening with another start: a start is worth little
        with the numbers that are best for another one. Then far from where others began and ended:
        with the choices of the best, if only one began there, else with any.
        """
        few, main = self._screened, next(iter(self._branching), "")
        begun = {end.get(main) for region in regions for end in region}
        others = [point for point in self._screening if point.get(main) not in begun]
        if len(regions) > 1 or not others:
            ends = [end for region in regions for end in region]
            others = [one for one in known.asked if all(self._apart(one, end) for end in ends)]
            branch = self._place(known.best(few)).branch
            if sum(self._place(region.start).branch == branch for region in regions) == 1:
                alike = [one for one in others if self._place(one).branch == branch]
                others = alike or others
        return known.best(few, others) if others else None

    def _contenders(self, known: Evaluations, regions: Sequence[_Region]) -> list[Params]:
        """The best on few images, and ends of regions far from it that these images do not tell
        from it.
        """
        few = self._screened
        found = [known.best(few)]
        for end in known.ranked(few, _distinct([region.end for region in regions])):
            if all(self._apart(end, one) for one in found) and known.alike(found[0], end, few):
                found.append(end)
        return found

    def _on_few(self, known: Evaluations, points: Sequence[Params]) -> None:
        """Points in a race on the images of the screening."""
        known.need([Proposal(point, self._screened, races=True) for point in points])

    def _on_all(self, known: Evaluations, params: Params) -> Params:
        """The same settings, run on all images: what the search has, should it end early."""
        known.need([Proposal(params, self._images, races=False)])
        return params

    def _refine(self, known: Evaluations, start: Params) -> None:
        """Trust regions on more images: from the best; from the best other choice with its numbers,
        if a region on few images makes that better; else wider ones where the last one ended.

        A region that has become small in a curved valley ends before the optimum; one that begins
        anew there, and wider, goes on.
        """
        few, images, radius = self._screened, self._refined, RADIUS
        while (left := self._left(known)) >= (1 if radius == RADIUS else self._shortest):
            kept = len(self._single_changes) + self._plan.region  # for other choices
            spare = left - kept if left - kept >= self._shortest + 2 else left
            reached = known.value(known.best_seen(images), images)
            self._follow(known, start, spare, images, radius)
            start = known.best_seen(images)
            moved = self._neighbours(start, self._single_changes)
            if moved and self._left(known) >= kept:
                self._on_few(known, moved)
                before, rival = len(known.asked), known.value(start, few)
                self._follow(known, known.best(few, moved), self._plan.region, few, FURTHER, rival)
                other = known.best(few, [start, *known.asked[before:]])
                if known.value(other, few) - rival >= GAIN:
                    start, radius = other, RADIUS
                    continue
            if known.value(start, images) - reached < GAIN:
                return
            radius = WIDER

    def _apart(self, one: Params, other: Params) -> bool:
        """Whether two points are of different branches, or far from each other in the unit cube."""
        first, second = self._place(one), self._place(other)
        if first.branch != second.branch:
            return True
        pairs = zip(first.units, second.units, strict=True)
        return any(abs(here - there) > FAR for here, there in pairs)

    def _place(self, params: Params) -> _Place:
        key = params_key(params)
        if key not in self._places:
            names = self._cube.names(params)
            choices = [(name, params.get(name)) for name in self._choices]
            units = self._cube.units(params, names).tolist()
            self._places[key] = _Place((*choices, *names), tuple(units))
        return self._places[key]

    def _admits(self, params: Params) -> bool:
        """Whether the task has nothing against a draw."""
        key = params_key(params)
        if key not in self._admitted:
            self._admitted[key] = self._task_admits(params)
        return self._admitted[key]

    def _left(self, known: Evaluations) -> int:
        """Evaluations of the budget that are left for trust regions on more images."""
        final = 1 if self._refined == self._images else self._plan.all_images
        return self._budget - known.runs - final

    @cached_property
    def _screening(self) -> list[Params]:
        """The points; the first one's numbers in every branch, with many evaluations; and in every
        branch a point of its own.
        """
        found = list(self._points)
        if self._plan.defaults:
            found += [self._complete(self._points[0], branch) for branch in self._branches]
        for index, branch in enumerate(self._branches):
            found.append(self._complete(self._points[0] | self._drawn(index), branch))
        return _distinct([point for point in found if self._admits(point)])

    def _drawn(self, index: int) -> Params:
        """A Sobol point: solver settings that all entries have, and own parameters."""
        own = [name for name in self._space if name not in self._shared]
        draw = sobol_point(self._space, index, self._shared_seed, self._shared)
        return draw | sobol_point(self._space, index, self._seed, own)

    @cached_property
    def _single_changes(self) -> list[Params]:
        """Each value of each choice of the branches."""
        return [{name: value} for name in self._branching for value in self._space[name].choices]

    def _neighbours(self, params: Params, changes: Sequence[Params]) -> list[Params]:
        """The same point with other choices: those of the changes, and each one of its own."""
        own = [name for name in self._choices if name in params and name not in self._shared]
        changes = [*changes]
        changes += [{name: value} for name in own for value in self._space[name].choices]
        moved = [self._changed(params, change) for change in changes]
        return [one for one in _distinct(moved) if one != params and self._admits(one)]

    def _changed(self, params: Params, change: Params) -> Params:
        """The same point with other choices, and with what is limited by them as far from there."""
        found = self._complete(params, change)
        for name, (choice, limit) in self._limits.items():
            old, new = (limit.get(point.get(choice)) for point in (params, found))
            if name in found and old and new:
                low, high = self._space[name].low, self._space[name].high
                found[name] = min(max(params[name] * new / old, low), high)
        return found

    def _probes(self, params: Params) -> list[Params]:
        """The same point with each of its numbers near the ends of its range: PSNR has two modes
        where a strength that falls does as well as one that rises.
        """
        names = self._cube.names(params)
        units = self._cube.units(params, names)
        found = []
        for place, end in itertools.product(range(len(names)), PROBES):
            if abs(units[place] - end) > RADIUS:
                moved = np.where(np.arange(len(names)) == place, end, units)
                found.append(self._cube.moved(params, names, moved))
        return [one for one in _distinct(found) if one != params and self._admits(one)]

    def _follow(
        self,
        known: Evaluations,
        start: Params,
        count: int,
        images: int,
        radius: float = RADIUS,
        rival: float = -math.inf,
    ) -> None:
        """A trust region from a point, until it gains no more.

        Args:
            known: what was evaluated.
            start: where it begins.
            count: evaluations, at most.
            images: of each.
            radius: of the region, in the unit cube.
            rival: PSNR [dB] that it is left for, if after the first model twice its gain does not
                reach it.

        Raises:
            Missing: the next point that is not known yet.
        """
        from scipy.optimize import minimize

        names, place = self._cube.names(start), (params_key(start), count, images, radius)
        if not names or not count:
            return
        if place in self._regions:  # over: what it saw is looked up again
            known.need(self._regions[place])
            return
        cube = self._cube if images == self._screened else self._schedule_cube
        origin = cube.units(start, names)
        visited: dict[tuple, Proposal] = {}
        best: list[float] = []  # after each evaluation
        window = 3 * (len(names) + 1)  # of evaluations, longer than its first model takes

        def loss(units: np.ndarray) -> float:
            at_start = np.array_equal(units, origin)
            params = start if at_start else cube.moved(start, names, units)
            if not self._admits(params):
                return -FAILED
            key = params_key(params)
            if key not in visited and len(visited) == count:
                raise _Over
            if len(best) > window and best[-1] - best[-1 - window] < GAIN:
                raise _Over
            if len(best) >= self._shortest + 2 and 2 * best[-1] - best[0] < rival:
                raise _Over
            visited[key] = Proposal(params, images, races=False)
            known.need([visited[key]])
            found = known.value(params, images)
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

    # ----------------------------------------------------------------------------------- points

    def _complete(self, base: Mapping[str, Value], change: Mapping[str, Value]) -> Params:
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


class _Region(NamedTuple):
    """A trust region: where it began, and the best that it found."""

    start: Params
    end: Params


class _Place(NamedTuple):
    """Where a point lies: its choices with the names of its numbers, and these in the unit cube."""

    branch: tuple
    units: tuple[float, ...]


@dataclass(frozen=True)
class _Plan:
    """How many evaluations each part gets.

    Attributes:
        defaults: whether the first point's numbers are screened in every branch.
        region: of each trust region on few images.
        sweeps: whether other branches and the ends of ranges are tried.
        refined: of the trust regions on more images, at least.
        all_images: points that are run on all images.
    """

    defaults: bool
    region: int
    sweeps: bool
    refined: int
    all_images: int

    @staticmethod
    def of(budget: int, points: int, branches: int, others: int, width: int) -> _Plan:
        """A share of the budget for each part.

        Args:
            budget: evaluations.
            points, branches: of the screening.
            others: choices beside those that a point has.
            width: numbers that a trust region has.
        """
        model = 2 * width + 3  # evaluations for COBYQA's first model, and two steps
        defaults = budget >= 12 * branches
        all_images = 4 if budget >= 6 * branches else 2
        spare = max(0, budget - points - (1 + defaults) * branches - all_images - 2)
        left = spare - (branches - 1) - others - 2 * width
        if left < 2 * model:
            return _Plan(defaults, min(max(model, spare // 2), spare), False, 0, all_images)
        region = max(model, min(left // 5, 5 * width))
        return _Plan(defaults, region, True, 2 * left // 5, all_images)


class _Over(Exception):
    """A trust region has had its evaluations."""


def _distinct(points: Sequence[Params]) -> list[Params]:
    return list({params_key(point): point for point in points}.values())
