"""The tuner against functions whose optimum is known: it finds it, within its budget, resumably."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from dipa_bench.parameters import When
from dipa_bench.search.evaluations import Evaluation, Proposal
from dipa_bench.search.settings_tuner import FEWEST, SettingsTuner
from dipa_bench.search.tuning import SCHEDULES

STARTS, MOMENTA = ("adjoint", "zero", "lmmse"), ("textbook", "none")
SPACE = {
    "solve.step": FloatDistribution(0.03, 2.0),
    "solve.strength": FloatDistribution(0.005, 0.3, log=True),
    "solve.momentum": CategoricalDistribution(MOMENTA),
    "solve.start": CategoricalDistribution(STARTS),
}
FIRST = {
    "solve.step": 1.0,
    "solve.strength": 0.05,
    "solve.momentum": "textbook",
    "solve.start": "adjoint",
}
IMAGES = 60
OFFSETS = np.linspace(-3.0, 3.0, IMAGES)  # some images are easier; their mean is 0
Score = Callable[[Mapping[str, Any]], float]


def smooth(params: Mapping[str, Any]) -> float:
    """Best is 30 dB, without momentum from the LMMSE start, at step 1.6 and strength 0.02."""
    step = params["solve.step"] / 2
    strength = math.log(params["solve.strength"] / 0.02)
    branch = {"adjoint": 1.0, "zero": 1.2, "lmmse": 0.0}[params["solve.start"]]
    branch += {"textbook": 0.3, "none": 0.0}[params["solve.momentum"]]
    return 30 - branch - 8 * (step - 0.8) ** 2 - 0.7 * strength**2 - 0.5 * strength * (step - 0.8)


def tuner(budget: int = 100, images: int = IMAGES, **more: Any) -> SettingsTuner:
    options = {
        "space": SPACE,
        "points": [FIRST],
        "branches": ["solve.start", "solve.momentum"],
    } | more
    space, points = options.pop("space"), options.pop("points")
    return SettingsTuner(space, points, budget, images, **options)


def run(proposal: Proposal, score: Score) -> Evaluation:
    """On as many images as asked for; what races and is 2 dB worse leaves after five."""
    value = score(proposal.params)
    if math.isnan(value):
        return Evaluation(proposal.params, ())
    count = 5 if proposal.races and value < 27 else proposal.images
    return Evaluation(proposal.params, (value + OFFSETS[:count]).tolist())


def search(one: SettingsTuner, score: Score, known: list[Evaluation] | None = None, most=math.inf):
    """Evaluates one proposal after the other; the evaluations."""
    found = list(known or [])
    while (proposals := one.proposals(found)) and len(found) < most:
        found.append(run(proposals[0], score))
    return found


@functools.cache
def whole_search() -> tuple[Evaluation, ...]:
    """The search that several tests look at."""
    return tuple(search(tuner(), smooth))


def best(found: Sequence[Evaluation], images: int = IMAGES) -> Evaluation:
    whole = [one for one in found if len(one.psnr) == images]
    return max(whole, key=lambda one: np.mean(one.psnr))


@pytest.mark.exhaustive(after=2)
@pytest.mark.parametrize(("images", "seed"), [(8, 0), (30, 1), (IMAGES, 0), (IMAGES, 2)])
def test_it_finds_the_optimum_of_a_smooth_function(images: int, seed: int) -> None:
    found = search(tuner(images=images, shared_seed=seed), smooth)
    assert len(found) <= 100
    winner = best(found, images).params
    assert (winner["solve.start"], winner["solve.momentum"]) == ("lmmse", "none")
    assert smooth(winner) == pytest.approx(30.0, abs=0.01)


def test_it_asks_for_few_images_first_and_for_all_of_the_best() -> None:
    found = whole_search()
    assert len(found[0].psnr) == IMAGES  # the first point, from which others are estimated
    assert {len(one.psnr) for one in found[1:13]} == {5, 10}  # the screening
    assert len(found[-1].psnr) == IMAGES
    assert sum(len(one.psnr) for one in found) < 0.5 * 100 * IMAGES


def test_every_branch_is_tried_before_anything_is_followed() -> None:
    proposals = tuner().proposals([])
    assert [one.params for one in proposals] == [FIRST]
    found = [run(proposals[0], smooth)]
    screened = tuner().proposals(found)
    branches = {(one.params["solve.start"], one.params["solve.momentum"]) for one in screened}
    assert branches == {(start, momentum) for start in STARTS for momentum in MOMENTA}
    assert all(one.races and one.images == 10 for one in screened)
    strengths = Counter(one.params["solve.strength"] for one in screened)
    assert strengths[0.05] == len(branches) - 1  # the first point's; one of them was run already
    assert len(strengths) == len(branches) + 1  # and numbers of its own for each


@pytest.mark.exhaustive(after=1)
@pytest.mark.parametrize("stop", [10, 60])
def test_a_search_that_was_stopped_goes_on_as_if_it_never_had_been(stop: int) -> None:
    whole = list(whole_search())
    begun = search(tuner(), smooth, most=stop)
    assert begun == whole[:stop]
    assert search(tuner(), smooth, begun) == whole


def test_a_branch_with_bad_numbers_is_not_ruled_out() -> None:
    """At the first point's strength the best branch is the worst; the sweep finds it."""

    def twisted(params: Mapping[str, Any]) -> float:
        strength = math.log(params["solve.strength"] / 0.008)
        best_branch = params["solve.start"] == "zero"
        return (30.0 if best_branch else 29.0) - (1.5 if best_branch else 1.0) * strength**2

    winner = best(search(tuner(), twisted)).params
    assert winner["solve.start"] == "zero"
    assert twisted(winner) == pytest.approx(30.0, abs=0.01)


