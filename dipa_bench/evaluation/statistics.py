"""Means, intervals and paired differences of image scores, clustered by subject.

Slices of one brain resemble each other, so images are not independent; subjects are. All that is
said here about uncertainty therefore rests on one number per subject:

1. an image's score is its mean over seeds;
2. a subject's score is the mean over its images;
3. the estimate is the mean over subjects, with Student's t interval and test on those numbers.

An image without a subject is a subject of its own; if all are, step 3 is the ordinary t interval.
Every subject weighs the same, however many images it has. The interval speaks of new subjects, for
the method as it was fitted with these seeds; how much a refit moves the mean is `seed_spread`.

Scores that are not finite: a PSNR above `CEILING` (an exact reconstruction has an infinite one)
counts as `CEILING`. A NaN or minus infinity is a reconstruction that failed. It is not left out,
which would flatter the method; it makes the mean NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

CEILING = 120.0
"""Largest PSNR that is counted, in dB: a mean squared error of 1e-12 is rounding."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval, in the unit of the score (dB for PSNR).

    Attributes:
        mean: mean over subjects of each subject's mean; NaN without scores or with a failed image.
        low: lower end of the interval; NaN with fewer than two subjects.
        high: upper end of the interval; NaN with fewer than two subjects.
        images: number of images.
        subjects: number of clusters.
    """

    mean: float
    low: float
    high: float
    images: int
    subjects: int


@dataclass(frozen=True)
class Difference(Estimate):
    """A paired mean difference, method minus reference, over the images that both have.

    Attributes:
        p_value: two-sided p-value of Student's t test of a zero mean; NaN with fewer than two
            subjects, or when every difference is zero.
        unpaired: number of images that only one of the two has; they are left out.
    """

    p_value: float
    unpaired: int


def image_scores(images: pd.DataFrame, metric: str = "psnr") -> pd.Series:
    """Scores per image: the mean over seeds, with infinite PSNR counted as `CEILING`.

    Args:
        images: rows of one method with the columns image, subject and `metric`; one per image
            and seed.
        metric: ``"psnr"`` [dB] or ``"ssim"``.

    Returns:
        Scores indexed by ``(subject, image)``; NaN where any seed has no finite score.
    """
    if images.empty:
        index = pd.MultiIndex.from_arrays([[], []], names=["subject", "image"])
        return pd.Series([], index=index, dtype=float, name=metric)
    values = pd.to_numeric(images[metric]).astype(float)
    if metric == "psnr":
        values = values.clip(upper=CEILING)
    frame = pd.DataFrame(
        {
            "subject": _subjects(images),
            "image": images["image"].astype(str),
            metric: values.where(np.isfinite(values)),
        }
    )
    groups = frame.groupby(["subject", "image"])[metric]
    return groups.mean().where(groups.count() == groups.size())


def mean_interval(images: pd.DataFrame, metric: str = "psnr", level: float = 0.95) -> Estimate:
    """Mean score of a method with its interval over subjects.

    Args:
        images: rows of one method: seed, image, subject and `metric`.
        metric: ``"psnr"`` [dB] or ``"ssim"``.
        level: confidence level in (0, 1).
    """
    scores = image_scores(images, metric)
    means = _subject_means(scores)
    return Estimate(*t_interval(means, level), images=len(scores), subjects=len(means))


def paired_difference(
    images: pd.DataFrame, reference: pd.DataFrame, metric: str = "psnr", level: float = 0.95
) -> Difference:
    """Mean of a method's score minus the reference's on the same images.

    Args:
        images: rows of the method: seed, image, subject and `metric`.
        reference: rows of the reference method, likewise.
        metric: ``"psnr"`` [dB] or ``"ssim"``.
        level: confidence level in (0, 1).
    """
    ours, theirs = image_scores(images, metric), image_scores(reference, metric)
    common = ours.index.intersection(theirs.index)
    means = _subject_means(ours.loc[common] - theirs.loc[common])
    return Difference(
        *t_interval(means, level),
        images=len(common),
        subjects=len(means),
        p_value=t_test(means),
        unpaired=len(ours) + len(theirs) - 2 * len(common),
    )


def seed_spread(images: pd.DataFrame, metric: str = "psnr") -> float:
    """Sample standard deviation over seeds of the mean score over images; NaN with one seed."""
    if images.empty:
        return math.nan
    means = [mean_interval(rows, metric).mean for _, rows in images.groupby("seed")]
    return float(np.std(means, ddof=1)) if len(means) > 1 else math.nan


def t_interval(values: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """Mean of independent values and the ends of Student's t interval around it.

    Returns:
        ``(mean, low, high)`` in the unit of the values; the ends are NaN for fewer than two values,
        all three are NaN without values or if any is NaN.
    """
    if len(values) == 0:
        return math.nan, math.nan, math.nan
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = float(stats.t.ppf(0.5 + level / 2, len(values) - 1)) * _standard_error(values)
    return mean, mean - half, mean + half


def t_test(values: np.ndarray) -> float:
    """Two-sided p-value of the t test that independent values have mean zero.

    The same number as `scipy.stats.ttest_1samp`, without its warnings where the values are all
    equal: NaN if they are all zero, 0 if they are equal and not zero.
    """
    if len(values) < 2 or np.isnan(values).any() or not np.any(values):
        return math.nan
    error = _standard_error(values)
    if error == 0:
        return 0.0
    return float(2 * stats.t.sf(abs(np.mean(values)) / error, len(values) - 1))


def _standard_error(values: np.ndarray) -> float:
    """Standard error of the mean of at least two independent values."""
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def _subjects(images: pd.DataFrame) -> pd.Series:
    """Subject of every row; an image without one gets a subject of its own."""
    missing = images["subject"].isna() | (images["subject"].astype(str) == "")
    own = "image " + images["image"].astype(str)
    return images["subject"].astype(str).mask(missing, own)


def _subject_means(scores: pd.Series) -> np.ndarray:
    """Mean score per subject; NaN where an image of the subject has none."""
    groups = scores.groupby(level="subject")
    return groups.mean().where(groups.count() == groups.size()).to_numpy(dtype=float)
