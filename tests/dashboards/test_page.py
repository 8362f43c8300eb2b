"""The dashboard as a browser's parser reads it."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dashboards import figures, pictures
from dashboards.page import write_dashboard
from dashboards.palette import looks
from dipa_bench.reports.conclusions import verdict
from dipa_bench.reports.leaderboard import leaderboard
from dipa_bench.tracking.results import TaskResults

ATTACK = '<script>alert(1)</script>"\' onload="alert(2)" </script><b>{{ 7 * 7 }}</b>%{x}&lt;i&gt;'
LINKS = {"src", "href", "action", "data", "poster", "srcset"}


def attack(name: str) -> str:
    """A hostile name; the reference row keeps its own, so that it is found."""
    return name if name == "identity" else f"{ATTACK}{name}"


Make = Callable[..., TaskResults]


class Page(HTMLParser):
    """Elements in order with their attributes, scripts, and the text outside of them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self._inside = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        """The text that a reader sees, with single spaces."""
        return " ".join(" ".join(self.texts).split())


def written(results: TaskResults, folder: Path) -> Page:
    """The page of some results."""
    path = folder / "new" / "dashboard.html"
    assert write_dashboard(results, path) == path
    return Page(path.read_text(encoding="utf-8"))


def drawings(page: Page) -> list[tuple[list[dict], dict]]:
    """Traces and layout of every figure, from the page's scripts."""
    found, decoder = [], json.JSONDecoder()
    for script in page.scripts:
        call = re.search(r"Plotly\.newPlot\(\s*\"figure-[\d-]+\",\s*", script)
        if call:
            data, end = decoder.raw_decode(script, call.end())
            start = script.index("{", end)
            found.append((data, decoder.raw_decode(script, start)[0]))
    return found


def traces(page: Page) -> list[list[dict]]:
    """The traces of every figure."""
    return [data for data, _ in drawings(page)]


def layouts(page: Page) -> list[dict]:
    """The layout of every figure."""
    return [layout for _, layout in drawings(page)]