@pytest.mark.exhaustive(after=1)
@pytest.mark.parametrize("seed", range(3))
def test_a_start_that_needs_numbers_of_its_own_is_found(seed: int) -> None:
    """With a strong prior all starts are alike, with a weak one all but one are bad."""

    def hidden(params: Mapping[str, Any]) -> float:
        strength = math.log(params["solve.strength"])
        strong = 28.0 - (strength - math.log(0.15)) ** 2
        weak = 29.0 if params["solve.start"] == "lmmse" else 24.0
        return max(strong, weak - 0.5 * (strength - math.log(0.006)) ** 2)

    found = best(search(tuner(shared_seed=seed), hidden))
    assert hidden(found.params) == pytest.approx(29.0, abs=0.02)


def test_where_nothing_gains_the_search_ends_early() -> None:
    assert len(search(tuner(192), lambda params: 25.0)) < 120


@pytest.mark.exhaustive
def test_the_better_of_two_modes_is_found() -> None:
    """Two maxima in the strength, the first point near the lower one."""

    def modes(params: Mapping[str, Any]) -> float:
        strength = math.log(params["solve.strength"])
        low, high = strength - math.log(0.05), strength - math.log(0.25)
        return 25 + max(2 - 6 * low**2, 4 - 6 * high**2, 0.0)

    assert modes(best(search(tuner(), modes)).params) == pytest.approx(29.0, abs=0.02)


@pytest.mark.exhaustive(after=1)
@pytest.mark.parametrize("seed", [3, 4, 0])
def test_what_few_images_do_not_tell_apart_is_tried_on_more(seed: int) -> None:
    """Two modes of the strength; on few images the worse one is a little better."""
    disagreement = np.tile([0.1, -0.1], 5)

    def psnr(params: Mapping[str, Any], count: int) -> list[float]:
        strength, rest = math.log(params["solve.strength"]), {"solve.strength": 0.02}
        weak = smooth({**params, **rest}) - (strength - math.log(0.01)) ** 2
        strong = smooth({**params, **rest}) - (strength - math.log(0.2)) ** 2 - 0.02
        few = max(weak, strong) + (disagreement if weak > strong else -disagreement)
        return [*few, *[max(weak - 0.3, strong)] * (count - 10)][:count]

    one, found = tuner(140, shared_seed=seed), []
    while proposals := one.proposals(found):
        (proposal, *_) = proposals
        found.append(Evaluation(proposal.params, psnr(proposal.params, proposal.images)))
    assert best(found).params["solve.strength"] == pytest.approx(0.2, rel=0.2)


