"""A row against the reference in one word: better, worse, equivalent or undecided.

The model is crossed. The score of image i in replicate r, a row's minus the reference's, is

    d_ir = mu + subject of i + replicate r + rest,

where a replicate is one whole search with one fit of its winner. So images of one subject depend on
each other, and all images of one replicate do. Of the N x R scores

1. the estimate is the mean;
2. its variance is V_subjects + V_replicates - V_rest. V_subjects is the cluster-robust variance
   (`dipa_bench.statistics`) of the images' means over replicates, V_replicates the sample variance
   of the replicates' means over R; both contain the rest, which is taken off once: its variance in
   the two-way layout over N R, never so much that less than the larger of the two is left;
3. fewer than `ENOUGH` replicates say little about their own variance, so it is pooled over rows of
   one kind (trained or not; of all where the kind has few) of the study. What is the same in all
   replicates has none. A row whose own is significantly larger (F test,
   p < 0.01) keeps its own, and the board says that its replicates disagree;
4. intervals and tests are Student's with Satterthwaite's degrees of freedom.

With one replicate the interval holds subjects alone, and the board says so. In simulations with
known variances (`tests/reports/test_comparison.py`) 95% intervals cover in 93 to 97% of studies.

The word, for a margin in dB below which a difference does not matter:

- equivalent: two one-sided t tests at 5% put the difference within the margin;
- better, worse: it is significant at 5% by Holm's step-down procedure over the rows of a study, and
  does not round to 0.00;
- undecided: neither; what would decide it is said with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy import special

from dipa_bench import statistics

ENOUGH = 5  # replicates from which a row's own variance is used
DISAGREE = 0.01  # p-value of the F test below which a row's replicates disagree
LEVEL = 0.05
MARGIN = 0.1  # dB
Word = Literal["better", "worse", "equivalent", "undecided", "reference", ""]


@dataclass(frozen=True)
class Variance:
    """An estimated variance.

    Attributes:
        value: the estimate; NaN where there is none.
        freedom: its degrees of freedom; 0 where there is none.
    """

    value: float = math.nan
    freedom: float = 0.0


@dataclass(frozen=True)
class Comparison:
    """A mean over images and replicates with what is known of its error; in dB for PSNR.

    Attributes:
        mean: the estimate; NaN without scores or with a failed image.
        error: its standard error; NaN with fewer than two subjects.
        freedom: of Student's distribution.
        images, subjects, replicates: how many there are.
        of_subjects, of_replicates: the two parts of the variance; NaN for what is not known.
        disagree: whether the row's replicates differ more than those of the other rows.
        unpaired: images that only one of the two rows has; they are left out.
        subject_means: of the scores, one for each subject; empty where the error is not known.
    """

    mean: float
    error: float
    freedom: float
    images: int
    subjects: int
    replicates: int
    of_subjects: float = math.nan
    of_replicates: float = math.nan
    disagree: bool = False
    unpaired: int = 0
    subject_means: Sequence[float] = ()

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The ends of the interval; NaN where the error is not known."""
        if not math.isfinite(self.error):
            return math.nan, math.nan
        half = float(special.stdtrit(self.freedom, 0.5 + level / 2)) * self.error
        return self.mean - half, self.mean + half

    @property
    def p_value(self) -> float:
        """Two-sided, of a mean of zero; 1 where nothing differs, NaN where it is not known."""
        if not math.isfinite(self.error):
            return math.nan
        if self.error == 0:
            return 0.0 if self.mean else 1.0
        return float(2 * special.stdtr(self.freedom, -abs(self.mean) / self.error))

    def p_equivalence(self, margin: float) -> float:
        """Of two one-sided tests that the mean lies outside the margin; NaN if not known."""
        if not math.isfinite(self.error):
            return math.nan
        inside = margin - abs(self.mean)
        if self.error == 0:
            return 0.0 if inside > 0 else 1.0
        return float(special.stdtr(self.freedom, -inside / self.error))

    @property
    def wilcoxon(self) -> float:
        """P-value of Wilcoxon's signed-rank test of the subjects' means; NaN with none to rank."""
        from scipy.stats import wilcoxon  # takes 0.7 s to import

        if not np.any(self.subject_means):
            return math.nan
        return float(wilcoxon(self.subject_means).pvalue)


