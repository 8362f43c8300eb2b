"""The columns that a leaderboard is shown with: heading, text of a cell, side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dipa_bench.errors import unknown
from dipa_bench.reports.text import plain, short


@dataclass(frozen=True)
class Column:
    """How a column is shown.

    Attributes:
        heading: in front of it; `{reference}` stands for the reference's name.
        text: of a row.
        words: whether it is aligned to the left.
    """

    heading: str
    text: Callable[[pd.Series], str]
    words: bool = False


def spread(row: pd.Series, name: str, spec: str) -> str:
    """``mean ± half the interval``, or the mean alone if there is no interval."""
    return interval_text(row[name], row[f"{name}_low"], row[f"{name}_high"], spec)


def interval_text(mean: float, low: float, high: float, spec: str) -> str:
    """``mean ± half the interval``, or the mean alone if there is no interval."""
    half = (high - low) / 2
    text = number_text(mean, spec)
    return text if math.isnan(half) else f"{text} ± {number_text(half, spec.lstrip('+'))}"


def number_text(value: Any, spec: str) -> str:
    """A formatted number, or a dash if it is missing."""
    return "-" if value is None or pd.isna(value) else format(float(value), spec)


def p_text(value: float) -> str:
    """A p-value as text; a dash if there is none."""
    return "<0.001" if value < 0.001 else number_text(value, ".2g")


def _number(name: str, spec: str) -> Callable[[pd.Series], str]:
    return lambda row: number_text(row[name], spec)


def _difference(name: str, spec: str) -> Callable[[pd.Series], str]:
    def text(row: pd.Series) -> str:
        return "" if row["verdict"] == "reference" else spread(row, name, spec)

    return text


ERRORS = {
    "lpips": "LPIPS",
    "nmse": "NMSE",
    "range_error": "range error",
    "null_error": "null error",
}
OWN: dict[str, Column] = {
    "rank": Column("", _number("rank", ".0f")),
    "method": Column("method", lambda row: short(row["method"]), words=True),
    "published": Column("as published", _number("published", ".2f")),
    "psnr": Column("PSNR [dB]", lambda row: spread(row, "psnr", ".2f")),
    "tuning_gain": Column("by tuning [dB]", _number("tuning_gain", "+.2f")),
    "difference": Column("vs {reference} [dB]", _difference("difference", "+.2f")),
    "p_holm": Column("p", lambda row: p_text(row["p_holm"])),
    "verdict": Column("verdict", lambda row: plain(row["verdict"]), words=True),
    "ssim": Column("SSIM", _number("ssim", ".3f")),
    "ssim_difference": Column("SSIM vs {reference}", _difference("ssim_difference", "+.4f")),
    "psnr_best": Column("best iteration [dB]", _number("psnr_best", ".2f")),
    "psnr_best_difference": Column(
        "its PSNR vs {reference} [dB]", _difference("psnr_best_difference", "+.2f")
    ),
    "psnr_stopped": Column("stopped early [dB]", _number("psnr_stopped", ".2f")),
    "psnr_stopped_difference": Column(
        "stopped early vs {reference} [dB]", _difference("psnr_stopped_difference", "+.2f")
    ),
    "stopped_at": Column("at iteration", _number("stopped_at", ".1f")),
    "stopped_at_difference": Column(
        "iterations vs {reference}", _difference("stopped_at_difference", "+.1f")
    ),
    **{name: Column(words, _number(name, ".4f")) for name, words in ERRORS.items()},
    **{
        f"{name}_difference": Column(
            f"{words} vs {{reference}}", _difference(f"{name}_difference", "+.4f")
        )
        for name, words in ERRORS.items()
    },
    "seconds_per_image": Column("s/image", _number("seconds_per_image", ".2g")),
    "parameters": Column("params", _number("parameters", ",.0f")),
    "trials": Column("trials", _number("trials", ".0f")),
}
"""Those that are not just a value of the board."""

SHOWN = (
    *("rank", "method", "published", "psnr", "difference", "p_holm", "verdict"),
    *("ssim", "seconds_per_image", "parameters"),
)
"""By default."""


def chosen(board: pd.DataFrame, names: Sequence[str] | None) -> dict[str, Column]:
    """The columns to show, by their names on the board.

    Args:
        board: the leaderboard.
        names: columns of the board, in order; None for `SHOWN`.

    Raises:
        UserError: a column that the board does not have.
    """
    found = {}
    for name in SHOWN if names is None else names:
        if name not in board.columns:
            raise unknown("column", name, board.columns)
        found[name] = OWN.get(name) or _plain(name, board[name])
    return found


def _plain(name: str, values: pd.Series) -> Column:
    """A column as it is: numbers in one format, everything else as text."""
    heading = name.replace("_", " ")
    if pd.api.types.is_bool_dtype(values):
        return Column(heading, lambda row: "yes" if row[name] else "no", words=True)
    if pd.api.types.is_numeric_dtype(values):
        return Column(heading, _number(name, ".4g"))
    return Column(heading, lambda row: short(row[name]) if pd.notna(row[name]) else "", words=True)


def shown(rows: pd.DataFrame, columns: dict[str, Column]) -> pd.DataFrame:
    """The texts of some rows; a column for each heading."""
    versus = short(rows["reference"].iloc[0], 12) if len(rows) else "reference"
    headings = [column.heading.replace("{reference}", versus) for column in columns.values()]
    cells = [[column.text(row) for column in columns.values()] for _, row in rows.iterrows()]
    return pd.DataFrame(cells, columns=headings, dtype=str)
