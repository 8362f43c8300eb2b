"""Means, intervals and paired differences of image scores, clustered by subject.

Slices of one brain resemble each other, so images are not independent; subjects are:

1. an image's score is its mean over seeds;
2. the estimate is the mean over images: each weighs the same, so a subject weighs by its images;
3. its standard error is cluster-robust. With R_g the sum of score minus mean over subject g's
   images, it is the root of G / (G - 1) * sum_g R_g^2 / n^2 for n images of G subjects (the CR1
   sandwich of a regression on a constant). Intervals and tests are Student's with G - 1 degrees of
   freedom.

With as many images of each subject this is the ordinary t interval of the subjects' means, and with
one image each that of the images; an image without a subject is a subject of its own. Unequal
numbers make intervals too short: in a simulation (subjects move scores by 2 dB, images by 1 dB) 95%
intervals from eight subjects cover the truth in 94% of cases with 5 to 15 images each, and in 85%
where one subject has half of the images. Intervals speak of new subjects, for the method as it was
fitted; searches and refits come in by `dipa_bench.reports.comparison`.

Scores that are not finite: a PSNR above `CEILING` (an exact reconstruction has an infinite one)
counts as `CEILING`. A NaN or minus infinity is a reconstruction that failed. It is not left out,
which would flatter the method; it makes the mean NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pandas as pd
from scipy import special

Code = TypeVar("Code", str, tuple)

CEILING = 120.0
"""Largest PSNR that is counted, in dB: a mean squared error of 1e-12 is rounding."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval, in the unit of the score (dB for PSNR).

    Attributes:
        mean: mean over images; NaN without scores or with a failed image.
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
            subjects, or when the differences of every subject sum to zero.
        unpaired: number of images that only one of the two has; they are left out.
    """

    p_value: float
    unpaired: int


def image_scores(images: pd.DataFrame, metric: str = "psnr") -> pd.Series:
    """Scores per image: the mean over seeds, with infinite PSNR counted as `CEILING`.

    Args:
        images: rows of one method with the columns image, subject and `metric`; one per image
            and seed.
        metric: ``"psnr"`` [dB], ``"ssim"``, ...

    Returns:
        Scores indexed by ``(subject, image)``; NaN where any seed has no finite score.
    """
    table = scores_by_column(images, [metric], [])[metric]
    values = table.to_numpy(dtype=float).ravel()
    return pd.Series(values, index=table.index, name=metric)


def scores_by_column(
    images: pd.DataFrame, metrics: Sequence[str], columns: Sequence[str]
) -> dict[str, pd.DataFrame]:
    """Scores of images, a table for each metric, a column for each of what is kept apart.

    In numpy, as pandas takes some milliseconds for each step of it.

    Args:
        images: rows of one method with the columns image, subject, the metrics and `columns`.
        metrics: ``"psnr"`` [dB], ``"ssim"``, ...
        columns: whose values are kept apart, such as the seed.

    Returns:
        Metric to a table indexed by (subject, image), in order; the mean where there are several
        rows, NaN where any has no finite score or there is none; PSNR is at most `CEILING`.
    """
    if images.empty:
        nothing = pd.MultiIndex.from_arrays([[], []], names=["subject", "image"])
        return {metric: pd.DataFrame(index=nothing) for metric in metrics}
    row_names = list(zip(_subjects(images), map(str, images["image"]), strict=True))
    apart = list(zip(*(images[name] for name in columns), strict=True)) or [()] * len(row_names)
    rows, row_codes = _codes(row_names)
    places, column_codes = _codes(apart)
    parts = [_codes([row[k] for row in rows]) for k in range(2)]
    levels, codes = zip(*parts, strict=True)
    index = pd.MultiIndex(levels, codes, names=["subject", "image"], verify_integrity=False)
    labels = pd.MultiIndex.from_tuples(places, names=columns) if columns else [0] * len(places)
    count = np.zeros((len(rows), len(places)))
    np.add.at(count, (row_codes, column_codes), 1)
    found = {}
    for metric in metrics:
        values = images[metric].to_numpy(dtype=float)
        if metric in IN_DB:
            values = np.minimum(values, CEILING)
        total = np.zeros_like(count)
        np.add.at(total, (row_codes, column_codes), np.where(np.isfinite(values), values, np.nan))
        with np.errstate(invalid="ignore"):
            found[metric] = pd.DataFrame(total / count, index=index, columns=labels)
    return found


def _codes(values: Sequence[Code]) -> tuple[list[Code], list[int]]:
    """The distinct ones in order, and the place of each among them."""
    distinct = sorted(set(values))
    place = {value: number for number, value in enumerate(distinct)}
    return distinct, [place[value] for value in values]


def mean_interval(images: pd.DataFrame, metric: str = "psnr", level: float = 0.95) -> Estimate:
    """Mean score over images of a method, with a cluster-robust interval over subjects.

    Args:
        images: rows of one method: seed, image, subject and `metric`.
        metric: ``"psnr"`` [dB] or ``"ssim"``.
        level: confidence level in (0, 1).
    """
    scores = image_scores(images, metric)
    values, subjects = _clustered(scores)
    return Estimate(
        *t_interval(values, subjects, level),
        images=len(values),
        subjects=len(np.unique(subjects)),
    )


IN_DB = ("psnr", "psnr_best", "psnr_stopped")
RESOLUTION = {**dict.fromkeys(IN_DB, 1e-3), "ssim": 1e-5}
"""What float32 reconstructions cannot tell apart; PSNR in dB."""


def paired_difference(
    images: pd.DataFrame, reference: pd.DataFrame, metric: str = "psnr", level: float = 0.95
) -> Difference:
    """Mean over images of a method's score minus the reference's, cluster-robust by subject.

    A difference of an image below `RESOLUTION` counts as none: rounding decides those, not methods,
    and methods that do the same would otherwise differ "significantly" in the sixth digit.

    Args:
        images: rows of the method: seed, image, subject and `metric`.
        reference: rows of the reference method, likewise.
        metric: ``"psnr"`` [dB] or ``"ssim"``.
        level: confidence level in (0, 1).
    """
    ours, theirs = image_scores(images, metric), image_scores(reference, metric)
    common = ours.index.intersection(theirs.index)
    difference = ours.loc[common] - theirs.loc[common]
    difference = difference.mask(difference.abs() < RESOLUTION[metric], 0.0)
    values, subjects = _clustered(difference)
    return Difference(
        *t_interval(values, subjects, level),
        images=len(values),
        subjects=len(np.unique(subjects)),
        p_value=t_test(values, subjects),
        unpaired=len(ours) + len(theirs) - 2 * len(common),
    )


def t_interval(
    values: np.ndarray, clusters: np.ndarray | None = None, level: float = 0.95
) -> tuple[float, float, float]:
    """Mean of values and the ends of Student's t interval around it.

    Args:
        values: n numbers; those of one cluster may depend on each other.
        clusters: n labels; None if every value is a cluster of its own.
        level: confidence level in (0, 1).

    Returns:
        ``(mean, low, high)`` in the unit of the values; the ends are NaN for fewer than two
        clusters, all three are NaN without values or if any is NaN.
    """
    if len(values) == 0:
        return math.nan, math.nan, math.nan
    mean = float(np.mean(values))
    error, freedom = standard_error(values, clusters)
    if freedom < 1:
        return mean, math.nan, math.nan
    half = float(special.stdtrit(freedom, 0.5 + level / 2)) * error
    return mean, mean - half, mean + half


def t_test(values: np.ndarray, clusters: np.ndarray | None = None) -> float:
    """Two-sided p-value of the t test that the values have mean zero.

    Without clusters the same number as `scipy.stats.ttest_1samp`, but without its warnings where
    the standard error is zero: NaN if the mean is zero too, else 0.

    Args:
        values: n numbers; those of one cluster may depend on each other.
        clusters: n labels; None if every value is a cluster of its own.

    Returns:
        The p-value; NaN for fewer than two clusters, or if any value is NaN.
    """
    if len(values) == 0:
        return math.nan
    mean = float(np.mean(values))
    error, freedom = standard_error(values, clusters)
    if freedom < 1 or math.isnan(error):
        return math.nan
    if error == 0:
        return 0.0 if mean else math.nan
    return float(2 * special.stdtr(freedom, -abs(mean) / error))


def standard_error(values: np.ndarray, clusters: np.ndarray | None) -> tuple[float, int]:
    """Cluster-robust (CR1) standard error of the mean, and its degrees of freedom.

    The error is NaN for fewer than two clusters.
    """
    if clusters is None:
        clusters = np.arange(len(values))
    _, codes = np.unique(clusters, return_inverse=True)
    sums = np.bincount(codes, values - np.mean(values))
    count = len(sums)
    if count < 2:
        return math.nan, count - 1
    return math.sqrt(count / (count - 1) * float(sums @ sums)) / len(values), count - 1


def _clustered(scores: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Scores of images, and the subject of each."""
    subjects = scores.index.get_level_values("subject").to_numpy(dtype=object)
    return scores.to_numpy(dtype=float), subjects


def _subjects(images: pd.DataFrame) -> list[str]:
    """Subject of every row; an image without one gets a subject of its own."""
    return [
        f"image {image}" if pd.isna(subject) or subject == "" else str(subject)
        for subject, image in zip(images["subject"], images["image"], strict=True)
    ]
