"""Better, or only better tuned? Best validation PSNR against budget spent, over repeated searches.

A search is one row of one study. Replicates of a study (``dipa-bench study --replicates S``) search
every row again with other draws and other seeds of the fits, on the same images:

1. after every trial a search has spent so many trials and seconds (`spent`) and found a best
   validation PSNR, that of its best finished trial. Pruned, diverged and failed trials are paid for
   and never count as best; interrupted ones are repeated and count for nothing;
2. between trials the best stays what it was, and at the end of a search it stays so for good; of a
   search that still runs nothing is known beyond its last trial;
3. a row's curve is the mean over its searches, from where each has a finished trial, and its band
   Student's 95% t interval of that mean, for at least two searches. It is not cut at the smallest
   and largest search, which would make it too short; from two searches it is therefore wide.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from dipa_bench import statistics
from dipa_bench.errors import unknown
from dipa_bench.reports.leaderboard import REFERENCE, image_rows
from dipa_bench.tracking.charges import charged_seconds
from dipa_bench.tracking.results import TaskResults

Unit = Literal["trials", "seconds"]
UNITS = ("trials", "seconds")
BEST_SO_FAR = ("study", "replicate_of", "replicate", "method", "trials", "seconds", "best")
CURVES = ("study", "method", "budget", "mean", "low", "high", "replicates")
VERDICT = (
    *("study", "method", "replicates", "trials", "seconds", "best", "best_low", "best_high"),
    *("reference", "gain", "gain_low", "gain_high", "near_trials", "near_seconds", "running"),
    *("test_repeats", "test", "test_low", "test_high", "images_low", "images_high"),
    *("test_gain", "test_gain_low", "test_gain_high", "images_gain_low", "images_gain_high"),
)
REVERSALS = ("study", "leader", "other", "budget", "leader_best", "other_best")
NEAR = 0.1
"""dB: a search that is this close to its own end has all but arrived."""
LEAD = 0.01
"""dB: what is less than this apart is no order."""
_NOT_COUNTED = ("interrupted", "running")


@dataclass(frozen=True)
class Search:
    """One search of one row, after each of its n trials.

    Attributes:
        study: the study that made it.
        seconds: n, spent by then, never falling.
        best: n, the best validation PSNR [dB] by then, never falling; NaN before there is one.
        over: whether it has ended; one that still runs has no value beyond its last trial.
    """

    study: str
    seconds: np.ndarray
    best: np.ndarray
    over: bool = True

    def spent(self, unit: Unit) -> np.ndarray:
        """The budget after each trial, n."""
        return self.seconds if unit == "seconds" else np.arange(1.0, len(self.best) + 1)

    def at(self, budget: Any, unit: Unit) -> np.ndarray:
        """The best PSNR [dB] that so much budget had found; NaN where that is not known.

        Args:
            budget: one number or several.
            unit: of the budget.
        """
        spent, budget = self.spent(unit), np.asarray(budget, dtype=float)
        place = np.searchsorted(spent, budget, side="right") - 1
        known = (place >= 0) & (self.over | (budget <= spent[-1]))
        return np.where(known, self.best[place], np.nan)


@dataclass(frozen=True)
class Outcome:
    """Where the searches of one row stand once its budget is spent.

    Figures are arrays with a number for each of the replicates asked for, by default all.

    Attributes:
        searches: by repeat; none is empty.
        trials: the budget in trials, the same for all: that of the longest, or as far as one that
            still runs has come.
    """

    searches: Mapping[int, Search]
    trials: int

    def common(self, other: Outcome) -> list[int]:
        """The replicates that both rows have."""
        return sorted(self.searches.keys() & other.searches.keys())

    def spent(self, unit: Unit, replicates: Iterable[int] | None = None) -> np.ndarray:
        """The budget that each search spent."""
        ends = [one.spent(unit)[: self.trials][-1] for one in self._chosen(replicates)]
        return np.array(ends, dtype=float)

    def best(self, replicates: Iterable[int] | None = None) -> np.ndarray:
        """The best PSNR [dB] that each search found."""
        ends = [one.best[: self.trials][-1] for one in self._chosen(replicates)]
        return np.array(ends, dtype=float)

    def near(self, unit: Unit) -> np.ndarray:
        """The budget by which each search was within `NEAR` of its own end."""
        return np.array([self._near(one, unit) for one in self._chosen(None)], dtype=float)

    def at(self, budgets: np.ndarray, unit: Unit, replicates: Iterable[int]) -> np.ndarray:
        """The best PSNR [dB] that each search had found at a budget of its own."""
        pairs = zip(self._chosen(replicates), budgets, strict=True)
        return np.array([one.at(budget, unit) for one, budget in pairs], dtype=float)

    def _chosen(self, replicates: Iterable[int] | None) -> list[Search]:
        return [self.searches[k] for k in (self.searches if replicates is None else replicates)]

    def _near(self, one: Search, unit: Unit) -> float:
        best = one.best[: self.trials]
        places = np.flatnonzero(best >= best[-1] - NEAR)
        return float(one.spent(unit)[places[0]]) if len(places) else math.nan


def spent(trials: pd.DataFrame) -> pd.Series:
    """What each row's search was charged for (`charged_seconds`) after each of its trials.

    Args:
        trials: study, method, index, state, seconds and shared_seconds, in any order.

    Returns:
        Seconds, never falling within a row, labelled as the rows of `trials`, in the order of
        study, method and index; interrupted and running trials are left out. What was not measured
        counts as nothing.
    """
    counted = trials[~trials["state"].isin(_NOT_COUNTED)]
    counted = counted.sort_values(["study", "method", "index"], kind="stable")
    known = counted[["seconds", "shared_seconds"]].astype(float).fillna(0.0)
    rows = known.groupby([counted["study"], counted["method"]], sort=False)
    ends = [charged_seconds(row["seconds"], row["shared_seconds"]) for _, row in rows]
    return pd.Series(np.concatenate(ends) if ends else [], index=counted.index, dtype=float)


def best_so_far(results: TaskResults) -> pd.DataFrame:
    """What every search had spent and found after each of its trials.

    Returns:
        A frame with the columns `BEST_SO_FAR`: replicate_of the study that is repeated, replicate
        the number of the search, trials and seconds spent, best in dB (NaN before one finished).
    """
    names = ["study", "method"]
    if results.trials.empty:
        return pd.DataFrame(columns=list(BEST_SO_FAR))
    trials = results.trials.merge(results.methods[[*names, "replicate", "replicate_of"]], on=names)
    seconds = spent(trials)
    trials = trials.loc[seconds.index].assign(seconds=seconds)
    value = trials["value"].astype(float)
    usable = (trials["state"] == "finished") & np.isfinite(value)
    trials["best"] = value.where(usable, -np.inf)
    rows = trials.groupby(names)
    best = rows["best"].cummax()
    trials = trials.assign(trials=rows.cumcount() + 1, best=best.where(np.isfinite(best)))
    return trials[list(BEST_SO_FAR)].reset_index(drop=True)


def curves(results: TaskResults, unit: Unit = "trials") -> pd.DataFrame:
    """The best validation PSNR of each method against the budget, over its repeated searches.

    Args:
        results: what was measured.
        unit: of the budget.

    Returns:
        A frame with the columns `CURVES`, a row for each budget at which any search of the method
        ended a trial: study the one that is repeated, mean over the searches and the ends of its
        95% t interval in dB (NaN from one search), replicates their number.

    Raises:
        UserError: an unknown unit.
    """
    rows = []
    for (study, method), row in _outcomes(results, unit).items():
        searches = list(row.searches.values())
        grid = np.unique(np.concatenate([one.spent(unit) for one in searches]))
        mean, low, high = interval(np.stack([one.at(grid, unit) for one in searches]))
        keys = {"study": study, "method": method, "replicates": len(searches)}
        table = pd.DataFrame({"budget": grid, "mean": mean, "low": low, "high": high} | keys)
        rows.append(table[table["mean"].notna()][list(CURVES)])
    filled = [table for table in rows if len(table)]
    return pd.concat(filled, ignore_index=True) if filled else pd.DataFrame(columns=list(CURVES))


def best_at(results: TaskResults, budgets: Sequence[float], unit: Unit = "trials") -> pd.DataFrame:
    """The mean best validation PSNR [dB] of each method at some budgets.

    Returns:
        A frame labelled by study and method, with a column for each budget; NaN where not all
        searches have a finished trial, or one that still runs has not come so far.
    """
    rows = {
        key: np.mean([one.at(budgets, unit) for one in row.searches.values()], axis=0)
        for key, row in _outcomes(results, unit).items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index", columns=list(budgets), dtype=float)
    table.index = pd.MultiIndex.from_tuples(list(rows), names=["study", "method"])
    return table


def interval(values: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means over searches and the ends of Student's t interval around each.

    Args:
        values: S x n, of S searches at n budgets.
        level: confidence level in (0, 1).

    Returns:
        ``(mean, low, high)``, n each; NaN where any search has no value, the ends for S = 1 too.
    """
    found = [statistics.t_interval(column, level=level) for column in values.T]
    mean, low, high = np.array(found).reshape(-1, 3).T
    return mean, low, high


