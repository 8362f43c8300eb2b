"""Statistics against scipy, against numbers worked by hand, and against simulated truth."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dipa_bench import statistics


def table(rows: list[tuple[int, str, str | None, float]]) -> pd.DataFrame:
    """Rows of (seed, image, subject, psnr) as ``TaskResults.images`` has them."""
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


def test_seeds_are_averaged_and_images_weigh_the_same() -> None:
    frame = table(
        [
            *[(0, "a", "A", 19.0), (1, "a", "A", 21.0)],  # image a: 20
            *[(0, "b", "A", 23.0), (1, "b", "A", 25.0)],  # image b: 24, so A's residuals sum to -4
            *[(0, "c", "B", 27.0), (1, "c", "B", 29.0)],  # image c: 28, so B's residual is 4
        ]
    )
    found = statistics.mean_interval(frame)
    half = 12.7062047 * 8 / 3  # t(0.975, 1 degree of freedom) times sqrt(2 * (16 + 16)) / 3
    assert (found.mean, found.low, found.high) == pytest.approx((24, 24 - half, 24 + half))
    assert (found.images, found.subjects) == (3, 2)


@pytest.mark.parametrize("metric", ["psnr", "ssim"])
def test_subjects_of_as_many_images_give_scipys_test_of_their_means(metric: str) -> None:
    values = np.random.default_rng(2).normal(0.4, 1, (6, 5))
    frame = table(
        [
            (0, f"i{k}", f"s{s}", value)
            for s, row in enumerate(values)
            for k, value in enumerate(row)
        ]
    ).rename(columns={"psnr": metric})
    found = statistics.paired_difference(frame, frame.assign(**{metric: 0.0}), metric)
    test = stats.ttest_1samp(values.mean(1), 0)
    low, high = test.confidence_interval(0.95)
    assert (found.mean, found.low, found.high) == pytest.approx((values.mean(), low, high))
    assert found.p_value == pytest.approx(test.pvalue)
    plain = statistics.mean_interval(frame, metric)
    assert (plain.mean, plain.low, plain.high) == pytest.approx((values.mean(), low, high))


def test_subjects_of_unequal_counts_give_a_regression_on_a_constant() -> None:
    """Against least squares with the sandwich of clusters, as matrices, with Stata's factor."""
    rng = np.random.default_rng(3)
    subjects = np.repeat([0, 1, 2, 3, 4], [1, 7, 2, 4, 11])
    y = 0.3 + rng.normal(0, 1, 5)[subjects] + rng.normal(0, 1, 25)
    x = np.ones((25, 1))
    bread = np.linalg.inv(x.T @ x)
    beta = bread @ x.T @ y
    u = y - x @ beta
    meat = np.zeros((1, 1))
    for s in range(5):
        score = x[subjects == s].T @ u[subjects == s, None]
        meat += score @ score.T
    factor = 5 / 4 * (25 - 1) / (25 - x.shape[1])
    error = np.sqrt((factor * bread @ meat @ bread).item())
    low, high = stats.t.interval(0.9, 4, loc=beta.item(), scale=error)
    p_value = 2 * stats.t.sf(abs(beta.item()) / error, 4)

    frame = table([(0, f"i{k}", f"s{subjects[k]}", value) for k, value in enumerate(y)])
    frame = frame.sample(frac=1, random_state=0)
    found = statistics.mean_interval(frame, level=0.9)
    assert (found.mean, found.low, found.high) == pytest.approx((beta.item(), low, high))
    assert (found.images, found.subjects) == (25, 5)
    paired = statistics.paired_difference(frame, frame.assign(psnr=0.0), level=0.9)
    assert (paired.mean, paired.low, paired.high) == pytest.approx((beta.item(), low, high))
    assert paired.p_value == pytest.approx(p_value)


def test_paired_difference_by_hand() -> None:
    ours = table([(0, "a", "A", 21.0), (0, "b", "A", 23.0), (0, "c", "B", 30.0)])
    theirs = table(
        [
            *[(0, "a", "A", 19.0), (1, "a", "A", 21.0)],  # 20: difference 1
            *[(0, "b", "A", 20.0), (1, "b", "A", 20.0)],  # 20: difference 3; A's residuals: -4/3
            *[(0, "c", "B", 24.0), (1, "c", "B", 28.0)],  # 26: difference 4; B's residual: 4/3
        ]
    )
    found = statistics.paired_difference(ours, theirs)
    assert found.mean == pytest.approx(8 / 3)
    assert found.high - found.mean == pytest.approx(12.7062047 * 8 / 9)  # sqrt(2 * 32 / 9) / 3
    assert found.p_value == pytest.approx(2 * stats.t.sf(3, 1))
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


def test_differences_that_cancel_within_each_subject_have_no_p_value() -> None:
    ours = table([(0, f"i{k}", f"s{k // 2}", 20.0 + (-1) ** k) for k in range(6)])
    found = statistics.paired_difference(ours, ours.assign(psnr=20.0))
    assert (found.mean, found.low, found.high) == (0.0, 0.0, 0.0)
    assert math.isnan(found.p_value)


def test_p_value_is_scipys() -> None:
    values = np.random.default_rng(0).normal(0.3, 1, 9)
    assert statistics.t_test(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([10] * 8, 0.95),
        ([5, 7, 8, 9, 11, 12, 13, 15], 0.94),  # these two are what the module's text promises
        ([35] + [5] * 7, 0.85),
    ],
)
def test_intervals_cover_the_truth_for_images_that_share_subjects(
    counts: list[int], expected: float
) -> None:
    """A truth of 25 dB; subjects move it by 2 dB, images by 1 dB."""
    rng = np.random.default_rng(1)
    runs, subjects = 2000, np.repeat(np.arange(8), counts)
    shared = rng.normal(0, 2, (runs, 8))[:, subjects]
    clustered = naive = 0
    for psnr in 25 + shared + rng.normal(0, 1, shared.shape):
        _, low, high = statistics.t_interval(psnr, subjects)
        clustered += low < 25 < high
        _, low, high = statistics.t_interval(psnr)
        naive += low < 25 < high
    noise = math.sqrt(expected * (1 - expected) / runs)
    assert clustered / runs == pytest.approx(expected, abs=4 * noise)
    assert naive / runs < 0.8, "the simulation would not tell a missing clustering"


def test_rounding_is_no_difference():
    """What differs in the sixth digit is a tie without a p-value; a millibel more is none."""
    generator = np.random.default_rng(0)
    psnr = generator.normal(25, 2, 30)
    names = [f"i{k}" for k in range(30)]
    rows = pd.DataFrame({"seed": 0, "image": names, "subject": names, "psnr": psnr})
    close = rows.assign(psnr=psnr + 4e-6 * generator.random(30))
    found = statistics.paired_difference(close, rows)
    assert (found.mean, found.low, found.high) == (0, 0, 0)
    assert math.isnan(found.p_value)
    apart = statistics.paired_difference(rows.assign(psnr=psnr + 0.01 + 0.001 * psnr), rows)
    assert apart.mean == pytest.approx(0.01 + 0.001 * psnr.mean())
    assert apart.p_value < 1e-6