@pytest.mark.exhaustive(after=1)
@pytest.mark.parametrize("seed", range(3))
def test_a_second_mode_of_the_best_branch_is_found(seed: int) -> None:
    """What is far from the best is better in all other branches, but there it leads nowhere."""

    def modes(params: Mapping[str, Any]) -> float:
        strength, step = math.log(params["solve.strength"]), params["solve.step"] / 2
        if (params["solve.start"], params["solve.momentum"]) != ("lmmse", "none"):
            return 29.3 - 0.1 * (step - 0.5) ** 2
        low, high = strength - math.log(0.006), strength - math.log(0.2)
        return max(29.9 - 0.6 * high**2, 30.3 - 3 * low**2) - 10 * (step - 0.5) ** 2

    one = tuner(192, points=[FIRST | {"solve.strength": 0.1}], shared_seed=seed)
    assert modes(best(search(one, modes)).params) == pytest.approx(30.3, abs=0.03)


SPENT = pytest.mark.xfail(
    strict=True,
    raises=AssertionError,
    reason="the budget is spent on the way up, 0.03 dB or a branch short",
)


@pytest.mark.exhaustive(after=1)
@pytest.mark.parametrize("seed", [2, pytest.param(0, marks=SPENT), pytest.param(1, marks=SPENT)])
def test_a_ridge_along_the_last_strength_is_climbed(seed: int) -> None:
    """The first strength decides, with the step; the last one brings 0.05 dB for a factor of e."""
    space = SPACE | {"solve.decay": FloatDistribution(0.003, 3.0, log=True)}

    def ridge(params: Mapping[str, Any]) -> float:
        middle, decay = math.log(params["solve.strength"]), math.log(params["solve.decay"])
        first = middle - decay / 2 - math.log(0.2) - (params["solve.step"] - 1.6) / 2
        slope = 0.05 * abs(middle + decay / 2 - math.log(0.03))
        return smooth({**params, "solve.strength": 0.02}) - 20 * first**2 - slope

    start = FIRST | {"solve.decay": 1.0}
    one = tuner(192, space=space, points=[start], schedules=SCHEDULES, shared_seed=seed)
    assert ridge(best(search(one, ridge)).params) == pytest.approx(30.0, abs=0.01)


def test_ranges_conditions_and_whole_numbers_are_kept() -> None:
    space = SPACE | {
        "family": CategoricalDistribution(("plain", "deep")),
        "degree": IntDistribution(1, 9),
    }
    first = FIRST | {"family": "plain"}

    def score(params: Mapping[str, Any]) -> float:
        assert ("degree" in params) == (params["family"] == "deep")
        assert 0.03 <= params["solve.step"] <= 2.0
        assert isinstance(params.get("degree", 1), int)
        gain = 1 - 0.05 * (params["degree"] - 6) ** 2 if params["family"] == "deep" else 0.0
        return smooth(params) + gain

    conditions = {"degree": When("family", "deep")}
    found = search(tuner(150, space=space, points=[first], conditions=conditions), score)
    winner = best(found).params
    assert (winner["family"], winner["degree"]) == ("deep", 6)
    assert smooth(winner) == pytest.approx(30.0, abs=0.05)


@pytest.mark.parametrize("seed", [0, 1])
def test_whole_numbers_alone_are_tried_until_the_best_is_known(seed: int) -> None:
    space = {name: SPACE[name] for name in ("solve.momentum", "solve.start")}
    space |= {"degree": IntDistribution(1, 9), "rank": IntDistribution(1, 4)}

    def score(params: Mapping[str, Any]) -> float:
        branch = 0.35 * (params["solve.start"] == "lmmse") + 0.2 * (
            params["solve.momentum"] == "none"
        )
        return 29 + branch - 0.3 * abs(params["degree"] - 6) - 0.2 * abs(params["rank"] - 3)

    first = {"solve.momentum": "textbook", "solve.start": "adjoint", "degree": 1, "rank": 1}
    found = search(tuner(120, space=space, points=[first], seed=seed, shared_seed=seed), score)
    at = {"solve.start": "lmmse", "solve.momentum": "none", "degree": 6, "rank": 3}
    assert best(found).params == at
    assert len(found) < 100  # of 216 points


def test_what_came_late_is_told() -> None:
    """Nothing where the search has converged; what the best of the last quarter is better by."""
    one, found = tuner(120), search(tuner(120), smooth)
    assert one.late_gain(found) == pytest.approx(0.0, abs=0.01)
    better = {**best(found).params, "solve.strength": 0.0201}
    found.append(Evaluation(better, [value + 0.3 for value in best(found).psnr]))
    assert one.late_gain(found) == pytest.approx(0.3, abs=0.01)
    assert one.late_gain([]) == 0.0


