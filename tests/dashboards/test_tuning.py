"""The best trial so far against the budget spent, as a figure and on the page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dashboards.page import write_dashboard
from dashboards.palette import looks
from dashboards.tuning import best_against_budget, steps
from dipa_bench.reports.tuning import UNITS, curves
from dipa_bench.tracking.results import TaskResults

TITLE = "Best trial against budget spent"


def repeated(results: TaskResults, replicates: int = 3) -> TaskResults:
    """Results whose only study was searched again, each time 0.1 dB better and slower."""
    study = results.methods["study"].iloc[0]
    methods, trials = [results.methods], [results.trials]
    for k in range(1, replicates):
        name = {"study": f"{study}-replicate{k}"}
        methods.append(results.methods.assign(**name, replicate=k))
        moved = {"value": results.trials["value"] + 0.1 * k, "seconds": 30.0 + k}
        trials.append(results.trials.assign(**name, **moved))
    joined = [pd.concat(tables, ignore_index=True) for tables in (methods, trials)]
    return replace(results, methods=joined[0], trials=joined[1])


def figure_of(results: TaskResults):
    lines = {unit: curves(results, unit) for unit in UNITS}
    return lines, best_against_budget(lines, looks(results.methods["method"]))


def shown(figure, place: int) -> list:
    """The traces that a button shows."""
    visible = figure.layout.updatemenus[0].buttons[place].args[0]["visible"]
    return [trace for trace, seen in zip(figure.data, visible, strict=True) if seen]


def test_every_method_has_its_mean_and_its_band(make_results) -> None:
    lines, figure = figure_of(repeated(make_results()))
    for place, unit in enumerate(UNITS):
        traces = shown(figure, place)
        means = {trace.meta[0]: trace for trace in traces if trace.meta}
        assert set(means) == set(lines[unit]["method"])
        assert len(traces) == 3 * len(means), "lower end, upper end, mean"
        for method, trace in means.items():
            line = lines[unit][lines[unit]["method"] == method]
            points = dict(zip(trace.x, trace.y, strict=True))
            for budget, mean in zip(line["budget"], line["mean"], strict=True):
                known = max(x for x in points if x <= budget)
                assert points[known] == pytest.approx(mean)
            assert trace.x[-1] == line["budget"].iloc[-1]
        low, high, mean = traces[:3]
        assert np.all(low.y < mean.y) and np.all(mean.y < high.y)
        assert high.fill == "tonexty"
        assert {trace.line.shape for trace in traces} == {"hv"}, "steps, not slopes"


def test_one_click_changes_the_unit(make_results) -> None:
    _, figure = figure_of(make_results())
    assert [trace.visible for trace in figure.data] == [True] * 6 + [False] * 6
    assert figure.layout.xaxis.title.text == "trials"
    assert figure.layout.yaxis.title.text == "best validation PSNR [dB]"
    by_trials, by_seconds = figure.layout.updatemenus[0].buttons
    seen = by_trials.args[0]["visible"]
    assert list(by_seconds.args[0]["visible"]) == [not one for one in seen]
    assert by_trials.args[1]["xaxis.type"] == "linear"
    assert by_seconds.args[1]["xaxis.type"] == "log"
    assert by_seconds.args[1]["xaxis.title.text"].endswith("[s]")


def test_one_search_has_no_band(make_results) -> None:
    _, figure = figure_of(make_results())
    assert len(figure.data) == 2 * 6
    assert all(trace.meta for trace in figure.data)


def test_many_trials_stay_small() -> None:
    budget = np.arange(1.0, 5001)
    rising = pd.DataFrame({"budget": budget, "mean": np.log(budget), "low": np.nan, "high": np.nan})
    few = steps(rising)
    assert len(few) == 200
    assert few["budget"].iloc[[0, -1]].tolist() == [1, 5000]
    stairs = steps(rising.assign(mean=np.floor(budget / 1000)))
    assert stairs["budget"].tolist() == [1, 1000, 2000, 3000, 4000, 5000], "nothing is lost"


def test_the_axis_keeps_differences_apart() -> None:
    """A hopeless method and bad first trials do not flatten the others."""
    rows = [("a", 1, 5.0), ("a", 2, 23.0), ("b", 1, 22.0), ("b", 2, 23.3), ("bad", 1, 7.0)]
    line = pd.DataFrame(rows, columns=["method", "budget", "mean"]).assign(low=np.nan, high=np.nan)
    figure = best_against_budget(dict.fromkeys(UNITS, line), looks(["a", "b", "bad"]))
    low, high = figure.layout.yaxis.range
    assert 20 < low < 22 and 23.3 < high < 26


def test_repeats_are_lines_of_one_section(make_results, tmp_path: Path) -> None:
    results = repeated(make_results())
    text = write_dashboard(results, tmp_path / "a.html").read_text("utf-8")
    assert text.count(f"<h3>{TITLE}</h3>") == 1
    assert "mean over 3 independent searches with its 95% t interval" in text
    assert re.findall(r"<h2>(.*?)</h2>", text) == ["Study study"]
    alone = replace(results, methods=results.methods[results.methods["replicate"] > 0])
    text = write_dashboard(alone, tmp_path / "b.html").read_text("utf-8")
    assert re.findall(r"<h2>(.*?)</h2>", text) == [
        "Study study-replicate1",
        "Study study-replicate2",
    ]


@pytest.mark.exhaustive
def test_the_page_needs_no_network_and_no_trials(make_results, tmp_path: Path) -> None:
    results = make_results()
    text = write_dashboard(results, tmp_path / "a.html").read_text("utf-8")
    assert TITLE in text and "of one search" in text
    assert not re.search(r"<(script|link)[^>]*(src|href)=", text)
    untried = replace(results, trials=results.trials.iloc[:0])
    assert TITLE not in write_dashboard(untried, tmp_path / "b.html").read_text("utf-8")
    hopeless = replace(results, trials=results.trials.assign(state="diverged"))
    assert TITLE not in write_dashboard(hopeless, tmp_path / "c.html").read_text("utf-8")


@pytest.mark.exhaustive
def test_hostile_names_stay_text(make_results, tmp_path: Path) -> None:
    name = "<script>alert(1)</script>%{x}"
    results = repeated(make_results(rename=lambda text: text and f"{name}{text}"))
    text = write_dashboard(results, tmp_path / "a.html").read_text("utf-8")
    assert name not in text
    _, figure = figure_of(results)
    read = json.dumps([[trace.name, trace.meta] for trace in figure.data])
    assert "alert(1)" in read and "<" not in read
