"""Quality against cost, and importance of hyper-parameters, on tables made by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from dashboards import architectures
from dashboards.importance import importance_bars
from dashboards.page import _importance_help, _page, _pixels
from dashboards.palette import looks
from dipa_bench.tracking.results import TaskResults

NAMES = ["identity", "scalar", "net", "dense"]
LOOKS = looks(NAMES)


def board(**changes: list) -> pd.DataFrame:
    """Leaderboard rows of four methods."""
    return pd.DataFrame(
        {
            "method": NAMES,
            "learned": [False, True, True, True],
            "psnr": [20.0, 21.0, 24.0, 23.0],
            "psnr_low": [19.5, 20.5, np.nan, 22.0],
            "psnr_high": [20.5, 21.25, np.nan, 24.5],
            "parameters": [0, 1, 500, 65536],
            "seconds_per_image": [0.01, 0.011, 0.3, 0.02],
        }
        | changes
    )


def trials() -> pd.DataFrame:
    """Trials of three methods: two of them without a place in the figures."""
    rows = [
        ("net", 0, "finished", 22.0, 300),
        ("net", 1, "finished", 21.5, 400),
        ("net", 2, "finished", 23.5, 500),
        ("net", 3, "pruned", 30.0, 100),
        ("net", 4, "finished", np.nan, 100),
        ("net", 5, "finished", 31.0, np.nan),
        ("scalar", 0, "finished", 20.5, 1),
        ("identity", 0, "finished", 33.0, 0),
    ]
    table = pd.DataFrame(rows, columns=["method", "number", "state", "value", "parameters"])
    return table.assign(seconds_per_image=table["parameters"] / 1000)


def drawn(figure: go.Figure, **wanted: object) -> list[go.Scatter]:
    """The traces with these properties."""
    return [t for t in figure.data if all(getattr(t, k) == v for k, v in wanted.items())]


def test_every_row_stands_at_its_cost_with_its_interval() -> None:
    figure = architectures.quality_by_cost(board(), trials(), LOOKS, "parameters")
    marks = {
        t.name: t for t in figure.data if t.mode.startswith("markers") and t.showlegend is None
    }
    assert set(marks) == set(NAMES)
    assert [marks[name].y[0] for name in NAMES] == [20.0, 21.0, 24.0, 23.0]
    assert [marks[name].x[0] for name in NAMES[1:]] == [1, 500, 65536]
    assert marks["dense"].error_y.array == (1.5,)
    assert marks["dense"].error_y.arrayminus == (1.0,)
    assert marks["net"].error_y.array is None, "no interval is known"
    assert marks["identity"].marker.symbol == f"{LOOKS['identity'].symbol}-open"
    assert marks["net"].marker.symbol == LOOKS["net"].symbol
    assert [marks[name].customdata[0] for name in NAMES] == [0, 1, 500, 65536]
    texts = {t.text[0] for t in marks.values() if t.text}
    assert texts == set(NAMES), "four marks have room for their names"


def test_no_parameters_have_a_place_of_their_own() -> None:
    """Left of everything else on the logarithmic axis, and the tick there says 0."""
    figure = architectures.quality_by_cost(board(), trials(), LOOKS, "parameters")
    (identity,) = drawn(figure, name="identity")
    place = identity.x[0]
    assert 0 < place < 1
    ticks = dict(zip(figure.layout.xaxis.tickvals, figure.layout.xaxis.ticktext, strict=True))
    assert ticks[place] == "0"
    assert {ticks[value] for value in (1, 10, 1000, 10000)} == {"1", "10", "1k", "10k"}
    low, high = figure.layout.xaxis.range
    assert low < np.log10(place) and high > np.log10(65536)
    without = board().iloc[1:]
    figure = architectures.quality_by_cost(without, trials(), LOOKS, "parameters")
    assert "0" not in figure.layout.xaxis.ticktext


def test_finished_trials_of_learned_methods_are_dots() -> None:
    """With values and costs; of others only what is on the board."""
    figure = architectures.quality_by_cost(board(), trials(), LOOKS, "parameters")
    dots = {t.name: t for t in drawn(figure, showlegend=False)}
    assert set(dots) == {"net", "scalar"}
    found = dots["net"]
    assert list(zip(found.x, found.y, strict=True)) == [(300, 22.0), (400, 21.5), (500, 23.5)]
    assert list(found.text) == ["trial 0", "trial 1", "trial 2"]
    assert list(drawn(figure, name="net")[0].customdata) == [300, 400, 500]


def test_the_front_is_the_best_for_at_most_so_many() -> None:
    """A step line to the right end of the axis."""
    figure = architectures.quality_by_cost(board(), trials(), LOOKS, "parameters")
    (front,) = drawn(figure, name="best trial so far")
    assert list(front.x[:-1]) == [1, 300, 500]
    assert list(front.y) == [20.5, 22.0, 23.5, 23.5]
    assert front.x[-1] == pytest.approx(10 ** figure.layout.xaxis.range[1])
    assert front.line.shape == "hv"


@pytest.mark.parametrize(
    ("costs", "values", "expected"),
    [
        ([3, 1, 2], [5.0, 1.0, 4.0], ([1, 2, 3], [1.0, 4.0, 5.0])),
        ([1, 1, 2, 3], [1.0, 2.0, 2.0, 1.0], ([1], [2.0])),
        ([], [], ([], [])),
    ],
)
def test_pareto(costs: list, values: list, expected: tuple) -> None:
    """Of equal costs the better; equal values at a higher cost add nothing."""
    found = architectures.pareto(pd.Series(costs, dtype=float), pd.Series(values, dtype=float))
    assert found == expected


def test_the_dense_line_stands_at_its_numbers() -> None:
    figure = architectures.quality_by_cost(board(), trials(), LOOKS, "parameters", dense=65536)
    (line,) = [t for t in figure.data if t.name.startswith("dense P")]
    assert set(line.x) == {65536}
    assert list(line.y) == list(figure.layout.yaxis.range)
    figure = architectures.quality_by_cost(board(), trials(), LOOKS, "parameters")
    assert not [t for t in figure.data if t.name.startswith("dense P")]


def test_seconds_have_an_axis_of_their_own() -> None:
    figure = architectures.quality_by_cost(board(), trials(), LOOKS, "seconds_per_image")
    (mark,) = drawn(figure, name="dense")
    assert mark.x[0] == 0.02
    assert "seconds" in figure.layout.xaxis.title.text and figure.layout.xaxis.type == "log"
    dots = drawn(figure, showlegend=False)
    assert list(next(t for t in dots if t.name == "net").x) == [0.3, 0.4, 0.5]


def test_all_that_is_shown_is_inside() -> None:
    """Rows with their intervals and each method's best trial; a failed trial squeezes nothing."""
    low_trial = pd.DataFrame([("net", 9, "finished", -50.0, 7, 0.1)], columns=trials().columns)
    made = pd.concat([trials(), low_trial])
    figure = architectures.quality_by_cost(board(), made, LOOKS, "parameters")
    low, high = figure.layout.yaxis.range
    assert 18 < low < 19.5 and 24.5 < high < 26


