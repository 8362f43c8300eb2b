"""The figures of one study: curves, distributions and the search, as Plotly figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dashboards.palette import Look, label
from dipa_bench.statistics import CEILING, image_scores

Looks = Mapping[str, Look]

_REACH = 40.0
"""dB: an axis of PSNR shows no more than this below its best curve."""
_SEARCH_REACH = 10.0
"""dB: the search shows trials down to this far below the best trial of the weakest method."""
_POINTS = 500
"""Most points drawn beside a box; of more images, only the outliers are drawn."""


def psnr_curves(curves: pd.DataFrame, looks: Looks) -> go.Figure:
    """Mean PSNR [dB] per iteration and method, with a band from the 10th to the 90th percentile.

    Args:
        curves: method, seed, image, iteration, psnr of one study.
        looks: a look per method.
    """
    figure = blank("iteration (0 = start)", "mean PSNR [dB]", _count(curves))
    tops, bottoms = [], []
    for method, values in _per_image(curves, "psnr"):
        values = values.clip(upper=CEILING)
        _add_curve(figure, method, values, values.mean(axis=1), looks[method], "%{y:.2f} dB")
        tops.append(values.quantile(0.9, axis=1).max())
        bottoms.append(values.quantile(0.1, axis=1).min())
    if tops and max(tops) - min(bottoms) > _REACH:
        figure.update_yaxes(range=[max(tops) - _REACH, max(tops) + 1])
    return _iterations(figure, curves)


def residual_curves(curves: pd.DataFrame, looks: Looks) -> go.Figure:
    """Median ||Ax - y|| per iteration and method on a logarithmic axis, with a 10-90% band.

    Args:
        curves: method, seed, image, iteration, residual of one study.
        looks: a look per method.
    """
    figure = blank("iteration (0 = start)", "median ‖Ax - y‖₂ [unit of y]", _count(curves))
    decades = 0.0
    for method, values in _per_image(curves, "residual"):
        positive = values.where(values > 0).dropna(how="all")
        centre = positive.median(axis=1)
        _add_curve(figure, method, positive, centre, looks[method], "‖Ax - y‖ = %{y:.3g}")
        decades = max(decades, _decades(positive))
    figure.update_yaxes(type="log", exponentformat="power", dtick=1 if decades > 3 else "D2")
    return _iterations(figure, curves)


def psnr_boxes(images: pd.DataFrame, looks: Looks) -> go.Figure:
    """Test PSNR [dB] per method: box, mean and a point per image.

    Args:
        images: method, seed, image, subject, psnr of one study.
        looks: a look per method.
    """
    figure = blank("test PSNR [dB], mean over replicates", "", 0)
    scores = {} if images.empty else {m: image_scores(r) for m, r in images.groupby("method")}
    for method in sorted(scores, key=lambda name: scores[name].mean()):
        values, look = scores[method].dropna(), looks[method]
        names = [label(image, 80) for _, image in values.index]
        subjects = [label(subject, 80) for subject, _ in values.index]
        figure.add_trace(
            go.Box(
                x=values.to_numpy(),
                name=label(look.name),
                meta=[label(method, 40)],
                boxpoints="all" if len(values) <= _POINTS else "outliers",
                boxmean=True,
                jitter=0.6,
                pointpos=0,
                marker={"color": look.faint(0.55), "size": 4},
                line={"color": look.colour, "width": 1.5},
                fillcolor=look.faint(0.12),
                customdata=np.array([names, subjects], dtype=object).T,
                hovertemplate="%{customdata[0]} (%{customdata[1]})<br>%{x:.2f} dB"
                "<extra>%{meta[0]}</extra>",
            )
        )
    figure.update_yaxes(type="category", showgrid=False)
    return figure.update_layout(
        showlegend=False, height=140 + 62 * max(len(scores), 1), hovermode="closest"
    )


def search_history(trials: pd.DataFrame, looks: Looks) -> go.Figure:
    """Validation PSNR [dB] of every trial and the best so far, per method.

    Trials that ran on some of the images are where they are estimated. Those without a value, or
    far below the others, lie on a line at the bottom.

    Args:
        trials: method, number, state, value, estimate, reason of one study.
        looks: a look per method.
    """
    figure = blank("trial", "validation PSNR [dB]", _count(trials) + 2)
    if trials.empty:
        return figure
    trials = trials.assign(value=trials["value"].astype(float)).sort_values("number")
    floor = _search_floor(trials)
    for method, rows in trials.groupby("method"):
        _add_trials(figure, method, rows, looks[method], floor)
    for text, symbol in (("pruned", "triangle-down-open"), ("diverged or failed", "x-thin-open")):
        marker = {"symbol": symbol, "size": 8, "color": "#555"}
        figure.add_trace(go.Scatter(x=[None], y=[None], mode="markers", marker=marker, name=text))
    return figure


def _search_floor(trials: pd.DataFrame) -> float:
    """Where trials that have no place on the axis lie, in dB."""
    done = trials[(trials["state"] == "finished") & np.isfinite(trials["value"])]
    if done.empty:
        return 0.0
    weakest = float(done.groupby("method")["value"].max().min())
    lowest = float(done["value"].min())
    return max(lowest, weakest - _SEARCH_REACH) - 1


def _add_trials(
    figure: go.Figure, method: str, rows: pd.DataFrame, look: Look, floor: float
) -> None:
    """Adds the trials of one method as points and their best so far as a line."""
    done = rows[rows["state"] == "finished"]
    best = done["value"].replace([np.inf, -np.inf], np.nan).cummax().ffill()
    group = {"legendgroup": label(look.name), "name": label(look.name)}
    figure.add_trace(
        go.Scatter(
            x=done["number"],
            y=best,
            mode="lines",
            line={"color": look.colour, "dash": look.dash, "width": 2, "shape": "hv"},
            meta=[label(method, 40)],
            hovertemplate="best up to trial %{x}: %{y:.2f} dB<extra>%{meta[0]}</extra>",
            **group,
        )
    )
    shown = rows["value"].where(np.isfinite(rows["value"]), rows["estimate"].astype(float))
    figure.add_trace(
        go.Scatter(
            x=rows["number"],
            y=shown.where(np.isfinite(shown), floor).clip(lower=floor),
            mode="markers",
            marker={
                "symbol": [_trial_symbol(state, look) for state in rows["state"]],
                "size": 7,
                "color": look.faint(0.6),
                "line": {"color": look.colour, "width": 1.2},
            },
            text=[_trial_text(row) for row in rows.to_dict("records")],
            meta=[label(method, 40)],
            hovertemplate="%{text}<extra>%{meta[0]}</extra>",
            showlegend=False,
            **group,
        )
    )


def _trial_symbol(state: str, look: Look) -> str:
    """Marker of a trial: the method's own if it finished."""
    if state == "finished":
        return look.symbol
    return "triangle-down-open" if state == "pruned" else "x-thin-open"


