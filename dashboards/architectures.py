"""Figures of quality against cost: what numbers, or seconds, buy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dashboards.figures import Looks, blank
from dashboards.palette import Look, label

COSTS = {
    "parameters": ("parameters", "%{x:,.0f} parameters"),
    "seconds_per_image": ("seconds per reconstruction", "%{x:.3g} s"),
}
_WIDTH, _HEIGHT = 320, 270
"""Pixels of the plot that names are placed for, a phone's; a wider one only leaves more room."""
_PLACES = {
    "middle right": (8, -8, 0),
    "middle left": (-8, -8, 1),
    "top center": (0, 5, 0.5),
    "bottom center": (0, -21, 0.5),
    "top right": (5, 3, 0),
    "top left": (-5, 3, 1),
    "bottom right": (5, -19, 0),
    "bottom left": (-5, -19, 1),
}
"""Where a name may stand: its lower corner from the mark in pixels, and its width's share left."""


def comparable(board: pd.DataFrame, trials: pd.DataFrame) -> bool:
    """Whether learned operators of different numbers of parameters were tried or tested.

    Args:
        board: leaderboard rows of one study.
        trials: its trials.
    """
    rows = _tested(board, "parameters")
    tested = rows[rows["learned"].astype(bool)]["parameters"].nunique() if len(rows) else 0
    tried = _tried(board, trials, "parameters")
    return tested > 1 or (len(tried) > 0 and tried["parameters"].nunique() > 1)


def quality_by_cost(
    board: pd.DataFrame,
    trials: pd.DataFrame,
    looks: Looks,
    cost: str,
    dense: int | None = None,
) -> go.Figure:
    """Test PSNR [dB] of every method against a cost, over the validation PSNR of all trials.

    Args:
        board: leaderboard rows of one study; a mark each, with its 95% interval, open where nothing
            was learned.
        trials: its trials; a faint dot for each finished one of a learned method, and as a step
            line the highest PSNR that one of at most this cost has.
        looks: a look per method.
        cost: a key of `COSTS`; on a logarithmic axis, on which 0 has a place left of all others.
        dense: numbers of a dense P, where a vertical line stands; None leaves it out.
    """
    title, hover = COSTS[cost]
    rows, tried = _tested(board, cost), _tried(board, trials, cost)
    figure = blank(title, "PSNR [dB]", len(rows) + 2)
    costs = [*rows[cost], *tried[cost], *([dense] if dense else [])]
    positive = [value for value in costs if value > 0]
    if not positive:
        return figure
    zero = 10.0 ** (math.floor(math.log10(min(positive))) - 1)
    start = zero if (rows[cost] <= 0).any() or (tried[cost] <= 0).any() else min(positive)
    across = (math.log10(start) - 0.3, math.log10(max(positive)) + 0.5)
    up = _heights(rows, tried)
    for method, points in tried.groupby("method"):
        _add_dots(figure, str(method), points, looks[str(method)], cost, zero)
    _add_front(figure, tried, cost, zero, 10 ** across[1])
    if dense:
        _add_dense(figure, dense, up)
    places = _name_places(rows, looks, cost, zero, across, up)
    for row in rows.to_dict("records"):
        _add_row(figure, row, looks[row["method"]], cost, zero, places[row["method"]], hover)
    figure.update_yaxes(range=up)
    figure.update_xaxes(type="log", range=across)
    if cost == "parameters":
        decades = range(math.ceil(math.log10(min(positive))), math.ceil(across[1]))
        ticks = {10.0**power: _count(10**power) for power in decades if power >= 0}
        if start == zero:
            ticks = {zero: "0"} | ticks
        figure.update_xaxes(tickvals=list(ticks), ticktext=list(ticks.values()))
    else:
        narrow = across[1] - across[0] < 2.5
        figure.update_xaxes(dtick="D2" if narrow else 1, tickformat="~g")
    return figure


def pareto(costs: pd.Series, values: pd.Series) -> tuple[list[float], list[float]]:
    """The points that no other of at most their cost reaches, cheapest first.

    Args:
        costs: finite.
        values: finite, higher is better.
    """
    front: list[tuple[float, float]] = []
    for cost, value in sorted(
        zip(costs, values, strict=True), key=lambda pair: (pair[0], -pair[1])
    ):
        if not front or value > front[-1][1]:
            front.append((float(cost), float(value)))
    return [cost for cost, _ in front], [value for _, value in front]


def _tested(board: pd.DataFrame, cost: str) -> pd.DataFrame:
    """The rows that have a mean PSNR and a cost."""
    if board.empty:
        return board.reindex(columns=["method", "learned", "psnr", cost])
    known = np.isfinite(board["psnr"].astype(float)) & np.isfinite(board[cost].astype(float))
    return board[known].astype({cost: float})


def _tried(board: pd.DataFrame, trials: pd.DataFrame, cost: str) -> pd.DataFrame:
    """The finished trials of learned methods that have a value and a cost."""
    if board.empty or trials.empty:
        return pd.DataFrame(columns=["method", "number", "value", cost])
    learned = set(board[board["learned"].astype(bool)]["method"])
    kept = trials[(trials["state"] == "finished") & trials["method"].isin(learned)]
    kept = kept.astype({"value": float, cost: float})
    return kept[np.isfinite(kept["value"]) & np.isfinite(kept[cost])]