def test_rows_and_trials_without_costs_draw_nothing() -> None:
    unknown = board(parameters=[np.nan] * 4, psnr=[np.nan] * 4)
    for rows in (unknown, board().iloc[:0], board().iloc[:1]):
        figure = architectures.quality_by_cost(rows, trials().iloc[:0], LOOKS, "parameters")
        assert len(figure.data) == 0
        assert not architectures.comparable(rows, trials().iloc[:0])


def test_what_is_comparable() -> None:
    """Two learned rows, or two trials of learned methods, with different numbers."""
    rows, none = board(), trials().iloc[:0]
    assert architectures.comparable(rows, none)
    assert not architectures.comparable(rows.iloc[:2], none), "one learned row"
    assert not architectures.comparable(board(parameters=[0, 9, 9, 9]), none)
    assert architectures.comparable(rows.iloc[[2]], trials())
    same = trials().assign(parameters=500)
    assert not architectures.comparable(rows.iloc[[2]], same)
    assert not architectures.comparable(rows.iloc[[0]], trials()), "nothing was learned"
    assert not architectures.comparable(rows.iloc[:0], pd.DataFrame())


def test_names_cover_nothing() -> None:
    """Of many methods in one place, most have their name in the legend only."""
    names = [f"a-rather-long-name-{k}" for k in range(12)]
    rows = pd.DataFrame(
        {"method": names, "learned": True, "psnr": 20 + np.arange(12) / 100, "parameters": 100.0}
    ).assign(psnr_low=19.0, psnr_high=25.0)
    rows.loc[0, "parameters"] = 1e5
    figure = architectures.quality_by_cost(rows, trials().iloc[:0], looks(names), "parameters")
    named = [t for t in figure.data if t.text]
    assert 1 <= len(named) < 6
    assert len(figure.data) == 12