def _trial_text(row: dict) -> str:
    """Hover text of a trial."""
    value = "no value" if not np.isfinite(row["value"]) else f"{row['value']:.2f} dB"
    reason = "" if pd.isna(row["reason"]) else f"<br>{label(row['reason'], 100)}"
    return f"trial {row['number']}, {label(row['state'])}: {value}{reason}"


def _per_image(curves: pd.DataFrame, column: str) -> list[tuple[str, pd.DataFrame]]:
    """Per method, finite values as an iteration x image table, averaged over replicates."""
    if curves.empty:
        return []
    tables = []
    for method, rows in curves.groupby("method"):
        values = rows[column].astype(float)
        if column == "psnr":
            values = values.clip(upper=CEILING)
        finite = rows.assign(**{column: values})[np.isfinite(values)]
        table = finite.pivot_table(index="iteration", columns="image", values=column)
        if not table.empty:
            tables.append((str(method), table))
    return tables


def _add_curve(
    figure: go.Figure,
    method: str,
    values: pd.DataFrame,
    centre: pd.Series,
    look: Look,
    hover: str,
) -> None:
    """Adds a method's centre line and its 10-90% band; `values` is iteration x image."""
    low, high = values.quantile(0.1, axis=1), values.quantile(0.9, axis=1)
    x = centre.index.to_numpy()
    figure.add_trace(
        go.Scatter(
            x=np.concatenate([x, x[::-1]]),
            y=np.concatenate([high.to_numpy(), low.to_numpy()[::-1]]),
            fill="toself",
            fillcolor=look.faint(0.1),
            line={"width": 0},
            mode="lines",
            legendgroup=label(look.name),
            name=label(look.name),
            showlegend=False,
            hoverinfo="skip",
        )
    )
    figure.add_trace(
        go.Scatter(
            x=x,
            y=centre.to_numpy(),
            mode="lines+markers",
            line={"color": look.colour, "dash": look.dash, "width": 2},
            marker={"symbol": look.symbol, "size": 6},
            legendgroup=label(look.name),
            name=label(look.name),
            meta=[label(method, 40)],
            hovertemplate=f"iteration %{{x}}: {hover}<extra>%{{meta[0]}}</extra>",
        )
    )


