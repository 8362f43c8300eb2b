"""Rows of several tasks side by side, and two rows image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from dipa_bench.errors import unknown
from dipa_bench.reports import comparison
from dipa_bench.reports.columns import spread
from dipa_bench.reports.leaderboard import image_rows
from dipa_bench.tracking.results import TaskResults


def by_task(board: pd.DataFrame, by: str = "task") -> pd.DataFrame:
    """The differences to the reference as text, methods in rows.

    Args:
        board: leaderboards of several tasks in one frame.
        by: ``task`` or ``study``: what stands in the columns. Of a method that a column has more
            than once, its best row counts.

    Returns:
        A frame whose first column is the method; empty where a method was not run.
    """
    if by not in ("task", "study"):
        raise unknown("--pivot", by, ("task", "study"))
    rows = board[board["psnr"].notna()].sort_values("psnr", ascending=False)
    rows = rows.drop_duplicates([by, "method"])
    texts = [
        f"{row['psnr']:.2f} dB"
        if row["verdict"] == "reference"
        else f"{spread(row, 'difference', '+.2f')} {row['verdict']}"
        for _, row in rows.iterrows()
    ]
    cells = rows[["method", by]].assign(text=texts)
    wide = cells.pivot(index="method", columns=by, values="text").fillna("")
    order = rows.groupby("method")["difference"].mean().sort_values(ascending=False).index
    return wide.loc[order].reset_index().rename_axis(columns=None)


def sorted_by(board: pd.DataFrame, key: str) -> pd.DataFrame:
    """A board in another order: ``fit_seconds`` smallest first, ``-ssim`` largest first.

    Raises:
        UserError: no such column.
    """
    name = key.removeprefix("-")
    if name not in board.columns:
        raise unknown("column", name, board.columns)
    return board.sort_values(name, ascending=not key.startswith("-"), kind="stable")


def only(board: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """Some rows of a board, with the differences, words and ranks that they have among all.

    Args:
        board: a leaderboard, or several in one frame.
        methods: names of rows.

    Raises:
        UserError: a method that the board has not.
    """
    for name in methods:
        if name not in set(board["method"]):
            raise unknown("method", name, sorted(set(board["method"])))
    return board[board["method"].isin(methods)]


@dataclass(frozen=True)
class Pair:
    """Two rows, image by image.

    Attributes:
        first, second: their names.
        images: subject, image, first and second [dB] and their difference, largest gain first.
        found: the mean of first minus second with its error.
        verdict: the first against the second, in one word.
        parameters: name, and its value in the first and the second, where they differ.
    """

    first: str
    second: str
    images: pd.DataFrame
    found: comparison.Comparison
    verdict: comparison.Verdict
    parameters: pd.DataFrame


def compare_rows(
    results: TaskResults, first: str, second: str, margin: float = comparison.MARGIN
) -> Pair:
    """Compares two rows of one task.

    Args:
        results: what was measured.
        first, second: methods, or ``STUDY/METHOD`` where several studies have them.
        margin: dB; a difference within it does not matter.

    Raises:
        UserError: no such row, or several.
    """
    rows = [_find(results, name) for name in (first, second)]
    grids = [
        comparison.by_replicate(image_rows(results, row["study"], row["method"])) for row in rows
    ]
    scores, unpaired = comparison.differences(*grids)
    found = comparison.compare(scores, unpaired=unpaired)
    means = [grid.mean(axis=1).reindex(scores.index) for grid in grids]
    images = pd.DataFrame({"first": means[0], "second": means[1]}).reset_index()
    images["difference"] = images["first"] - images["second"]
    images = images.sort_values("difference", ascending=False, ignore_index=True)
    params = [row["params"] for row in rows]
    names = [
        name
        for name in sorted(params[0].keys() | params[1].keys())
        if params[0].get(name) != params[1].get(name)
    ]
    parameters = pd.DataFrame(
        [(name, params[0].get(name), params[1].get(name)) for name in names],
        columns=["parameter", "first", "second"],
    )
    word = comparison.verdicts({"pair": found}, margin)["pair"]
    return Pair(_name(rows[0]), _name(rows[1]), images, found, word, parameters)


def _find(results: TaskResults, name: str) -> pd.Series:
    """The one row of a name, of the first replicate."""
    methods = results.methods[results.methods["state"] == "finished"]
    methods = methods.sort_values("replicate", kind="stable")
    methods = methods.drop_duplicates(["replicate_of", "method"])
    full = methods["study"] + "/" + methods["method"]
    chosen = methods[(full == name) | (methods["method"] == name)]
    exact = methods[full == name]
    if len(exact) == 1:
        return exact.iloc[0]
    if chosen.empty:
        raise unknown("row", name, {*full, *methods["method"]})
    if len(chosen) > 1:
        raise unknown("row", name, set(full))
    return chosen.iloc[0]


def _name(row: pd.Series) -> str:
    return f"{row['study']}/{row['method']}"
