"""The figure of which hyper-parameters matter, method by method."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from dashboards.figures import Looks, blank
from dashboards.palette import COLOURS, label
from dipa_bench.reports.importance import CHANCE
from dipa_bench.reports.text import short

_NAMED = 6
"""Hyper-parameters with a colour of their own; the others of a method share one dark grey piece."""
_OTHERS = "all others"


def importance_bars(table: pd.DataFrame, looks: Looks) -> go.Figure:
    """A bar per method, divided among its hyper-parameters by importance.

    Args:
        table: study, method, parameter, importance, chance and trials of one study
            (`dipa_bench.reports.importance.parameter_importance`).
        looks: a look per method, whose names stand at the bars.
    """
    ranked = (
        table.groupby("parameter")["importance"].sum().sort_values(ascending=False, kind="stable")
    )
    named = list(ranked.index[:_NAMED])
    methods = sorted(set(table["method"]), reverse=True)  # the axis counts from below
    figure = blank("share of the importance", "", len(named) + 2)
    for name, colour in zip(named, COLOURS, strict=False):
        _add_bars(figure, table[table["parameter"] == name], short(name, 40), colour, methods)
    rest = table[~table["parameter"].isin(named)]
    if len(rest):
        _add_bars(figure, rest, _OTHERS, "#8a929b", methods)
    chance = table.drop_duplicates("method").assign(parameter=CHANCE)
    chance["importance"] = chance["chance"]
    _add_bars(figure, chance, CHANCE, "#e3e6ea", methods)
    figure.update_xaxes(range=[0, 1.02], tickformat=".0%")
    figure.update_yaxes(
        showgrid=False,
        tickvals=list(range(len(methods))),
        ticktext=[label(looks[method].name) for method in methods],
    )
    return figure.update_layout(
        barmode="stack",
        height=170 + 24 * (len(named) + 2) + 30 * len(methods),
        hovermode="closest",
        legend_traceorder="normal",
    )


def _add_bars(
    figure: go.Figure, rows: pd.DataFrame, name: str, colour: str, methods: list[str]
) -> None:
    """Adds one piece of every method's bar; the hover text lists what it stands for."""
    pieces = {method: part for method, part in rows.groupby("method")}
    shown = [method for method in methods if method in pieces]
    listed = [
        "<br>".join(
            f"{label(row.parameter, 60)}: {row.importance:.0%}"
            for row in pieces[method].itertuples()
        )
        for method in shown
    ]
    trials = [int(pieces[method]["trials"].iloc[0]) for method in shown]
    figure.add_trace(
        go.Bar(
            orientation="h",
            x=[float(pieces[method]["importance"].sum()) for method in shown],
            y=[methods.index(method) for method in shown],
            name=label(name),
            marker={"color": colour, "line": {"color": "#fff", "width": 1}},
            text=[
                f"{text}<br>from {count} trials" for text, count in zip(listed, trials, strict=True)
            ],
            textposition="none",
            meta=[label(name)],
            hovertemplate="%{text}<extra></extra>",
        )
    )