@pytest.fixture(scope="module")
def whole(make_results: Make, tmp_path_factory) -> tuple[TaskResults, Page]:
    """Results of one study, and their page."""
    results = make_results()
    return results, written(results, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def two(make_results: Make, tmp_path_factory) -> Page:
    """The page of two studies."""
    return written(make_results(studies=("one", "two")), tmp_path_factory.mktemp("two"))


def test_the_page_holds_every_part(whole: tuple[TaskResults, Page]) -> None:
    results, page = whole
    board = leaderboard(results)
    assert verdict(board, results) in page.text
    for row in board[board["state"] == "finished"].to_dict("records"):
        assert f"{row['psnr']:.2f} [{row['psnr_low']:.2f}, {row['psnr_high']:.2f}]" in page.text
    assert "Training: learned from nothing: " in page.text
    assert "broken" not in page.text.partition("Training: ")[2].partition("Brackets hold")[0]
    assert "broken (diverged): all trials left the finite numbers" in page.text
    for heading in (
        *("PSNR per iteration", "Residual", "Distribution", "Search history", "budget spent"),
        *("PSNR against parameters", "PSNR against time"),
        *("Singular values", "Symmetric part", "Eigenvalues of J"),
    ):
        assert heading in page.text
    alts = [attrs["alt"] for tag, attrs in page.elements if tag == "img"]
    for method in ("identity", "ldipa"):
        assert f"reconstruction of image-1 by {method}" in alts
    assert "original of image-0" in alts and "measurement of image-0" in alts
    assert "the learned matrix P of ldipa" in alts
    assert "the Jacobian J of network" in alts
    assert "the Jacobian J of ldipa" not in alts
    assert "at validation image validation-0, iteration 10" in page.text


def test_every_finished_method_has_a_trace_in_every_figure(
    whole: tuple[TaskResults, Page],
) -> None:
    results, page = whole
    drawn = traces(page)
    assert len(drawn) == 11
    finished = set(results.methods.query("state == 'finished'")["method"])
    for figure in drawn[:8]:
        assert {trace["name"] for trace in figure} >= finished
    places = [t["x"] for t in drawn[6] if t["name"].startswith("dense P")]
    assert places == [[64**2, 64**2]], "8 x 8 pixels"
    for figure in drawn[8:]:
        assert {trace["name"] for trace in figure} == {"greedy", "ldipa", "network"}


def test_the_page_is_self_contained(two: Page) -> None:
    for tag, attributes in two.elements:
        assert tag not in {"link", "iframe", "object", "embed", "base"}
        for name in LINKS & set(attributes):
            assert re.match(r"data:image/png;base64,|#", attributes[name] or ""), (tag, name)
    assert sum(len(script) > 1_000_000 for script in two.scripts) == 1, "plotly.js exactly once"
    identifiers = [attrs["id"] for _, attrs in two.elements if "id" in attrs]
    assert len(identifiers) == len(set(identifiers))


def test_hostile_names_stay_text(make_results: Make, tmp_path: Path) -> None:
    harmless, hostile = (
        written(make_results(trials=14, rename=rename), tmp_path) for rename in (str, attack)
    )
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in harmless.elements]
    for (_, left), (_, right) in zip(hostile.elements, harmless.elements, strict=True):
        assert list(left) == list(right)
    assert len(hostile.scripts) == len(harmless.scripts)
    assert not [script for script in hostile.scripts if "<script>alert(1)" in script]
    assert "<script>alert(1)</script>\"' onload" in hostile.text
    assert "{{ 7 * 7 }}" in hostile.text and "49" not in hostile.text.split("{{")[1][:20]
    names = [trace["name"] for figure in traces(hostile) for trace in figure]
    assert not [name for name in names if "<" in name or ">" in name], "Plotly reads tags in names"
    hovers = json.dumps(
        [t.get(k) for f in traces(hostile) for t in f for k in ("meta", "customdata")]
    )
    assert "alert(1)" in hovers and "<" not in hovers
    texts = [text for figure in traces(hostile) for t in figure for text in t.get("text") or []]
    assert any("alert(1)" in text and "from 9 trials" in text for text in texts), "importance"
    axes = json.dumps([layout["yaxis"].get("ticktext") for layout in layouts(hostile)])
    assert "script" in axes and "<" not in axes
    assert texts and {tag for text in texts for tag in re.findall("<[^>]*>", text)} <= {"<br>"}


@pytest.mark.exhaustive
def test_long_and_odd_names_are_shown(make_results: Make, tmp_path: Path) -> None:
    odd = written(make_results(rename=lambda name: "x" * 5000 + f"\x00\u202e{name}"), tmp_path)
    assert "x" * 50 in odd.text
    assert not re.search(r"[\x00\u202e]|x{700}", odd.text)
    lines = [t["name"] for t in traces(odd)[0] if t.get("mode") == "lines+markers"]
    assert len(set(lines)) == 6, "names that are cut short stay apart"


def test_results_without_anything_make_a_page(tmp_path: Path) -> None:
    page = written(TaskResults("sr", *[pd.DataFrame()] * 4), tmp_path)
    assert "no results for this task yet" in page.text


def test_methods_without_tests_or_trials_make_a_page(make_results: Make, tmp_path: Path) -> None:
    full = make_results()
    methods = full.methods.assign(state="running", reason=None)
    page = written(TaskResults("sr", methods, *[pd.DataFrame()] * 3), tmp_path)
    assert "ldipa (running)" in page.text and "no method has finished" in page.text


def test_broken_numbers_make_a_page(make_results: Make, tmp_path: Path) -> None:
    full = make_results()
    images, curves = full.images.copy(), full.curves.copy()
    images.loc[0, "psnr"], images.loc[len(images) - 1, "psnr"] = np.nan, np.inf
    curves.loc[::5, "psnr"] = -np.inf
    curves.loc[::7, "residual"] = 0.0
    trials = full.trials.assign(value=np.nan, state="diverged")
    made = TaskResults("sr", full.methods, images, curves, trials, full.pictures, full.operators)
    assert "no finite PSNR on 1 of 6 test images" in written(made, tmp_path).text


