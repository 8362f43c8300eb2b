"""Operators against learning rules: how much is the operator, the rule, the tuning?

Read from the leaderboard alone: every finished row that names an operator and a rule is a cell.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dipa_bench.tracking.results import TaskResults

if TYPE_CHECKING:
    from pandas.core.groupby import SeriesGroupBy

LEAST = 2  # operators and rules that make a grid


@dataclass(frozen=True)
class Shares:
    """A two-way decomposition of the sum of squares between cells, in shares of 1.

    Attributes:
        operator, rule: of the means over rules and over operators.
        pairing: what neither explains alone.
        operators, rules: names in the complete part of the grid it was computed on.
        spread: standard deviation between its cells in dB.
    """

    operator: float
    rule: float
    pairing: float
    operators: list[str]
    rules: list[str]
    spread: float


@dataclass(frozen=True)
class Grid:
    """One study as a grid.

    Attributes:
        gains: paired difference of test PSNR to the reference in dB, operators x rules; NaN where
            there is no row.
        tuning: the best trial's validation PSNR minus that of the first trial, which has the
            method's defaults as far as the search admits them, in dB; of every row with both, by
            method.
        shares: None where no two operators and two rules have all their cells.
    """

    gains: pd.DataFrame
    tuning: pd.Series
    shares: Shares | None

    def sentences(self) -> list[str]:
        """What it says, one line each."""
        lines = []
        if self.shares is not None:
            part = self.shares
            lines.append(
                f"of the spread between {len(part.operators)} operators x {len(part.rules)} rules "
                f"(standard deviation {part.spread:.2f} dB) the operator explains "
                f"{part.operator:.0%}, the rule {part.rule:.0%}, their pairing {part.pairing:.0%}"
            )
        if len(self.tuning):
            lines.append(
                f"tuning: the best trial is {self.tuning.median():+.2f} dB above the row's "
                f"untuned defaults in the median of {len(self.tuning)} rows (from "
                f"{self.tuning.min():+.2f} to {self.tuning.max():+.2f}; validation images)"
            )
        return lines


def grid(board: pd.DataFrame, results: TaskResults, study: str) -> Grid | None:
    """The grid of one study, or None where it has not two operators with the same two rules.

    Args:
        board: the leaderboard; of rows with the same operator and rule the better one counts, as
            validation images have it.
        results: for the trials, by whose validation PSNR the better of two rows is chosen.
        study: its name.
    """
    rows = board[(board["study"] == study) & board["difference"].notna()]
    rows = rows.assign(validation=rows["method"].map(_finished(results, study).max()))
    rows = rows.sort_values("validation", ascending=False, na_position="last", kind="stable")
    rows = rows.drop_duplicates(["operator", "rule"])
    gains = rows.pivot(index="operator", columns="rule", values="difference")
    while True:  # operators and rules that are alone make no grid
        kept = gains.loc[gains.notna().sum(axis=1) >= LEAST, gains.notna().sum(axis=0) >= LEAST]
        if kept.shape == gains.shape:
            break
        gains = kept
    if min(gains.shape) < LEAST:
        return None
    return Grid(gains, _tuning(results, study, rows["method"]), _shares(gains))


def _finished(results: TaskResults, study: str) -> SeriesGroupBy:
    """Validation PSNR of the finished trials, by method, in the order of their numbers."""
    trials = results.trials.astype({"value": float})
    kept = (trials["study"] == study) & np.isfinite(trials["value"])
    return trials[kept].sort_values("number").groupby("method")["value"]


def _tuning(results: TaskResults, study: str, methods: pd.Series) -> pd.Series:
    trials = results.trials
    first = trials[(trials["study"] == study) & (trials["number"] == 0)]
    untuned = first.set_index("method")["value"].astype(float)
    found = _finished(results, study)
    gained = found.max()[found.size() > 1] - untuned
    gained = gained[np.isfinite(gained)]
    return gained[gained.index.isin(methods)]


def _shares(gains: pd.DataFrame) -> Shares | None:
    """Of the largest part without gaps that dropping rules or operators one by one leaves."""
    part = gains
    while part.isna().any(axis=None):
        rows, columns = part.isna().mean(axis=1), part.isna().mean(axis=0)
        if rows.max() >= columns.max():
            part = part.drop(index=rows.idxmax())
        else:
            part = part.drop(columns=columns.idxmax())
    if min(part.shape) < LEAST:
        return None
    values = part.to_numpy(float)
    centred = values - values.mean()
    total = (centred**2).sum()
    if total == 0:
        return None
    down = centred.mean(1, keepdims=True)
    across = centred.mean(0, keepdims=True)
    operator = (down**2).sum() * values.shape[1] / total
    rule = (across**2).sum() * values.shape[0] / total
    rest = ((centred - down - across) ** 2).sum() / total
    names = list(part.index), list(part.columns)
    return Shares(operator, rule, rest, *names, float(values.std()))