def table() -> pd.DataFrame:
    """Importance of eight parameters of one method, and of one of another."""
    many = [("a", f"p{k}", 0.1, 0.2, 12) for k in range(8)]
    rows = [*many, ("b", "p0", 0.75, 0.25, 30)]
    columns = ["method", "parameter", "importance", "chance", "trials"]
    return pd.DataFrame(rows, columns=columns).assign(study="s")


def test_bars_are_divided_by_importance() -> None:
    figure = importance_bars(table(), looks(["a", "b"]))
    assert list(figure.layout.yaxis.ticktext) == ["b", "a"]
    traces = {t.name: t for t in figure.data}
    assert len(traces) == 8
    assert list(traces["p0"].y) == [0, 1] and list(traces["p0"].x) == [0.75, 0.1]
    assert list(traces["all others"].y) == [1]
    assert traces["all others"].x[0] == pytest.approx(0.2)
    assert list(traces["(chance)"].x) == [0.25, 0.2]
    assert "p0: 75%" in traces["p0"].text[0] and "from 30 trials" in traces["p0"].text[0]
    assert figure.layout.barmode == "stack"
    for row, total in ((0, 1.0), (1, 1.0)):
        ends = [x for t in figure.data for x, y in zip(t.x, t.y, strict=True) if y == row]
        assert sum(ends) == pytest.approx(total)


def test_the_sentence_counts_trials_and_names_who_has_too_few() -> None:
    text = _importance_help(table(), ["a", "b", "c"])
    assert "from 12 to 30 finished trials" in text
    assert "No bar for c:" in text
    one = _importance_help(table()[:8], ["a"])
    assert "from 12 finished trials" in one and "No bar" not in one


def test_the_page_shows_importance_only_from_enough_trials(
    make_results: Callable[..., TaskResults],
) -> None:
    heading = "<h3>Importance of hyper-parameters</h3>"
    assert heading not in _page(make_results(trials=6))
    assert heading in _page(make_results(trials=14))


@pytest.mark.exhaustive
def test_a_study_without_different_sizes_has_no_such_figures(
    make_results: Callable[..., TaskResults],
) -> None:
    """As where only untrained methods ran."""
    full = make_results()
    methods = full.methods.assign(learned=False)
    assert "PSNR against parameters" not in _page(
        TaskResults("sr", methods, full.images, full.curves, full.trials, full.pictures)
    )


def test_the_size_of_images_is_that_of_their_originals() -> None:
    held = {"measurement/a": np.zeros((2, 2)), "original/a": np.zeros((4, 6))}
    empty = [pd.DataFrame()] * 4
    results = TaskResults("sr", *empty, {("s", "m"): held, ("t", "m"): {}})
    assert _pixels(results, "s") == 24
    assert _pixels(results, "t") is None and _pixels(results, "u") is None