def verdict(results: TaskResults, reference: str | None = None) -> pd.DataFrame:
    """Where each method stands at the end of its budget, and how much another search changes.

    Args:
        results: what was measured.
        reference: the method whose search each is paired with, replicate by repeat; by default what
            the study itself names, else ``identity``.

    Returns:
        A frame with the columns `VERDICT`, per study the best mean validation PSNR first. PSNR and
        gains are in dB, with the ends of 95% intervals:

        - best, gain over the reference, trials and seconds spent, and how many of both brought a
          search within `NEAR` of its own end: means over searches;
        - running: whether a search still goes on;
        - test, of the winners that finished (test_repeats many): low and high speak of other
          searches, images_low and images_high of other subjects; test_gain likewise.

    Raises:
        UserError: no method is named like the reference.
    """
    names = set() if results.methods.empty else set(results.methods["method"])
    if reference is not None and names and reference not in names:
        raise unknown("reference", reference, names)
    outcomes = _outcomes(results)
    rows = [
        _verdict_row(results, outcomes, key, reference or _reference(results, key[0]))
        for key in outcomes
    ]
    rows.sort(key=lambda row: (row["study"], math.isnan(row["best"]), -row["best"], row["method"]))
    return pd.DataFrame(rows, columns=list(VERDICT))


