"""Figure of how many images have come to the reference's quality after so much."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from dashboards.figures import Looks, blank, switch
from dashboards.palette import label
from dipa_bench.reports.profiles import shares

AXES = {
    "iterations": "iteration (0 = start)",
    "operator_calls": "applications of A or Aᵀ, one image",
    "denoiser_calls": "applications of the prior, one image",
    "seconds": "seconds, one image",
}


def reached(found: pd.DataFrame, looks: Looks) -> go.Figure:
    """Share of images [%] that have arrived, by iterations, calls or seconds.

    Args:
        found: rows of `dipa_bench.reports.profiles.arrivals`, of one study.
        looks: a look per method.
    """
    methods = list(dict.fromkeys(found["method"]))
    figure = blank(AXES["iterations"], "images that have arrived [%]", len(methods))
    for cost in AXES:
        profiles = shares(found, cost)
        end = max((profile.index.max() for profile in profiles.values()), default=0.0)
        for place, (method, profile) in enumerate(profiles.items()):
            look = looks[method]
            if profile.index[-1] < end:
                profile = pd.concat([profile, pd.Series({end: profile.iloc[-1]})])
            figure.add_trace(
                go.Scatter(
                    x=profile.index,
                    y=100 * profile,
                    mode="lines",
                    line={
                        "color": look.colour,
                        "dash": look.dash,
                        "width": 2,
                        "shape": "hv",
                    },
                    visible=cost == "iterations",
                    legendgroup=label(look.name),
                    name=label(look.name),
                    meta=[label(method, 40)],
                    hovertemplate="%{y:.0f}% after %{x:.3g}<extra>%{meta[0]}</extra>",
                    legendrank=place,
                )
            )
    figure.update_yaxes(range=[-2, 102])
    owners = [cost for cost in AXES for _ in methods]
    axes = {cost: {"title_text": title} for cost, title in AXES.items()}
    return figure.update_layout(margin_t=64, updatemenus=[switch(owners, axes)])
