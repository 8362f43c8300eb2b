"""Statistics against scipy, against numbers worked by hand, and against simulated truth."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dipa_bench.evaluation import statistics


def table(rows: list[tuple[int, str, str | None, float]]) -> pd.DataFrame:
    """Rows of (seed, image, subject, psnr) as ``Results.images`` has them."""
    return pd.DataFrame(rows, columns=["seed", "image", "subject", "psnr"])


def alone(values: list[float]) -> pd.DataFrame:
    """One seed; every image is its own subject."""
    return table([(0, f"i{k}", f"s{k}", value) for k, value in enumerate(values)])


def test_images_that_are_their_own_subjects_give_scipys_t_interval() -> None:
    values = [20.1, 22.4, 19.8, 25.0, 23.3]
    found = statistics.mean_interval(alone(values))
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(values), low, high))
    assert (found.images, found.subjects) == (5, 5)


@pytest.mark.parametrize("nothing", [None, "", math.nan])
def test_images_without_a_subject_are_their_own(nothing: object) -> None:
    values = [20.1, 22.4, 19.8, 25.0]
    frame = table([(0, f"i{k}", nothing, value) for k, value in enumerate(values)])
    assert statistics.mean_interval(frame) == statistics.mean_interval(alone(values))


def test_seeds_then_images_then_subjects_are_averaged() -> None:
    frame = table(
        [
            *[(0, "a", "A", 19.0), (1, "a", "A", 21.0)],  # image a: 20
            *[(0, "b", "A", 23.0), (1, "b", "A", 25.0)],  # image b: 24, so subject A: 22
            *[(0, "c", "B", 27.0), (1, "c", "B", 29.0)],  # subject B: 28
        ]
    )
    found = statistics.mean_interval(frame)
    half = 12.7062047 * 3.0  # t(0.975, 1 degree of freedom) times |28 - 22| / 2
    assert (found.mean, found.low, found.high) == pytest.approx((25, 25 - half, 25 + half))
    assert (found.images, found.subjects) == (3, 2)


def test_paired_difference_by_hand() -> None:
    ours = table([(0, "a", "A", 21.0), (0, "b", "A", 23.0), (0, "c", "B", 30.0)])
    theirs = table(
        [
            *[(0, "a", "A", 19.0), (1, "a", "A", 21.0)],  # 20: difference 1
            *[(0, "b", "A", 20.0), (1, "b", "A", 20.0)],  # 20: difference 3, so subject A: 2
            *[(0, "c", "B", 24.0), (1, "c", "B", 28.0)],  # 26: difference 4, so subject B: 4
        ]
    )
    found = statistics.paired_difference(ours, theirs)
    assert found.mean == pytest.approx(3.0)
    assert found.high - found.mean == pytest.approx(12.7062047 * 1.0)
    assert found.p_value == pytest.approx(stats.ttest_1samp([2.0, 4.0], 0).pvalue)
    assert (found.images, found.subjects, found.unpaired) == (3, 2, 0)


def test_images_of_only_one_method_are_left_out_and_counted() -> None:
    ours = table([(0, "a", "A", 21.0), (0, "b", "B", 23.0), (0, "x", "B", 90.0)])
    theirs = table([(0, "b", "B", 20.0), (0, "a", "A", 20.0), (0, "y", "C", 0.0)])
    found = statistics.paired_difference(ours, theirs)
    assert found.mean == pytest.approx(2.0)
    assert (found.images, found.unpaired) == (2, 2)


def test_equal_image_names_of_two_subjects_are_two_images() -> None:
    frame = table([(0, "slice-1", "A", 20.0), (0, "slice-1", "B", 30.0)])
    assert statistics.mean_interval(frame).images == 2


def test_one_subject_has_a_mean_but_no_interval() -> None:
    frame = table([(0, "a", "A", 20.0), (0, "b", "A", 22.0)])
    found = statistics.paired_difference(frame, frame.assign(psnr=20.0))
    assert found.mean == pytest.approx(1.0)
    assert math.isnan(found.low) and math.isnan(found.high) and math.isnan(found.p_value)


def test_no_images_have_no_mean() -> None:
    empty = table([])
    assert math.isnan(statistics.mean_interval(empty).mean)
    assert statistics.paired_difference(alone([1.0]), empty).unpaired == 1
    assert math.isnan(statistics.mean_interval(pd.DataFrame()).mean)


def test_an_exact_image_counts_as_the_ceiling() -> None:
    found = statistics.mean_interval(alone([math.inf, 20.0]))
    assert found.mean == pytest.approx((statistics.CEILING + 20) / 2)
    both = statistics.paired_difference(alone([math.inf, 20.0]), alone([math.inf, 19.0]))
    assert both.mean == pytest.approx(0.5)


@pytest.mark.parametrize("failed", [math.nan, -math.inf])
def test_a_failed_image_is_not_left_out_of_the_mean(failed: float) -> None:
    found = statistics.mean_interval(alone([failed, 20.0, 21.0]))
    assert math.isnan(found.mean) and math.isnan(found.low)
    assert found.images == 3
    two_seeds = table([(0, "a", "A", 20.0), (1, "a", "A", failed), (0, "b", "B", 20.0)])
    assert math.isnan(statistics.mean_interval(two_seeds).mean)
    assert math.isnan(statistics.paired_difference(alone([failed, 1]), alone([2, 2])).p_value)


@pytest.mark.parametrize("shift, p_value", [(0.0, math.nan), (0.5, 0.0)])
def test_equal_differences(shift: float, p_value: float) -> None:
    ours = alone([20.5, 21.5, 22.5])
    found = statistics.paired_difference(ours, ours.assign(psnr=ours["psnr"] - shift))
    assert (found.mean, found.low, found.high) == (shift, shift, shift)
    assert found.p_value == pytest.approx(p_value, nan_ok=True)


def test_p_value_is_scipys() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, 9)
    assert statistics.t_test(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


def test_seed_spread_is_the_deviation_of_the_means() -> None:
    frame = table([(s, f"i{k}", f"s{k}", 20.0 + s + k) for s in range(3) for k in range(4)])
    assert statistics.seed_spread(frame) == pytest.approx(1.0)
    assert math.isnan(statistics.seed_spread(frame[frame["seed"] == 0]))


def test_intervals_cover_the_truth_for_images_that_share_subjects() -> None:
    """A truth of 25 dB; subjects move it by 2 dB, images by 1 dB."""
    rng = np.random.default_rng(1)
    frame = table([(0, f"i{k}", f"s{k % 8}", 0.0) for k in range(80)])
    clustered = naive = 0
    runs = 500
    for _ in range(runs):
        psnr = 25 + rng.normal(0, 2, 8)[np.arange(80) % 8] + rng.normal(0, 1, 80)
        drawn = frame.assign(psnr=psnr)
        interval = statistics.mean_interval(drawn)
        clustered += interval.low < 25 < interval.high
        interval = statistics.mean_interval(drawn.assign(subject=drawn["image"]))
        naive += interval.low < 25 < interval.high
    assert clustered / runs == pytest.approx(0.95, abs=0.03)
    assert naive / runs < 0.8, "the simulation would not tell a missing clustering"