def test_a_region_that_gains_next_to_nothing_is_left() -> None:
    """Ripples of thousandths of a dB would keep a trust region busy to its last evaluation."""
    own = [f"own{number}" for number in range(3)]
    space = SPACE | dict.fromkeys(own, FloatDistribution(0.0, 1.0))

    def ripples(params: Mapping[str, Any]) -> float:
        return 25.0 + 0.002 * math.sin(40 * sum(params[name] for name in own))

    one = tuner(192, space=space, points=[FIRST | dict.fromkeys(own, 0.5)])
    assert len(search(one, ripples)) < 170  # of 192; regions end after 19 evaluations, not 25


@pytest.mark.parametrize("seed", range(3))
def test_images_that_disagree_do_not_keep_it_from_ending(seed: int) -> None:
    """The few images of the screening are best at another strength than all of them."""

    def psnr(params: Mapping[str, Any], count: int) -> list[float]:
        strength = math.log(params["solve.strength"])
        few = smooth(params) - 2 * (strength - math.log(0.06)) ** 2
        return [few] * min(count, 10) + [smooth(params)] * (count - 10)

    one, found = tuner(150, shared_seed=seed), []
    while proposals := one.proposals(found):
        (proposal, *_) = proposals
        found.append(Evaluation(proposal.params, psnr(proposal.params, proposal.images)))
    assert len(found) <= 150
    ends = max(np.mean(one.psnr) for one in found if len(one.psnr) == IMAGES)
    strengths = np.geomspace(0.02, 0.06, 50)
    at = [psnr({**best(found).params, "solve.strength": one}, IMAGES) for one in strengths]
    assert ends >= max(map(np.mean, at)) - 0.05


def test_settings_that_fail_are_left() -> None:
    def score(params: Mapping[str, Any]) -> float:
        failed = params["solve.start"] == "adjoint" or params["solve.step"] > 1.7
        return math.nan if failed else smooth(params)

    found = search(tuner(), score)
    assert smooth(best(found).params) == pytest.approx(30.0, abs=0.02)


def test_where_all_fails_the_search_ends() -> None:
    assert len(search(tuner(), lambda params: math.nan)) <= 100


def test_what_the_task_refuses_is_not_asked_for() -> None:
    def admits(params: Mapping[str, Any]) -> bool:
        return params["solve.start"] != "lmmse"

    found = search(tuner(admits=admits), smooth)
    assert all(one.params["solve.start"] != "lmmse" for one in found)
    assert smooth(best(found).params) == pytest.approx(29.0, abs=0.02)


@pytest.mark.parametrize("budget", [FEWEST, 30, 40, 48, 60, 96, 120, 150, 192])
def test_a_budget_is_kept(budget: int) -> None:
    found = search(tuner(budget), smooth)
    assert len(found) <= budget
    assert smooth(best(found).params) > (29.5 if budget == FEWEST else 29.9)


def test_what_runs_is_not_asked_for_again() -> None:
    one = tuner()
    known = [run(one.proposals([])[0], smooth)]
    screened = one.proposals(known)
    rest = one.proposals(known, [screened[0].params, screened[3].params])
    assert rest == [item for place, item in enumerate(screened) if place not in (0, 3)]
    known += [run(item, smooth) for item in screened]
    following = one.proposals(known)
    assert one.proposals(known, [item.params for item in following[1:]]) == following[:1]
    assert one.proposals(known, [item.params for item in following]) == []


def test_without_time_the_best_are_run_on_all_images() -> None:
    one = tuner()
    known = search(one, smooth, most=20)
    closing = one.closing(known)
    assert closing and all(item.images == IMAGES for item in closing)
    ranked = sorted(known, key=lambda item: -smooth(item.params))
    assert closing[0].params == ranked[0].params
    known += [run(item, smooth) for item in closing]
    assert one.closing(known) == []


def test_a_single_branch_without_numbers_ends() -> None:
    space = {"solve.start": SPACE["solve.start"]}
    one = tuner(space=space, points=[{"solve.start": "adjoint"}])
    scores = {"adjoint": 20.0, "zero": 22.0, "lmmse": 21.0}
    found = search(one, lambda params: scores[params["solve.start"]])
    assert best(found).params == {"solve.start": "zero"}
    assert len(found) <= 8
