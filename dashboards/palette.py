"""How a method looks and how its name is written, the same in every figure."""

from __future__ import annotations

import html
from collections.abc import Iterable
from dataclasses import dataclass

from dipa_bench.reports.text import short

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, without yellow, which is too faint on white."""

DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "star", "hexagon")


_NAME = 24
"""Most characters of a method's name in a legend or on an axis."""


@dataclass(frozen=True)
class Look:
    """How a method is drawn.

    Attributes:
        name: its name, cut short but still unlike any other's.
        colour: ``#rrggbb``.
        dash: of its lines, as Plotly names it.
        symbol: of its markers, as Plotly names it.
    """

    name: str

    colour: str
    dash: str
    symbol: str

    def faint(self, opacity: float) -> str:
        """The colour with an opacity in [0, 1], as CSS."""
        r, g, b = (int(self.colour[i : i + 2], 16) for i in (1, 3, 5))
        return f"rgba({r},{g},{b},{opacity})"


def looks(methods: Iterable[str]) -> dict[str, Look]:
    """A look per method, by the order of the sorted names; beyond seven, dash and symbol differ."""
    count = len(COLOURS)
    found: dict[str, Look] = {}
    for i, method in enumerate(sorted(set(methods))):
        name = short(method, _NAME)
        if any(look.name == name for look in found.values()):
            name = f"{short(method, _NAME - 5)} ({i + 1})"
        dash = DASHES[i // count % len(DASHES)]
        symbol = SYMBOLS[(i + i // count) % len(SYMBOLS)]
        found[method] = Look(name, COLOURS[i % count], dash, symbol)
    return found


def label(text: object, length: int = 100) -> str:
    """Text for a Plotly figure, which reads tags and entities in names and hover texts."""
    return html.escape(short(text, length), quote=False)
