"""Figures of what learned operators do near one gradient: singular values and eigenvalues."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go

from dashboards.figures import Looks, blank
from dashboards.palette import Look, label
from dipa_bench.tracking.results import Linearised

Found = Mapping[str, Linearised]

_DECADES = 6
"""Powers of ten below the largest singular value that are shown; float32 resolves no more."""
_REAL = 1e-4
"""Imaginary parts below this share of the largest magnitude count as rounding."""


def singular_values(found: Found, looks: Looks) -> go.Figure:
    """Singular values of each operator's Jacobian, largest first, on a logarithmic axis.

    Args:
        found: by method.
        looks: a look per method.
    """
    figure = blank("number, largest first", "singular value", len(found))
    tops, bottoms = [], []
    for method, item in found.items():
        values = np.asarray(item.singular, dtype=float)
        values = np.where(values > 0, values, np.nan)
        _add_line(figure, method, values, looks[method], "singular value %{x}: %{y:.3g}")
        if np.isfinite(values).any():
            tops.append(np.log10(np.nanmax(values)))
            bottoms.append(np.log10(np.nanmin(values)))
    if tops:
        low = max(min(bottoms), max(tops) - _DECADES)
        margin = 0.05 * (max(tops) - low) + 0.02
        decades = max(tops) - low
        figure.update_yaxes(range=[low - margin, max(tops) + margin])
        figure.update_yaxes(dtick=1 if decades > 3 else "D2", exponentformat="power")
    return figure.update_yaxes(type="log")


def symmetric_spectrum(found: Found, looks: Looks) -> go.Figure:
    """Eigenvalues of the symmetric part of each operator's Jacobian, largest first.

    Args:
        found: by method.
        looks: a look per method.
    """
    figure = blank("number, largest first", "eigenvalue of (J + Jᵀ) / 2", len(found))
    for method, item in found.items():
        _add_line(figure, method, item.symmetric, looks[method], "eigenvalue %{x}: %{y:.3g}")
    return figure.update_yaxes(zeroline=True, zerolinecolor="#8a929b")


def product_spectrum(found: Found, looks: Looks) -> go.Figure:
    """Eigenvalues of J A^T A in the complex plane, or by size if all of them are real.

    Args:
        found: by method.
        looks: a look per method.
    """
    if all(is_real(item.product) for item in found.values()):
        figure = blank("number, largest first", "eigenvalue of J AᵀA", len(found))
        for method, item in found.items():
            values = np.sort(item.product.real)[::-1]
            _add_line(figure, method, values, looks[method], "eigenvalue %{x}: %{y:.3g}")
        return figure.update_yaxes(zeroline=True, zerolinecolor="#8a929b")
    figure = blank("real part of an eigenvalue of J AᵀA", "imaginary part", len(found))
    for method, item in found.items():
        look = looks[method]
        figure.add_trace(
            go.Scatter(
                x=item.product.real,
                y=item.product.imag,
                mode="markers",
                marker={"symbol": look.symbol, "size": 5, "color": look.faint(0.6)},
                name=label(look.name),
                meta=[label(method, 40)],
                hovertemplate="%{x:.3g} + %{y:.3g} i<extra>%{meta[0]}</extra>",
            )
        )
    zero = {"zeroline": True, "zerolinecolor": "#8a929b"}
    return figure.update_xaxes(**zero).update_yaxes(**zero)


def is_real(values: np.ndarray) -> bool:
    """Whether eigenvalues are real but for rounding."""
    return bool(np.abs(values.imag).max(initial=0) <= _REAL * np.abs(values).max(initial=0))


def _add_line(figure: go.Figure, method: str, values: np.ndarray, look: Look, hover: str) -> None:
    """Adds values over their number, 1, 2, ..."""
    figure.add_trace(
        go.Scatter(
            x=np.arange(1, len(values) + 1),
            y=np.asarray(values, dtype=float),
            mode="lines",
            line={"color": look.colour, "dash": look.dash, "width": 2},
            name=label(look.name),
            meta=[label(method, 40)],
            hovertemplate=f"{hover}<extra>%{{meta[0]}}</extra>",
        )
    )
