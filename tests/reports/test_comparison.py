"""Words for differences: against simulations with known variances, SciPy and statsmodels."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.multitest import multipletests

from dipa_bench import statistics
from dipa_bench.reports.comparison import (
    Comparison,
    by_replicate,
    compare,
    differences,
    holm,
    pooled,
    replicate_variance,
    verdicts,
)
from dipa_bench.reports.conclusions import TUNED, conclusions
from dipa_bench.reports.leaderboard import leaderboard
from dipa_bench.search.stages import ENOUGH
from dipa_bench.tracking.results import TaskResults

STUDIES = 120


@functools.cache
def index_of(subjects: int, each: int) -> pd.MultiIndex:
    """So many images of each subject."""
    names = [(f"s{g}", f"i{g}.{k}") for g in range(subjects) for k in range(each)]
    return pd.MultiIndex.from_tuples(names, names=["subject", "image"])


def drawn(
    rng: np.random.Generator,
    subjects: int,
    each: int,
    replicates: int,
    spreads: tuple[float, float, float],
    mean: float = 0.0,
) -> pd.DataFrame:
    """Differences of one row, with known spreads of subjects, replicates and the rest."""
    index = index_of(subjects, each)
    of_subjects, of_replicates, rest = spreads
    values = (
        mean
        + np.repeat(rng.normal(0, of_subjects, subjects), each)[:, None]
        + rng.normal(0, of_replicates, replicates)
        + rng.normal(0, rest, (subjects * each, replicates))
    )
    return pd.DataFrame(values, index=index)


@pytest.mark.parametrize(
    ("subjects", "each", "replicates", "rows", "spreads"),
    [
        (40, 1, 2, 6, (0.3, 0.05, 0.1)),
        (20, 3, 3, 6, (0.1, 0.1, 0.2)),
        (10, 4, 2, 8, (0.05, 0.2, 0.1)),
    ],
)
def test_intervals_cover_and_rows_that_are_alike_are_not_told_apart(
    subjects: int,
    each: int,
    replicates: int,
    rows: int,
    spreads: tuple[float, float, float],
) -> None:
    rng = np.random.default_rng(1)
    covered, called = [], []
    for _ in range(STUDIES):
        scores = [drawn(rng, subjects, each, replicates, spreads) for _ in range(rows)]
        shared = pooled([replicate_variance(one) for one in scores])
        found = {str(k): compare(one, shared) for k, one in enumerate(scores)}
        for one in found.values():
            low, high = one.interval()
            covered.append(low <= 0 <= high)
        words = verdicts(found, margin=1e-6)
        called.append(any(one.word in ("better", "worse") for one in words.values()))
    assert 0.93 <= np.mean(covered) <= 0.97
    # with probability 0.99 no more, where 5% are
    assert np.mean(called) <= stats.binom.ppf(0.99, STUDIES, 0.05) / STUDIES


def test_subjects_alone_are_statsmodels_clusters() -> None:
    rng = np.random.default_rng(0)
    scores = drawn(rng, 7, 3, 1, (0.3, 0.0, 0.2), mean=0.1)
    groups = np.unique(scores.index.get_level_values("subject"), return_inverse=True)[1]
    theirs = OLS(scores[0].to_numpy(), np.ones(len(scores))).fit(
        cov_type="cluster", cov_kwds={"groups": groups, "df_correction": True}, use_t=True
    )
    ours = compare(scores)
    assert ours.error == pytest.approx(theirs.bse[0])
    assert ours.interval() == pytest.approx(tuple(theirs.conf_int()[0]))
    assert ours.p_value == pytest.approx(theirs.pvalues[0])
    assert ours.replicates == 1 and math.isnan(ours.of_replicates)


def test_one_image_a_subject_is_a_t_test_of_each_side_and_wilcoxon() -> None:
    scores = drawn(np.random.default_rng(3), 12, 1, 1, (0.3, 0.0, 0.0), mean=0.05)
    values = scores[0].to_numpy()
    found = compare(scores)
    above = stats.ttest_1samp(values, 0.2, alternative="less").pvalue
    below = stats.ttest_1samp(values, -0.2, alternative="greater").pvalue
    assert found.p_equivalence(0.2) == pytest.approx(max(above, below))
    assert found.p_value == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert found.wilcoxon == pytest.approx(stats.wilcoxon(values).pvalue)


def test_replicates_widen_the_interval() -> None:
    rng = np.random.default_rng(4)
    alike = drawn(rng, 40, 1, 1, (0.2, 0.0, 0.0))
    moved = pd.DataFrame({0: alike[0] - 0.1, 1: alike[0] + 0.1})
    found = compare(moved)
    # replicate means differ by 0.2: variance 0.02, of their mean 0.01
    assert found.of_replicates == pytest.approx(0.01)
    assert found.error**2 == pytest.approx(compare(alike).error ** 2 + 0.01)
    assert found.freedom < 2


def test_a_row_whose_replicates_disagree_keeps_its_own_variance() -> None:
    rng = np.random.default_rng(5)
    rows = [drawn(rng, 40, 1, 2, (0.1, 0.02, 0.01)) for _ in range(12)]
    odd = rows[0] + np.array([-1.0, 1.0])
    shared = pooled([replicate_variance(one) for one in (*rows[1:], rows[0])])
    assert compare(odd, shared).disagree and not any(compare(one, shared).disagree for one in rows)
    assert compare(odd, shared).of_replicates == pytest.approx(replicate_variance(odd).value / 2)


def told(mean: float, error: float, **values: float) -> Comparison:
    return Comparison(mean, error, 30.0, 40, 40, 2, **values)


def test_words() -> None:
    found = verdicts(
        {
            "far above": told(0.5, 0.05),
            "far below": told(-0.5, 0.05),
            "alike": told(0.01, 0.02),
            "a sure trifle": told(0.03, 0.001),
            "rounds to nothing": told(0.004, 0.0001),
            "wide": told(0.05, 0.1, of_subjects=0.009, of_replicates=0.001),
            "the same": told(0.0, 0.0),
            "one subject": Comparison(0.3, math.nan, 0, 5, 1, 1),
            "nothing": Comparison(math.nan, math.nan, 0, 0, 0, 0),
        },
        margin=0.1,
    )
    assert {name: one.word for name, one in found.items()} == {
        "far above": "better",
        "far below": "worse",
        "alike": "equivalent",
        "a sure trifle": "equivalent",
        "rounds to nothing": "equivalent",
        "wide": "undecided",
        "the same": "equivalent",
        "one subject": "undecided",
        "nothing": "",
    }
    assert "subjects" in found["wide"].advice
    assert found["one subject"].advice == "more than one subject"
    small = verdicts({"sure": told(0.004, 0.0005)}, margin=0.001)["sure"]
    assert small.p_holm < 1e-6 and small.word == "undecided", "0.00 is no difference"


def test_holm_is_over_the_rows_of_a_study() -> None:
    p = [0.01, 0.02, 0.04, 0.5]  # by hand: 0.04, 0.06, 0.08, 0.5
    rows = {str(k): told(0.1 * stats.t.isf(value / 2, 30), 0.1) for k, value in enumerate(p)}
    found = [one.p_holm for one in verdicts(rows).values()]
    assert found == pytest.approx([0.04, 0.06, 0.08, 0.5])


@pytest.mark.parametrize("count", [0, 1, 2, 13])
def test_holm_is_statsmodels(count: int) -> None:
    p = np.random.default_rng(count).random(count) ** 3
    p[: count // 4] = p[-1:].repeat(count // 4)  # ties
    theirs = multipletests(p, method="holm")[1].tolist() if count else []
    assert holm(p.tolist()) == pytest.approx(theirs)


def test_what_would_decide_does() -> None:
    """With as many subjects as it says, the same spread is enough."""
    found = told(0.3, math.sqrt(0.04), of_subjects=0.039, of_replicates=0.001)
    advice = verdicts({"row": found})["row"].advice
    count = int(advice.split()[1])
    assert advice == f"about {count} subjects" and count > 40
    error = math.sqrt(0.039 * 40 / count + 0.001)
    assert verdicts({"row": told(0.3, error)})["row"].word == "better"
    search = told(0.3, math.sqrt(0.04), of_subjects=0.001, of_replicates=0.039)
    assert verdicts({"row": search})["row"].advice.endswith(" replicates")


def test_replicates_are_paired_with_replicates() -> None:
    rows = [
        {"replicate": r, "seed": 0, "image": f"i{k}", "subject": f"p{k}", "psnr": 20.0 + 5 * r + k}
        for r in range(2)
        for k in range(3)
    ]
    theirs = by_replicate(pd.DataFrame(rows))
    ours, unpaired = differences(theirs + 1.0, theirs)
    assert (ours == 1.0).all(axis=None) and ours.shape == (3, 2) and unpaired == 0
    rounding = theirs + statistics.RESOLUTION["psnr"] / 2
    assert (differences(rounding, theirs)[0] == 0).all(axis=None)
    part, unpaired = differences(theirs.iloc[1:, :1] + 1.0, theirs)
    assert part.shape == (2, 1) and unpaired == 1


def test_replicates_are_paired_with_their_own() -> None:
    """Of those that both rows have, whatever their order and whichever one of them lacks."""
    images = pd.MultiIndex.from_tuples([("a", "i"), ("b", "j")], names=["subject", "image"])
    theirs = pd.DataFrame([[20.0, 30.0, 40.0], [21.0, 31.0, 41.0]], images, [0, 1, 2])
    ours = pd.DataFrame([[43.0, 33.0], [44.0, 34.0]], images, [2, 1])
    found, unpaired = differences(ours, theirs)
    assert (sorted(found.columns), unpaired) == ([1, 2], 0)
    assert (found == 3.0).all(axis=None)


# ---------------------------------------------------------------------------- on the board


@pytest.fixture
def replicated(make_results: Callable[..., TaskResults]) -> TaskResults:
    """Two replicates of three rows; one row failed in the second."""
    again = {"study": "s1-replicate1", "replicate": 1}
    return make_results(
        {"method": "identity"},
        {"method": "gain", "fit_seconds": 1.0},
        {"method": "odd"},
        {"method": "identity"} | again,
        {"method": "gain", "fit_seconds": 3.0} | again,
        {"method": "odd", "state": "diverged", "reason": "NaN"} | again,
        psnr={
            ("s1", "identity"): [20.0, 21.0, 22.0],
            ("s1", "gain"): [21.0, 22.1, 22.9],
            ("s1", "odd"): [20.5, 21.5, 22.5],
            ("s1-replicate1", "identity"): [20.1, 21.1, 22.1],
            ("s1-replicate1", "gain"): [21.2, 22.3, 23.1],
        },
    )


def test_a_row_stands_for_its_replicates(replicated: TaskResults) -> None:
    board = leaderboard(replicated).set_index("method")
    assert list(board.index) == ["gain", "odd", "identity"]
    gain = board.loc["gain"]
    assert gain["psnr"] == pytest.approx((22.0 + 22.2) / 2)
    assert gain["difference"] == pytest.approx((1.0 + 1.1) / 2)
    assert gain["psnr_replicate_std"] == pytest.approx(np.std([22.0, 22.2], ddof=1))
    assert (gain["study"], gain["replicates"], gain["trials"]) == ("s1", 2, 80)
    assert gain["fit_seconds"] == pytest.approx(2.0)
    odd = board.loc["odd"]
    assert (odd["state"], odd["replicates"]) == ("finished", 1)
    assert odd["reason"] == "1 of 2 replicates diverged: NaN"
    assert odd["difference"] == pytest.approx(0.5), "of the replicate that both have"
    assert any("odd" in line and "diverged" in line for line in conclusions(board.reset_index()))


def test_a_replicate_that_still_runs_has_no_reason(replicated: TaskResults) -> None:
    methods = replicated.methods
    running = methods["state"] == "diverged"
    methods = methods.assign(
        state=methods["state"].mask(running, "running"),
        reason=methods["reason"].mask(running, None),
    )
    board = leaderboard(dataclasses.replace(replicated, methods=methods)).set_index("method")
    assert board.loc["odd"]["reason"] == "1 of 2 replicates running"


def test_one_replicate_can_be_shown_alone(replicated: TaskResults) -> None:
    methods = replicated.methods[replicated.methods["study"] == "s1-replicate1"]
    alone = TaskResults("sr", methods, replicated.images, replicated.curves, replicated.trials)
    board = leaderboard(alone).set_index("method")
    assert set(board["study"]) == {"s1-replicate1"}
    assert board.loc["gain", "psnr"] == pytest.approx(22.2)


def test_places_are_shared_by_rows_that_are_alike(
    make_results: Callable[..., TaskResults],
) -> None:
    made = make_results(
        *[{"method": name} for name in ("a", "b", "c")],
        psnr={"a": [21.004, 22.004], "b": [21.0, 22.0], "c": [20.0, 21.0]},
    )
    board = leaderboard(made).set_index("method")
    assert board["rank"].to_dict() == {"a": 1, "b": 1, "c": 3}


def test_words_and_warnings_of_a_board(make_results: Callable[..., TaskResults]) -> None:
    base = np.linspace(20, 25, 12)
    noise = np.random.default_rng(0).normal(0, 0.02, 12)
    wide = np.random.default_rng(1).normal(0.1, 0.5, 12)
    made = make_results(
        *[{"method": name} for name in ("identity", "up", "down", "same")],
        {"method": "unsure", "late_gain": 0.25},
        psnr={
            "identity": list(base),
            "up": list(base + 1 + noise),
            "down": list(base - 1 + noise),
            "same": list(base + noise),
            "unsure": list(base + wide),
        },
    )
    board = leaderboard(made)
    words = board.set_index("method")["verdict"].to_dict()
    assert words == {
        "identity": "reference",
        "up": "better",
        "down": "worse",
        "same": "equivalent",
        "unsure": "undecided",
    }
    lines = conclusions(board)
    assert lines[0] == f"better than identity: up {1 + noise.mean():+.2f}"
    assert any(line.startswith("equivalent to identity within 0.1 dB: same") for line in lines)
    assert any("one replicate" in line for line in lines)
    (late,) = (line for line in lines if "last quarter" in line)
    assert late.startswith("warning: unsure gained 0.25 dB in the last quarter of its tuning")
    assert leaderboard(made, margin=2.0).set_index("method").loc["up", "verdict"] == "equivalent"


def test_a_board_says_what_was_not_tuned(make_results: Callable[..., TaskResults]) -> None:
    """Below the number from which settings are tuned; a row whose settings are fixed is not meant,
    nor one without any, nor published ones."""
    assert TUNED == ENOUGH

    def told(*rows: dict) -> list[str]:
        psnr = {row["method"]: [20.0, 21.0, 22.0] for row in rows}
        lines = conclusions(leaderboard(make_results(*rows, psnr=psnr)))
        return [line for line in lines if "--trials" in line]

    identity = {"method": "identity", "trials": TUNED}
    fixed = {"method": "fixed", "trials": 1}
    other = {"method": "varnet", "start": None, "trials": 2}
    assert told(identity, fixed, other) == []
    assert told(identity, {"method": "few", "trials": TUNED - 1}, fixed) == [
        "warning: too few settings tried to tune few: a difference may be what tuning would bring "
        "(`--trials 60` and more tunes)"
    ]
    over = {"method": "over", "trials": TUNED - 1, "late_gain": 0.0}  # no more was to be gained
    assert told(identity, over) == told(over, other) == []
    for trials, count in ((TUNED - 1, 1), (TUNED + 2, 1), (2 * (TUNED - 1), 0)):  # two operators'
        assert len(told(identity, over | {"learned": True, "trials": trials})) == count
    (line,) = told(identity | {"trials": 1}, fixed, other)
    assert line.startswith("warning: no row was tuned, none was tried with 60 settings")
    published = {"protocol": "published", "trials": 1}
    assert told(identity | published, fixed | published) == []


def test_a_row_below_what_it_can_be_has_not_converged(
    make_results: Callable[..., TaskResults],
) -> None:
    """By its validation images, on which it was tuned; test images may differ by chance."""
    made = make_results(
        {"method": "identity", "validation": 25.0, "contains": "lmmse-identity"},
        {"method": "lmmse-identity", "validation": 25.02},
        {"method": "hessian", "validation": 24.8, "contains": "other, identity"},
        {"method": "polynomial", "validation": 24.97, "contains": "identity"},
        {"method": "ldipa", "validation": 24.0},
        psnr={
            name: [20.0, 21.0, 22.0]
            for name in ("identity", "lmmse-identity", "hessian", "polynomial", "ldipa")
        },
    )
    (told,) = (line for line in conclusions(leaderboard(made)) if "converged" in line)
    assert told == (
        "warning: hessian can be identity, and yet tuning left it 0.20 dB below (on validation "
        "images): its search has not converged"
    )
