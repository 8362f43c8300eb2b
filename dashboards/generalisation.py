"""Figure of what winners keep at settings that they were not trained or tuned for."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from dashboards.figures import Looks, blank
from dashboards.palette import label


def psnr_by_setting(table: pd.DataFrame, looks: Looks) -> go.Figure:
    """Mean test PSNR [dB] of every method at every setting, with 95% intervals.

    Args:
        table: from `dipa_bench.reports.generalisation.generalisation`, one study.
        looks: a look per method.
    """
    methods = list(dict.fromkeys(table["method"]))
    figure = blank("setting", "PSNR [dB]", len(methods))
    for place, method in enumerate(methods):
        rows, look = table[table["method"] == method], looks[method]
        figure.add_trace(
            go.Scatter(
                x=[label(setting, 40) for setting in rows["setting"]],
                y=rows["psnr"],
                error_y={
                    "type": "data",
                    "array": rows["psnr_high"] - rows["psnr"],
                    "arrayminus": rows["psnr"] - rows["psnr_low"],
                    "color": look.faint(0.4),
                },
                mode="lines+markers",
                line={"color": look.colour, "dash": look.dash, "width": 1},
                marker={"symbol": look.symbol, "color": look.colour, "size": 9},
                name=label(look.name),
                meta=[label(method, 40)],
                hovertemplate="%{x}: %{y:.2f} dB<extra>%{meta[0]}</extra>",
                legendrank=place,
            )
        )
    settings = [label(setting, 40) for setting in dict.fromkeys(table["setting"])]
    return figure.update_xaxes(type="category", categoryorder="array", categoryarray=settings)