def reversals(results: TaskResults, unit: Unit = "seconds") -> pd.DataFrame:
    """Pairs of methods whose order at the end of their budgets is not that at equal budgets.

    One method ends ahead, but had spent more than all that the other one's search took: when that
    was over, the leader was behind, or had nothing yet. Rows of one trial are left out: nothing was
    searched there.

    Args:
        results: what was measured.
        unit: in which budgets are made equal.

    Returns:
        A frame with the columns `REVERSALS`: budget is the other's whole one, leader_best and
        other_best the PSNR [dB] of both there; all means over the searches that both have.
    """
    outcomes = _outcomes(results, unit)
    rows = [
        {"study": key[0], "leader": key[1], "other": rival[1]} | found
        for key, leader in outcomes.items()
        for rival, other in outcomes.items()
        if key[0] == rival[0] and (found := _reversal(leader, other, unit))
    ]
    return pd.DataFrame(rows, columns=list(REVERSALS))


def _reversal(leader: Outcome, other: Outcome, unit: Unit) -> dict[str, float]:
    """Budget and PSNRs where the order of two rows turns; nothing where it does not."""
    common = leader.common(other)
    if not common or other.trials < 2:
        return {}
    budgets, end = other.spent(unit, common), other.best(common).mean()
    ahead = leader.best(common).mean() - end >= LEAD  # not so where either has none
    if not ahead or leader.spent(unit, common).mean() <= budgets.mean():
        return {}
    then = leader.at(budgets, unit, common).mean()
    if then > end - LEAD:
        return {}
    return {"budget": float(budgets.mean()), "leader_best": float(then), "other_best": float(end)}