def _heights(rows: pd.DataFrame, tried: pd.DataFrame) -> list[float]:
    """The ends of the axis of PSNR: all rows with their intervals, and each method's best trial."""
    shown = [rows[name].astype(float) for name in ("psnr", "psnr_low", "psnr_high") if name in rows]
    shown.append(tried.groupby("method")["value"].max().astype(float))
    values = np.concatenate([part.to_numpy() for part in shown])
    values = values[np.isfinite(values)]
    low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
    margin = 0.08 * (high - low) + 0.3
    return [float(low - margin), float(high + margin)]


def _at(costs: Any, zero: float) -> Any:
    """Where costs stand on the axis."""
    return np.maximum(np.asarray(costs, dtype=float), zero)


def _count(number: int) -> str:
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number // unit}{name}"
    return str(number)


def _add_dots(
    figure: go.Figure, method: str, points: pd.DataFrame, look: Look, cost: str, zero: float
) -> None:
    figure.add_trace(
        go.Scatter(
            x=_at(points[cost], zero),
            y=points["value"],
            mode="markers",
            marker={"size": 5, "color": look.faint(0.3)},
            text=[f"trial {number}" for number in points["number"]],
            customdata=points[cost],
            meta=[label(method, 40)],
            hovertemplate="%{text}: %{y:.2f} dB (validation)<br>"
            + COSTS[cost][1].replace("%{x", "%{customdata")
            + "<extra>%{meta[0]}</extra>",
            legendgroup=label(look.name),
            name=label(look.name),
            showlegend=False,
        )
    )


def _add_front(figure: go.Figure, tried: pd.DataFrame, cost: str, zero: float, end: float) -> None:
    """Adds the step line of the best trials, up to the right end of the axis."""
    costs, values = pareto(tried[cost], tried["value"])
    if not costs:
        return
    figure.add_trace(
        go.Scatter(
            x=[*_at(costs, zero), end],
            y=[*values, values[-1]],
            mode="lines",
            line={"color": "#8a929b", "width": 1.5, "shape": "hv"},
            name="best trial so far",
            hovertemplate="best trial of at most this cost: %{y:.2f} dB (validation)"
            "<extra></extra>",
        )
    )


def _add_dense(figure: go.Figure, dense: int, up: list[float]) -> None:
    """Adds the vertical line at the numbers of a dense P."""
    figure.add_trace(
        go.Scatter(
            x=[dense, dense],
            y=up,
            mode="lines+text",
            line={"color": "#1c2733", "width": 1, "dash": "dot"},
            text=["", "dense P "],
            textposition="bottom left",
            textfont={"size": 11},
            name="dense P: (H W)² numbers",
            hovertemplate=f"dense P: {dense:,} numbers<extra></extra>",
        )
    )


def _add_row(
    figure: go.Figure,
    row: dict[str, Any],
    look: Look,
    cost: str,
    zero: float,
    place: str | None,
    hover: str,
) -> None:
    """Adds a method's mark with its interval, and its name where there is room."""
    ends = [
        row.get("psnr_high", math.nan) - row["psnr"],
        row["psnr"] - row.get("psnr_low", math.nan),
    ]
    known = all(math.isfinite(end) for end in ends)
    bars = {
        "type": "data",
        "array": [ends[0]],
        "arrayminus": [ends[1]],
        "thickness": 1,
        "width": 3,
        "color": look.faint(0.5),
    }
    figure.add_trace(
        go.Scatter(
            x=_at([row[cost]], zero),
            y=[row["psnr"]],
            error_y=bars if known else None,
            mode="markers+text" if place else "markers",
            marker={
                "symbol": look.symbol if row["learned"] else f"{look.symbol}-open",
                "size": 10,
                "color": look.colour,
                "line": {"width": 1.5, "color": look.colour},
            },
            text=[label(look.name)] if place else None,
            textposition=place,
            textfont={"size": 11},
            cliponaxis=False,
            customdata=[row[cost]],
            meta=[label(row["method"], 40)],
            hovertemplate="test %{y:.2f} dB<br>"
            + hover.replace("%{x", "%{customdata")
            + "<extra>%{meta[0]}</extra>",
            legendgroup=label(look.name),
            name=label(look.name),
        )
    )


def _name_places(
    rows: pd.DataFrame,
    looks: Looks,
    cost: str,
    zero: float,
    across: tuple[float, float],
    up: list[float],
) -> dict[str, str | None]:
    """Where each method's name stands, the best method's first; None where it would cover others.

    Such a name is in the legend and in the hover text.
    """
    x = (np.log10(_at(rows[cost], zero)) - across[0]) / (across[1] - across[0]) * _WIDTH
    y = (rows["psnr"].to_numpy(dtype=float) - up[0]) / (up[1] - up[0]) * _HEIGHT
    taken = [(left - 7, low - 7, left + 7, low + 7) for left, low in zip(x, y, strict=True)]
    places: dict[str, str | None] = {}
    for index, method in enumerate(rows["method"]):
        length = 6.2 * len(looks[method].name)
        others = taken[:index] + taken[index + 1 :]
        places[method] = None
        for place, (right, high, share) in _PLACES.items():
            left, low = x[index] + right - share * length, y[index] + high
            box = (left, low, left + length, low + 16)
            if left >= 0 and left + length <= _WIDTH and not any(_meet(box, o) for o in others):
                places[method] = place
                taken.append(box)
                break
    return places


def _meet(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether two boxes (left, low, right, high) overlap."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
