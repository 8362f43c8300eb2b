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
from dipa_bench.search.unit_cube import UnitCube

FEWEST = 24  # evaluations below which there is nothing to follow
SCREENED, REFINED = 10, 40  # validation images
RADIUS = 0.15  # of the first trust region, in the unit cube
FURTHER = 0.25  # of those after the first sweep
WIDER = 0.3  # of one that begins anew where another ended
PATIENCE = 3  # of those in a row that found nothing better, after which there are no more
PROBES = (0.2, 0.8)  # of a number's range: at the ends themselves hardly anything is any good
FAR = 0.45  # from one optimum, where there may be another
SMALLEST = 0.01  # of the last: settings that close are less than 0.01 dB apart
GAIN = 0.01  # dB: a trust region that gained less of late is over, a search with its last one
ALIKE = 2.0  # standard errors of a paired difference, by which two are not told apart
FAILED = 0.0  # dB, of settings that diverged: below all that reconstruct anything

Params = dict[str, Value]


@dataclass(frozen=True)
class Evaluation:
    """Settings that were run.

    Attributes:
        params: the searched parameters.
        psnr: of the validation images that they were run on, in racing order; empty where they
            diverged or failed.
    """

    params: Mapping[str, Value]
    psnr: Sequence[float]


@dataclass(frozen=True)
class Proposal:
    """Settings to run.

    Attributes:
        params: the searched parameters.
        images: how many validation images, in racing order.
        races: whether they may leave off once they are significantly worse than the best.
    """

    params: Params
    images: int
    races: bool


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
        schedules: of `UnitCube`, in regions that begin anew where another ended.
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
        self._schedules = UnitCube(space, schedules)
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
        book = _Book(evaluations)
        book.need([Proposal(dict(one.params), 0, races=True) for one in evaluations])
        ranked = book.ranked(self._screened)[: self._plan.all_images]
        found = [Proposal(params, self._images, races=False) for params in ranked]
        return [one for one in found if book.found(one) is None]

    def late_gain(self, evaluations: Sequence[Evaluation]) -> float:
        """What the last quarter of the evaluations brought, in dB, on `REFINED` images.

        Images that settings were not run on are estimated by the difference to the best.
        """
        book = _Book(evaluations)
        book.need([Proposal(dict(one.params), 0, races=True) for one in evaluations])
        early = [dict(one.params) for one in evaluations[: -(-3 * len(evaluations) // 4)]]
        if not early:
            return 0.0
        ends = (book.best(self._refined), book.best(self._refined, early))
        last, before = (book.value(params, self._refined) for params in ends)
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
        book = _Book(evaluations)
        try:
            self._tune(book)
        except _Missing as missing:
            busy = set(map(_key, running))
            return [one for one in missing.proposals if _key(one.params) not in busy]
        return None

    # -------------------------------------------------------------------------------- procedure

    def _tune(self, book: _Book) -> None:
        """The whole search.

        Raises:
            _Missing: as far as it is known.
        """
        plan, few = self._plan, self._screened
        book.need([Proposal(self._points[0], self._images, races=False)])  # the untuned ones
        self._on_few(book, self._screening)
        start = book.best(few)
        self._follow(book, start, plan.region, few)
        found = self._on_all(book, book.best(few))
        if plan.sweeps:
            moved = [*self._neighbours(found, self._branches), *self._probes(found)]
            self._on_few(book, moved)
        self._follow_on(book, [_Region(start, found)])
        ranked = book.ranked(self._refined)
        seen = [params for params in ranked if params in book.seen(self._refined)]
        rest = [params for params in ranked if params not in seen]
        # an estimate from few images flatters what is best on these: one of them is enough
        last = seen[: plan.all_images - 1] + rest[: 1 if seen else plan.all_images]
        book.need([Proposal(params, self._images, races=False) for params in last])

    def _follow_on(self, book: _Book, regions: list[_Region]) -> None:
        """Further regions on few images, then others on more from the best of them; again, while
        that leads to another best on few images, or to one that these do not tell from it and that
        is better on more.

        Args:
            book: what is known.
            regions: those that there were.
        """
        few, images, done = self._screened, self._refined, []
        while True:
            if self._plan.sweeps:
                limits = (1, self._shortest) if done else (PATIENCE, self._plan.refined)
                regions = self._further_regions(book, regions, *limits)
            fresh = [one for one in self._contenders(book, regions) if one not in done]
            if not fresh:
                return
            reached = book.value(book.best(images, book.seen(images)), images)
            another = fresh[0] == book.best(few)
            several = len(fresh) > 1 or not another
            if several and self._left(book) >= len(fresh) + self._shortest:
                book.need([Proposal(one, images, races=False) for one in fresh])
            start = book.best(images, fresh)
            if not another and book.value(start, images) - reached < GAIN:
                return
            self._refine(book, start)
            done += [*fresh, book.best(few)]
            regions = [*regions, _Region(start, book.best(images, book.seen(images)))]

    def _further_regions(
        self, book: _Book, regions: Sequence[_Region], patience: int, reserve: int
    ) -> list[_Region]:
        """Further trust regions on few images, until several in a row found nothing better. What is
        better is tried with each other choice, and with each number near the ends of its range.

        Args:
            book: what is known.
            regions: those that there were.
            patience: how many in a row may find nothing better.
            reserve: evaluations to leave for more images.

        Returns:
            The same with the further ones.
        """
        plan, few, regions, fruitless = self._plan, self._screened, list(regions), 0
        while fruitless < patience and self._left(book) >= plan.region + reserve:
            if len(regions) not in self._starts:
                self._starts[len(regions)] = self._next_start(book, regions)
            start = self._starts[len(regions)]
            if start is None:
                break
            before, reached = len(book.asked), book.value(book.best(few), few)
            self._follow(book, start, plan.region, few, FURTHER, reached)
            regions.append(_Region(start, book.best(few, [start, *book.asked[before:]])))
            if book.value(book.best(few), few) - reached < GAIN:
                fruitless += 1
                continue
            found, fruitless = self._on_all(book, book.best(few)), 0
            moved = self._neighbours(found, self._single_changes)
            self._on_few(book, [*moved, *self._probes(found)])
        return regions

    def _next_start(self, book: _Book, regions: Sequence[_Region]) -> Params | None:
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
            others = [one for one in book.asked if all(self._apart(one, end) for end in ends)]
            branch = self._place(book.best(few)).branch
            if sum(self._place(region.start).branch == branch for region in regions) == 1:
                alike = [one for one in others if self._place(one).branch == branch]
                others = alike or others
        return book.best(few, others) if others else None

    def _contenders(self, book: _Book, regions: Sequence[_Region]) -> list[Params]:
        """The best on few images, and ends of regions far from it that these images do not tell
        from it.
        """
        few = self._screened
        found = [book.best(few)]
        for end in book.ranked(few, _distinct([region.end for region in regions])):
            if all(self._apart(end, one) for one in found) and book.alike(found[0], end, few):
                found.append(end)
        return found

    def _on_few(self, book: _Book, points: Sequence[Params]) -> None:
        """Points in a race on the images of the screening."""
        book.need([Proposal(point, self._screened, races=True) for point in points])

    def _on_all(self, book: _Book, params: Params) -> Params:
        """The same settings, run on all images: what the search has, should it end early."""
        book.need([Proposal(params, self._images, races=False)])
        return params

    def _refine(self, book: _Book, start: Params) -> None:
        """Trust regions on more images: from the best; from the best other choice with its numbers,
        if a region on few images makes that better; else wider ones where the last one ended.

        A region that has become small in a curved valley ends before the optimum; one that begins
        anew there, wider and with other coordinates, goes on.
        """
        few, images, radius = self._screened, self._refined, RADIUS
        while (left := self._left(book)) >= (1 if radius == RADIUS else self._shortest):
            kept = len(self._single_changes) + self._plan.region  # for other choices
            spare = left - kept if left - kept >= self._shortest + 2 else left
            reached = book.value(book.best(images, book.seen(images)), images)
            self._follow(book, start, spare, images, radius)
            start = book.best(images, book.seen(images))
            moved = self._neighbours(start, self._single_changes)
            if moved and self._left(book) >= kept:
                self._on_few(book, moved)
                before, rival = len(book.asked), book.value(start, few)
                self._follow(book, book.best(few, moved), self._plan.region, few, FURTHER, rival)
                other = book.best(few, [start, *book.asked[before:]])
                if book.value(other, few) - rival >= GAIN:
                    start, radius = other, RADIUS
                    continue
            if book.value(start, images) - reached < GAIN:
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
        key = _key(params)
        if key not in self._places:
            names = self._cube.names(params)
            choices = [(name, params.get(name)) for name in self._choices]
            units = self._cube.units(params, names).tolist()
            self._places[key] = _Place((*choices, *names), tuple(units))
        return self._places[key]

    def _admits(self, params: Params) -> bool:
        """Whether the task has nothing against a draw."""
        key = _key(params)
        if key not in self._admitted:
            self._admitted[key] = self._task_admits(params)
        return self._admitted[key]

    def _left(self, book: _Book) -> int:
        """Evaluations of the budget that are left for trust regions on more images."""
        final = 1 if self._refined == self._images else self._plan.all_images
        return self._budget - book.runs - final

    @cached_property
    def _screening(self) -> list[Params]:
        """The points; the first one's numbers in every branch, if there are two rounds; and in
        every branch a point of its own.
        """
        found = list(self._points)
        if self._plan.rounds > 1:
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
        book: _Book,
        start: Params,
        count: int,
        images: int,
        radius: float = RADIUS,
        rival: float = -math.inf,
    ) -> None:
        """A trust region from a point, until it gains no more.

        Args:
            book: what is known.
            start: where it begins.
            count: evaluations, at most.
            images: of each.
            radius: of the region, in the unit cube.
            rival: PSNR [dB] that it is left for, if after the first model twice its gain does not
                reach it.

        Raises:
            _Missing: the next point that is not known yet.
        """
        from scipy.optimize import minimize

        names, place = self._cube.names(start), (_key(start), count, images, radius)
        if not names or not count:
            return
        if place in self._regions:  # over: what it saw is looked up again
            book.need(self._regions[place])
            return
        cube = self._cube if images == self._screened else self._schedules
        origin = cube.units(start, names)
        visited: dict[tuple, Proposal] = {}
        best: list[float] = []  # after each evaluation
        window = 3 * (len(names) + 1)  # of evaluations, longer than its first model takes

        def loss(units: np.ndarray) -> float:
            at_start = np.array_equal(units, origin)
            params = start if at_start else cube.moved(start, names, units)
            if not self._admits(params):
                return -FAILED
            key = _key(params)
            if key not in visited and len(visited) == count:
                raise _Over
            if len(best) > window and best[-1] - best[-1 - window] < GAIN:
                raise _Over
            if len(best) >= self._shortest + 2 and 2 * best[-1] - best[0] < rival:
                raise _Over
            visited[key] = Proposal(params, images, races=False)
            book.need([visited[key]])
            found = book.value(params, images)
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
        rounds: of the screening.
        region: of each trust region on few images.
        sweeps: whether other branches and the ends of ranges are tried.
        refined: of the trust regions on more images, at least.
        all_images: points that are run on all images.
    """

    rounds: int
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
        rounds = 2 if budget >= 12 * branches else 1
        all_images = 4 if budget >= 6 * branches else 2
        spare = max(0, budget - points - rounds * branches - all_images - 2)
        left = spare - (branches - 1) - others - 2 * width
        if left < 2 * model:
            return _Plan(rounds, min(max(model, spare // 2), spare), False, 0, all_images)
        region = max(model, min(left // 5, 5 * width))
        return _Plan(rounds, region, True, 2 * left // 5, all_images)


class _Missing(Exception):
    """Evaluations that the search needs before it goes on."""

    def __init__(self, proposals: Sequence[Proposal]) -> None:
        super().__init__()
        self.proposals = list(proposals)


class _Over(Exception):
    """A trust region has had its evaluations."""


class _Book:
    """What is known, and what the search has asked for so far.

    What was run twice, on some images and then on more, is what it was the first time until the
    search asks for more: what the search does next must not depend on what it does later.
    """

    def __init__(self, evaluations: Sequence[Evaluation]) -> None:
        self._known: dict[tuple, list[np.ndarray]] = {}
        for one in evaluations:
            psnr = np.asarray(one.psnr, dtype=float)
            self._known.setdefault(_key(one.params), []).append(psnr)
        self._asked: dict[tuple, Params] = {}
        self._psnr: dict[tuple, np.ndarray] = {}
        self._means: dict[tuple, float] = {}  # of settings over so many images
        self._leaders: dict[int, tuple | None] = {}  # over so many images
        self._runs: set[tuple] = set()

    def need(self, proposals: Sequence[Proposal]) -> None:
        """Looks settings up.

        Raises:
            _Missing: those that were not run, or on fewer images.
        """
        answers = [self.found(one) for one in proposals]
        pairs = list(zip(proposals, answers, strict=True))
        if missing := [one for one, psnr in pairs if psnr is None]:
            raise _Missing(missing)
        for one, psnr in pairs:
            key = _key(one.params)
            self._asked.setdefault(key, one.params)
            if key not in self._psnr or len(psnr) > len(self._psnr[key]):
                self._psnr[key] = psnr
                self._means.clear()
                self._leaders.clear()
            self._runs.add((key, one.images))

    def found(self, proposal: Proposal) -> np.ndarray | None:
        """PSNRs of the first run that answers a proposal; empty where it failed."""
        for psnr in self._known.get(_key(proposal.params), ()):
            if proposal.races or not len(psnr) or len(psnr) >= proposal.images:
                return psnr
        return None

    @property
    def runs(self) -> int:
        """Evaluations that the search has asked for so far."""
        return len(self._runs)

    @property
    def asked(self) -> list[Params]:
        """What the search has asked for so far, at least one."""
        return list(self._asked.values())

    def seen(self, images: int) -> list[Params]:
        """What was asked for and run on at least so many images."""
        return [params for params in self.asked if len(self._psnr[_key(params)]) >= images]

    def value(self, params: Params, images: int) -> float:
        """Mean PSNR [dB] over the first images; from fewer by the difference to the best."""
        key = _key(params)
        psnr = self._psnr[key]
        if not len(psnr):
            return FAILED
        if len(psnr) >= images:
            return self._mean(key, images)
        best = self._leader(images)
        if best is None:
            return self._mean(key, len(psnr))
        lead = self._mean(key, len(psnr)) - self._mean(best, len(psnr))
        return self._mean(best, images) + lead

    def alike(self, one: Params, other: Params, images: int) -> bool:
        """Whether the first images leave it open which of two is better."""
        pair = [self._psnr[_key(params)][:images] for params in (one, other)]
        if images < 2 or any(len(psnr) < images for psnr in pair):
            return False
        lead = np.subtract(*pair)
        return lead.mean() <= ALIKE * lead.std(ddof=1) / math.sqrt(images)

    def _leader(self, images: int) -> tuple | None:
        """The best of what was run on at least so many images."""
        if images not in self._leaders:
            whole = [_key(params) for params in self.seen(images)]
            self._leaders[images] = max(
                whole, key=lambda key: self._mean(key, images), default=None
            )
        return self._leaders[images]

    def _mean(self, key: tuple, images: int) -> float:
        """Mean PSNR [dB] over the first images."""
        if (key, images) not in self._means:
            self._means[key, images] = float(self._psnr[key][:images].mean())
        return self._means[key, images]

    def best(self, images: int, among: Sequence[Params] = ()) -> Params:
        """The first of `ranked`."""
        return self.ranked(images, among)[0]

    def ranked(self, images: int, among: Sequence[Params] = ()) -> list[Params]:
        """Some settings, or all that was asked for, the best over the first images first."""
        found = among or self.asked
        return sorted(found, key=lambda params: self.value(params, images), reverse=True)


def _key(params: Mapping[str, Value]) -> tuple:
    return tuple(sorted(params.items()))


def _distinct(points: Sequence[Params]) -> list[Params]:
    return list({_key(point): point for point in points}.values())
