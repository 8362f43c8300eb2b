"""The figure of the best validation PSNR against the budget spent: better, or only better tuned?"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dashboards.figures import Looks, blank, switch
from dashboards.palette import Look, label
from dipa_bench.reports.tuning import UNITS

REACH = 10.0
"""dB: methods that end further below the best lie outside of the axis."""
_POINTS = 200
"""Most points of a line."""
_MARGIN = 1.5
"""dB of the axis below the end of the lowest method shown."""
_AXES = {"trials": "trials", "seconds": "fitting and validating [s]"}
_HOVER = {"trials": "%{x:.0f} trials", "seconds": "%{x:.3g} s"}


def best_against_budget(lines: Mapping[str, pd.DataFrame], looks: Looks) -> go.Figure:
    """Mean best validation PSNR [dB] of every method against trials or, at a click, seconds.

    Args:
        lines: from `dipa_bench.reports.tuning.curves` of one study, by unit of the budget.
        looks: a look per method.
    """
    methods = sorted(set(lines[UNITS[0]]["method"]))
    figure = blank(_AXES[UNITS[0]], "best validation PSNR [dB]", len(methods) + 2)
    units: list[str] = []
    for unit in UNITS:
        for method, line in lines[unit].groupby("method", sort=True):
            _add_line(figure, str(method), steps(line), looks[str(method)], unit)
            units += [unit] * (len(figure.data) - len(units))
    for trace, unit in zip(figure.data, units, strict=True):
        trace.visible = unit == UNITS[0]
    last = float(lines[UNITS[0]]["budget"].max())
    axes = {unit: _axis(unit, last) for unit in UNITS}
    figure.update_xaxes(**axes[UNITS[0]])
    figure.update_yaxes(range=_heights(lines[UNITS[0]]))
    return figure.update_layout(
        margin_t=64, legend_itemsizing="constant", updatemenus=[switch(units, axes)]
    )


def steps(line: pd.DataFrame) -> pd.DataFrame:
    """A step line without the points at which nothing changes, at most `_POINTS` of the others.

    The first and the last always stay.

    Args:
        line: budget, mean, low and high of one method, by budget.
    """
    levels = line[["mean", "low", "high"]].fillna(0.0)
    changes = (levels != levels.shift()).any(axis=1).to_numpy(copy=True)
    changes[-1] = True
    kept = line[changes]
    if len(kept) <= _POINTS:
        return kept
    return kept.iloc[np.linspace(0, len(kept) - 1, _POINTS).round().astype(int)]


def _add_line(figure: go.Figure, method: str, line: pd.DataFrame, look: Look, unit: str) -> None:
    """Adds a method's band, where it has one, and its line with a mark at the end."""
    shape = {"color": look.colour, "dash": look.dash, "width": 2, "shape": "hv"}
    group = {"legendgroup": label(look.name), "name": label(look.name)}
    if line["low"].notna().any():
        for name, fill in (("low", None), ("high", "tonexty")):
            figure.add_trace(
                go.Scatter(
                    x=line["budget"],
                    y=line[name],
                    mode="lines",
                    line={"width": 0, "shape": "hv"},
                    fill=fill,
                    fillcolor=look.faint(0.12),
                    showlegend=False,
                    hoverinfo="skip",
                    **group,
                )
            )
    half = (line["high"] - line["low"]) / 2
    figure.add_trace(
        go.Scatter(
            x=line["budget"],
            y=line["mean"],
            mode="lines+markers",
            line=shape,
            marker={
                "symbol": look.symbol,
                "color": look.colour,
                "size": [0] * (len(line) - 1) + [9],
            },
            text=["" if np.isnan(value) else f" ± {value:.2f}" for value in half],
            meta=[label(method, 40)],
            hovertemplate=f"after {_HOVER[unit]}: %{{y:.2f}}%{{text}} dB"
            "<extra>%{meta[0]}</extra>",
            **group,
        )
    )


def _heights(lines: pd.DataFrame) -> list[float]:
    """The ends of the axis of PSNR: the ends of all methods within reach, with their bands."""
    ends = lines.groupby("method").last()
    ends = ends[ends["mean"] >= ends["mean"].max() - REACH]
    top, bottom = float(ends["mean"].max()), float(ends["mean"].min())
    spread = max(top - bottom, 0.2)
    lowest = max(float(lines["mean"].min()), bottom - _MARGIN - 0.3 * spread)
    highest = min(np.nanmax(ends[["high", "mean"]].to_numpy()), top + spread + _MARGIN)
    margin = 0.05 * (highest - lowest) + 0.02
    return [lowest - margin, float(highest) + margin]


def _axis(unit: str, last: float) -> dict[str, object]:
    """The axis of the budget; whole trials, about ten ticks up to the `last`."""
    whole = max(1, math.ceil(last / 10)) if unit == "trials" else None
    kind = "linear" if unit == "trials" else "log"
    return {"title_text": _AXES[unit], "type": kind, "dtick": whole, "autorange": True}