def test_psnr_curves_show_the_mean_and_the_10_90_band() -> None:
    psnr = np.arange(11.0)
    curves = pd.DataFrame(
        {"method": "m", "seed": 0, "image": [f"i{k}" for k in range(11)], "iteration": 0}
        | {"psnr": psnr, "residual": 1.0}
    )
    band, line = figures.psnr_curves(curves, looks(["m"])).data
    assert list(line.y) == [5.0]
    assert sorted(band.y) == [1.0, 9.0]


def test_search_history_marks_trials_and_follows_the_best() -> None:
    trials = pd.DataFrame(
        {
            "method": "m",
            "number": [2, 0, 1, 3, 4, 5],
            "state": ["finished", "finished", "pruned", "diverged", "finished", "pruned"],
            "value": [22.0, 21.0, 25.0, np.nan, 20.0, np.nan],
            "estimate": [np.nan, np.nan, np.nan, np.nan, np.nan, 21.5],
            "reason": [None, None, None, "left", None, "on some images"],
        }
    )
    best, marks, *_ = figures.search_history(trials, looks(["m"])).data
    assert list(zip(best.x, best.y, strict=True)) == [(0, 21.0), (2, 22.0), (4, 22.0)]
    symbols = marks.marker.symbol
    assert symbols[0] == symbols[2] and len(set(symbols)) == 3
    assert np.isfinite(marks.y).all() and marks.y[3] < 20, "no value: on the line at the bottom"
    assert marks.y[5] == 21.5, "run on some of the images: where it is estimated"


def test_colours_belong_to_methods_and_are_told_apart() -> None:
    few = looks(["b", "a"])
    assert few == looks(["a", "b", "a"])
    many = looks([f"m{k:02}" for k in range(28)])
    assert len({(look.colour, look.dash) for look in many.values()}) == 28


def decoded(uri: str) -> np.ndarray:
    """The r, g, b pixels of a data URI."""
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_gray_pictures_keep_their_pixels() -> None:
    values = np.array([[0.0, 1.0, 0.5], [-3.0, 7.0, np.nan]])
    assert decoded(pictures.gray(values))[..., 0].tolist() == [[0, 255, 128], [0, 255, 0]]


def test_diverging_pictures_are_white_at_zero() -> None:
    negative, zero, positive, broken = decoded(
        pictures.diverging(np.array([[-2.0, 0.0, 2.0, np.nan]]), 2.0)
    )[0]
    assert zero.min() > 240 and broken.max() == 0
    assert negative[2] > negative[0] and positive[0] > positive[2]


def test_a_shrunk_matrix_keeps_its_diagonal() -> None:
    small, block = pictures.shrink(-np.eye(1000), side=300)
    assert (block, small.shape) == (4, (250, 250))
    np.testing.assert_array_equal(small, -np.eye(250))


def test_rows_of_an_operator_are_images_of_its_shape() -> None:
    matrix = np.diag(np.arange(1.0, 16.0))
    shown = pictures.operator_pictures(matrix, (3, 5), "m")
    assert [decoded(picture.uri).shape[:2] for picture in shown[1:]] == [(3, 5)] * 4
    centre = decoded(shown[1].uri)[..., 1]
    assert np.argwhere(centre < 200).tolist() == [[1, 2]]
    assert len(pictures.operator_pictures(matrix, None, "m")) == 1


@pytest.mark.parametrize("values", [np.zeros((4, 4)), np.full((4, 4), np.nan)])
def test_operators_without_a_scale_are_drawn(values: np.ndarray) -> None:
    assert len(pictures.operator_pictures(values, (2, 2), "m")) == 5