def _outcomes(results: TaskResults, unit: str = "trials") -> dict[tuple[str, str], Outcome]:
    """The searches of every row, by the study that is repeated and the method."""
    if unit not in UNITS:
        raise unknown("unit", unit, UNITS)
    table = best_so_far(results)
    running = _running(results.methods)
    found: dict[tuple[str, str], dict[int, Search]] = {}
    for (base, method, replicate, study), rows in table.groupby(
        ["replicate_of", "method", "replicate", "study"], sort=True
    ):
        seconds, best = rows["seconds"].to_numpy(float), rows["best"].to_numpy(float)
        over = (study, method) not in running
        found.setdefault((base, method), {})[int(replicate)] = Search(study, seconds, best, over)
    return {key: Outcome(searches, _budget(searches)) for key, searches in found.items()}


def _running(methods: pd.DataFrame) -> set[tuple[str, str]]:
    rows = methods.iloc[:0] if methods.empty else methods[methods["state"] == "running"]
    return set() if rows.empty else set(zip(rows["study"], rows["method"], strict=True))


def _budget(searches: Mapping[int, Search]) -> int:
    """The trials up to which all searches have a value."""
    running = [len(one.best) for one in searches.values() if not one.over]
    return min(running) if running else max(len(one.best) for one in searches.values())


def _reference(results: TaskResults, study: str) -> str:
    """The row that a study compares with."""
    rows = results.methods[results.methods["replicate_of"] == study]
    named = rows["reference"].dropna() if "reference" in rows else ()
    return named.iloc[0] if len(named) else REFERENCE


def _verdict_row(
    results: TaskResults,
    outcomes: Mapping[tuple[str, str], Outcome],
    key: tuple[str, str],
    reference: str,
) -> dict[str, Any]:
    study, method = key
    ours, theirs = outcomes[key], outcomes.get((study, reference))
    common = [] if theirs is None else ours.common(theirs)
    gains = ours.best(common) - theirs.best(common) if common else np.empty(0)
    row = {"study": study, "method": method, "reference": reference}
    row |= {"replicates": len(ours.searches), "trials": ours.trials}
    row |= {"seconds": ours.spent("seconds").mean()}
    row |= _ends("best", ours.best()) | _ends("gain", gains)
    for unit in UNITS:
        row[f"near_{unit}"] = ours.near(unit).mean()
    row["running"] = any(not one.over for one in ours.searches.values())
    return row | _test_figures(results, ours, theirs, method, reference)


def _ends(name: str, values: np.ndarray) -> dict[str, float]:
    """A mean over searches and the ends of its interval; NaN without any."""
    ends = statistics.t_interval(values)
    return dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))


def _test_figures(
    results: TaskResults, ours: Outcome, theirs: Outcome | None, method: str, reference: str
) -> dict[str, float]:
    """Test PSNR of the winners, with intervals over searches and over subjects."""
    scores = _test_scores(results, ours, method)
    others = {} if theirs is None else _test_scores(results, theirs, reference)
    common = sorted(scores.keys() & others.keys())
    means = _means(scores, list(scores))
    gains = _means(scores, common) - _means(others, common)
    joined = statistics.mean_interval(_joined(scores, list(scores)))
    paired = statistics.paired_difference(_joined(scores, common), _joined(others, common))
    row = {"test_repeats": len(scores)} | _ends("test", means) | _ends("test_gain", gains)
    row |= {"images_low": joined.low, "images_high": joined.high}
    return row | {"images_gain_low": paired.low, "images_gain_high": paired.high}


def _test_scores(results: TaskResults, outcome: Outcome, method: str) -> dict[int, pd.DataFrame]:
    """Rows of test images of each search whose winner was tested, by replicate."""
    found = {}
    for k, one in outcome.searches.items():
        rows = image_rows(results, one.study, method)
        if len(rows):  # those of the first have its replicates' with them
            found[k] = rows[rows["study"] == one.study]
    return {k: rows for k, rows in found.items() if len(rows)}


def _means(scores: Mapping[int, pd.DataFrame], replicates: list[int]) -> np.ndarray:
    means = [statistics.mean_interval(scores[k]).mean for k in replicates]
    return np.array(means, dtype=float)


def _joined(scores: Mapping[int, pd.DataFrame], replicates: list[int]) -> pd.DataFrame:
    """The rows of several searches; an image then counts with its mean over them."""
    return pd.concat([scores[k] for k in replicates]) if replicates else pd.DataFrame()
