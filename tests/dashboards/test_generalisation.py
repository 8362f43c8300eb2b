"""What winners keep at other settings, as a figure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dashboards.generalisation import psnr_by_setting
from dashboards.page import write_dashboard
from dashboards.palette import looks
from dipa_bench.reports.generalisation import by_study
from dipa_bench.tracking.results import TaskResults

SETTINGS = {"matched": 0.0, "noise <b>0.1</b>": -2.0, "factor 2": 1.0}


def shifted(results: TaskResults) -> TaskResults:
    """Results whose winners were tested at three settings, a known number of dB apart."""
    parts = [
        results.images.assign(setting=name, psnr=results.images["psnr"] + gain)
        for name, gain in SETTINGS.items()
    ]
    return replace(results, shifts=pd.concat(parts, ignore_index=True))


def test_every_method_has_its_means_in_the_order_of_the_settings(make_results) -> None:
    results = shifted(make_results())
    (table,) = by_study(results)
    figure = psnr_by_setting(table, looks(table["method"]))
    order = ["matched", "noise &lt;b&gt;0.1&lt;/b&gt;", "factor 2"]
    assert list(figure.layout.xaxis.categoryarray) == order
    means = results.images.groupby(["method", "image"])["psnr"].mean().groupby("method").mean()
    assert {trace.meta[0] for trace in figure.data} == set(means.index)
    for trace in figure.data:
        points = dict(zip(trace.x, trace.y, strict=True))
        expected = [means[trace.meta[0]] + gain for gain in SETTINGS.values()]
        assert [points[name] for name in order] == pytest.approx(expected)
        assert np.all(np.asarray(trace.error_y.array) > 0)


def test_the_page_has_it_where_settings_were_tested(make_results, tmp_path: Path) -> None:
    title = "PSNR at other settings"
    plain, tested = make_results(), shifted(make_results())
    assert title not in write_dashboard(plain, tmp_path / "a.html").read_text("utf-8")
    text = write_dashboard(tested, tmp_path / "b.html").read_text("utf-8")
    assert title in text
    assert "<b>0.1</b>" not in text
