"""Two rows image by image, as one HTML file that works offline."""

from __future__ import annotations

import html
import math
from pathlib import Path

import plotly.graph_objects as go

from dipa_bench.reports.across import Pair
from dipa_bench.reports.rendering import render_pair
from dipa_bench.reports.text import short


def write_pair(pair: Pair, path: Path) -> Path:
    """Writes a page with a plot of the differences and all that `dipa-bench compare` prints.

    Args:
        pair: the two rows.
        path: the file to write; missing folders are made.

    Returns:
        `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    title = html.escape(f"{short(pair.first)} against {short(pair.second)}")
    plot = paired_plot(pair).to_html(full_html=False, include_plotlyjs=True)
    text = html.escape(render_pair(pair))
    page = f'<!doctype html><meta charset="utf-8"><title>{title}</title><h1>{title}</h1>'
    path.write_text(f"{page}\n{plot}\n<pre>{text}</pre>\n", encoding="utf-8")
    return path


def paired_plot(pair: Pair) -> go.Figure:
    """A point for each test image: its PSNR in the second row, and what the first adds."""
    images = pair.images
    figure = go.Figure(
        go.Scatter(
            x=images["second"],
            y=images["difference"],
            mode="markers",
            text=[html.escape(short(name)) for name in images["image"]],
            hovertemplate="%{text}<br>%{x:.2f} dB, %{y:+.2f} dB<extra></extra>",
        )
    )
    low, high = pair.found.interval()
    figure.add_hline(0, line_color="grey", line_width=1)
    figure.add_hline(pair.found.mean, line_dash="dash")
    if math.isfinite(low):
        figure.add_hrect(low, high, opacity=0.15, line_width=0, fillcolor="steelblue")
    figure.update_layout(
        xaxis_title=f"PSNR of {html.escape(short(pair.second))} [dB]",
        yaxis_title=f"{html.escape(short(pair.first))} minus it [dB]",
        template="plotly_white",
        height=480,
    )
    return figure
