"""The figure of arrivals: a line for each row and cost, steps at what `shares` has."""

from __future__ import annotations

import math

import pandas as pd

from dashboards.palette import looks
from dashboards.profiles import AXES, reached

ROWS = [("identity", 2.0), ("identity", 4.0), ("fast", 0.0), ("fast", math.inf)]


def test_lines_are_steps_to_the_share_that_arrives() -> None:
    found = pd.DataFrame(
        [{"method": name, **dict.fromkeys(AXES, value)} for name, value in ROWS]
    ).assign(seconds=lambda rows: rows["iterations"] / 10)
    figure = reached(found, looks(["identity", "fast"]))
    assert len(figure.data) == 2 * len(AXES)
    shown = [trace for trace in figure.data if trace.visible is True]
    lines = {trace.name: (list(trace.x), list(trace.y)) for trace in shown}
    assert lines == {"identity": ([0, 2, 4], [0, 50, 100]), "fast": ([0, 4], [50, 50])}
    assert {trace.line.shape for trace in figure.data} == {"hv"}
    buttons = figure.layout.updatemenus[0].buttons
    assert [button.label for button in buttons] == [
        f"by {name}" for name in ("iterations", "operator calls", "denoiser calls", "seconds")
    ]
    for place, (cost, button) in enumerate(zip(AXES, buttons, strict=True)):
        wanted = [place * 2 <= number < place * 2 + 2 for number in range(len(figure.data))]
        assert list(button.args[0]["visible"]) == wanted
        assert button.args[1]["xaxis.title.text"] == AXES[cost]
    assert list(figure.data[-2].x) == [0, 0.2, 0.4]