def _count(frame: pd.DataFrame) -> int:
    """Number of methods in a table."""
    return 0 if frame.empty else frame["method"].nunique()


def _decades(values: pd.DataFrame) -> float:
    """Powers of ten between the smallest and the largest of positive values."""
    if values.empty:
        return 0.0
    return float(np.log10(np.nanmax(values.to_numpy()) / np.nanmin(values.to_numpy())))


def _iterations(figure: go.Figure, curves: pd.DataFrame) -> go.Figure:
    """Puts ticks on whole iterations, about ten of them."""
    last = 0 if curves.empty else int(curves["iteration"].max())
    return figure.update_xaxes(tick0=0, dtick=max(1, math.ceil(last / 10)))


def blank(x: str, y: str, names: int) -> go.Figure:
    """An empty figure with named axes, and room below for a legend of so many names."""
    axis = {"gridcolor": "#e3e6ea", "zeroline": False, "linecolor": "#8a929b", "ticks": "outside"}
    return go.Figure(
        layout={
            "template": "none",
            "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#1c2733"},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": {"l": 56, "r": 12, "t": 36, "b": 48},
            "height": 400 + 16 * names,
            "hoverlabel": {"namelength": -1},
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#8a929b", "activecolor": "#1c2733"},
            "legend": {
                "orientation": "h",
                "yref": "container",
                "y": 0,
                "yanchor": "bottom",
                "x": 0,
            },
            "xaxis": axis | {"title": {"text": x, "font": {"size": 14}}, "automargin": True},
            "yaxis": axis | {"title": {"text": y, "font": {"size": 14}}, "automargin": True},
        }
    )


def switch(owners: Sequence[str], axes: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    """Buttons that show the traces of one unit of the x axis.

    Args:
        owners: the unit of each trace.
        axes: unit to properties of its axis.
    """
    buttons = []
    for unit, properties in axes.items():
        axis = {f"xaxis.{name.replace('_', '.')}": value for name, value in properties.items()}
        shown = {"visible": [own == unit for own in owners]}
        buttons.append(
            {"label": f"by {unit.replace('_', ' ')}", "method": "update", "args": [shown, axis]}
        )
    return {
        "type": "buttons",
        "direction": "right",
        "buttons": buttons,
        "showactive": True,
        "x": 0,
        "xanchor": "left",
        "y": 1.02,
        "yanchor": "bottom",
        "pad": {"t": 0, "b": 4},
        "font": {"size": 12},
    }