@dataclass(frozen=True)
class Verdict:
    """What a comparison comes to.

    Attributes:
        word: better, worse, equivalent or undecided; empty where there is nothing to compare.
        p_holm: the p-value of the difference, corrected for the rows of the study.
        advice: of an undecided row, what would decide it.
    """

    word: Word
    p_holm: float = math.nan
    advice: str = ""


def by_replicate(images: pd.DataFrame) -> pd.DataFrame:
    """PSNR of one row's images, a column for each replicate; as `scores_by_replicate`."""
    return scores_by_replicate(images, ["psnr"])["psnr"]


def scores_by_replicate(images: pd.DataFrame, metrics: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Scores of one row's images, a table for each metric with a column for each replicate.

    Args:
        images: rows with the columns replicate, seed, image, subject and the metrics; seeds of one
            replicate are fits of the same settings, and count as replicates of their own.
        metrics: ``"psnr"`` [dB], ``"ssim"``, ...

    Returns:
        Metric to a table indexed by (subject, image); NaN where a score is missing or not finite.
    """
    return statistics.scores_by_column(images, metrics, ["replicate", "seed"])


def differences(
    ours: pd.DataFrame, theirs: pd.DataFrame, metric: str = "psnr"
) -> tuple[pd.DataFrame, int]:
    """Scores of `by_replicate` minus the reference's, and how many images only one of them has.

    Replicates are paired with replicates; where they have none in common, means are.
    """
    if ours.empty or theirs.empty:
        return ours.iloc[:0], 0
    if not ours.columns.equals(theirs.columns):
        both = ours.columns.intersection(theirs.columns)
        if both.empty:
            ours, theirs = (one.mean(axis=1, skipna=False).to_frame(0) for one in (ours, theirs))
        else:
            ours, theirs = ours[both], theirs[both]
    unpaired = 0
    if not ours.index.equals(theirs.index):
        common = ours.index.intersection(theirs.index)
        unpaired = len(ours) + len(theirs) - 2 * len(common)
        ours, theirs = ours.loc[common], theirs.loc[common]
    found = ours.to_numpy(dtype=float) - theirs.to_numpy(dtype=float)
    found[np.abs(found) < statistics.RESOLUTION.get(metric, 0.0)] = 0.0
    return pd.DataFrame(found, index=ours.index, columns=ours.columns), unpaired


def replicate_variance(scores: pd.DataFrame) -> Variance:
    """The variance between the replicates' means over images."""
    count = scores.shape[1]
    if count < 2 or scores.empty:
        return Variance()
    return Variance(float(scores.mean(axis=0, skipna=False).var(ddof=1)), count - 1)


def pooled(variances: Sequence[Variance]) -> Variance:
    """The mean of variances by their degrees of freedom; of none that is known, an unknown one."""
    known = [one for one in variances if one.freedom and math.isfinite(one.value)]
    freedom = sum(one.freedom for one in known)
    if not freedom:
        return Variance()
    return Variance(sum(one.freedom * one.value for one in known) / freedom, freedom)


def compare(scores: pd.DataFrame, others: Variance | None = None, unpaired: int = 0) -> Comparison:
    """The mean of scores or differences with its error.

    Args:
        scores: indexed by (subject, image), a column for each replicate.
        others: the pooled variance between replicates of the rows of this kind, this one among
            them; None for its own.
        unpaired: images that were left out.
    """
    count = scores.shape[1]
    if scores.empty:
        return Comparison(math.nan, math.nan, 0, 0, 0, count, unpaired=unpaired)
    table = scores.to_numpy(dtype=float)
    level = scores.index.codes[scores.index.names.index("subject")]
    values, codes = table.mean(axis=1), np.unique(level, return_inverse=True)[1]
    mean, groups = float(np.mean(values)), int(codes.max()) + 1
    known = {"images": len(values), "subjects": groups, "replicates": count, "unpaired": unpaired}
    if math.isnan(mean) or groups < 2:
        return Comparison(mean, math.nan, 0, **known)
    own = replicate_variance(scores)
    used, disagree = own, False
    if others is not None and others.freedom and 1 < count < ENOUGH:
        ratio = own.value / others.value if others.value > 0 else 1.0
        disagree = bool(special.fdtrc(own.freedom, others.freedom, ratio) < DISAGREE)
        used = own if disagree else others
    of_subjects = Variance(statistics.standard_error(values, codes)[0] ** 2, groups - 1)
    of_replicates = Variance(used.value / count, used.freedom) if used.freedom else Variance(0.0)
    if own.freedom and not np.ptp(table, axis=1).any():
        of_replicates = Variance(0.0)  # the same in all replicates: nothing is searched or drawn
    rest = _rest(table, codes) if own.freedom else 0.0
    parts = (of_subjects.value, of_replicates.value)
    total = max(*parts, sum(parts) - rest)
    spread = sum(
        part.value**2 / part.freedom for part in (of_subjects, of_replicates) if part.freedom
    )
    freedom = total**2 / spread if spread else of_subjects.freedom
    return Comparison(
        mean,
        math.sqrt(total),
        freedom,
        of_subjects=of_subjects.value,
        of_replicates=of_replicates.value if used.freedom else math.nan,
        disagree=disagree,
        subject_means=tuple(np.bincount(codes, values) / np.bincount(codes)),
        **known,
    )


def _rest(scores: np.ndarray, codes: np.ndarray) -> float:
    """The variance of the mean that neither subjects nor replicates account for."""
    rest = scores - scores.mean(1, keepdims=True) - scores.mean(0, keepdims=True) + scores.mean()
    groups, count = int(codes.max()) + 1, scores.shape[1]
    sums = np.stack([np.bincount(codes, column) for column in rest.T])
    spread = float((sums**2).sum()) / ((groups - 1) * (count - 1))
    return spread * groups * count / scores.size**2


def verdicts(found: Mapping[str, Comparison], margin: float = MARGIN) -> dict[str, Verdict]:
    """A word for each row of a study that is compared with the reference.

    Args:
        found: row to its comparison.
        margin: dB; a difference within it does not matter.
    """
    p_values = {name: one.p_value for name, one in found.items()}
    known = {name: value for name, value in p_values.items() if not math.isnan(value)}
    corrected = dict(zip(known, holm(list(known.values())), strict=True))
    return {
        name: _verdict(one, corrected.get(name, math.nan), margin) for name, one in found.items()
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number by Holm's method, in their order.

    What `statsmodels.stats.multitest.multipletests` gives; that collects all garbage of the process
    whenever it is called, which takes half a second beside torch.
    """
    order = np.argsort(p_values, kind="stable")
    ranked = np.asarray(p_values, dtype=float)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(ranked), 1.0)
    return corrected.tolist()


def _verdict(one: Comparison, p_holm: float, margin: float) -> Verdict:
    if math.isnan(one.mean):
        return Verdict("")
    if math.isnan(p_holm):
        return Verdict("undecided", advice="more than one subject")
    if one.p_equivalence(margin) < LEVEL:
        return Verdict("equivalent", p_holm)
    if p_holm < LEVEL and abs(one.mean) >= 0.005:  # else it rounds to 0.00
        return Verdict("better" if one.mean > 0 else "worse", p_holm)
    return Verdict("undecided", p_holm, _advice(one, margin))


def _advice(one: Comparison, margin: float) -> str:
    """How many subjects or replicates would decide, were the difference what it seems to be."""
    needed = max(abs(one.mean) / 2.2, (margin - abs(one.mean)) / 1.7) ** 2
    among, between = one.of_subjects, one.of_replicates
    ways = []
    if math.isfinite(between) and needed > among:
        ways.append((between / (needed - among), "replicates", one.replicates))
    known = between if math.isfinite(between) else 0.0
    if needed > known:
        ways.append((among / (needed - known), "subjects", one.subjects))
    ways = [way for way in ways if way[0] > 1]
    if ways:
        times, what, have = min(ways)
        return f"about {math.ceil(times * have)} {what}" if times < 100 else f"many more {what}"
    return "more replicates" if math.isnan(between) else "more subjects and more replicates"
