"""The dashboard: one HTML file of a task's results that works offline."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup

from dashboards import figures, pictures
from dashboards.palette import Look, looks
from dashboards.pictures import Picture
from dipa_bench.evaluation.leaderboard import image_rows, leaderboard, verdict
from dipa_bench.evaluation.rendering import caveats, p_text, plain, short
from dipa_bench.evaluation.statistics import image_scores
from dipa_bench.tracking.results import Results


@dataclass(frozen=True)
class Chart:
    """A figure on the page: title, HTML and a sentence on how to read it."""

    title: str
    html: Markup
    help: str


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side under a heading."""

    title: str
    pictures: list[Picture]


@dataclass(frozen=True)
class Section:
    """All that the page shows of one study; rows are leaderboard rows with their look."""

    study: str
    verdict: str
    caveats: list[str]
    reference: str
    ranked: list[dict[str, Any]]
    unranked: list[dict[str, Any]]
    charts: list[Chart]
    reconstructions: list[Gallery]
    operators: list[Gallery]


_CURVE_HELP = (
    "Higher and further left is better. Lines are means over test images, bands reach from the "
    "10th to the 90th percentile of the images; iteration 0 is the start."
)
_RESIDUAL_HELP = (
    "How well the reconstruction explains the measurement, on a logarithmic axis: low is not good "
    "in itself, since fitting the noise lowers it too. Lines are medians over test images, bands "
    "reach from the 10th to the 90th percentile."
)
_BOX_HELP = (
    "A point is a test image; the box holds the middle half of them, its full line is the median, "
    "the dashed one the mean. Hover over a point to see which image it is."
)
_SEARCH_HELP = (
    "A mark is a trial, the line the best finished trial so far: a line that still rises at its "
    "end asks for more trials. Marks on the lowest line have no value, or one below the axis."
)


def write_dashboard(results: Results, path: Path) -> Path:
    """Writes the dashboard of a task as one self-contained HTML file.

    Args:
        results: what was measured; every text in it is shown as text, never as markup.
        path: the file to write; missing folders are made.

    Returns:
        `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_page(results), encoding="utf-8")
    return path


def _page(results: Results) -> str:
    """The page's HTML."""
    methods = results.methods
    names = [] if methods.empty else [str(name) for name in methods["method"]]
    studies = [] if methods.empty else sorted(set(methods["study"]))
    style = looks(names)
    sections = [_section(results, study, style, index) for index, study in enumerate(studies)]
    return _template().render(
        task=results.task,
        sections=sections,
        started=_last_start(methods),
        scale=Markup(pictures.scale_css()),
        short=short,
        cell=_cell,
        p_text=p_text,
    )


def _template() -> jinja2.Template:
    """The page's template; what it prints loses control characters and is escaped."""
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: (
            plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value
        ),
    )
    source = resources.files("dashboards").joinpath("page.html.jinja").read_text("utf-8")
    return environment.from_string(source)


def _section(results: Results, study: str, style: dict[str, Look], index: int) -> Section:
    """The section of one study, the `index`-th on the page."""
    board = leaderboard(results, study=study)
    rows = [row | {"look": style[row["method"]]} for row in board.to_dict("records")]
    params = _winners(results.methods, study)
    for row in rows:
        row["params"] = params.get(row["method"], {})
    ranked = [row for row in rows if not math.isnan(row["psnr"])]
    return Section(
        study=study,
        verdict=verdict(board, results),
        caveats=caveats(board),
        reference=rows[0]["reference"],
        ranked=ranked,
        unranked=[row for row in rows if math.isnan(row["psnr"])],
        charts=_charts(results, study, style, index),
        reconstructions=_reconstructions(
            results, study, {row["method"]: row["look"].name for row in ranked}
        ),
        operators=_operators(results, study, [row["method"] for row in rows]),
    )


def _winners(methods: pd.DataFrame, study: str) -> dict[str, dict[str, Any]]:
    """The winner's hyper-parameters by method."""
    rows = methods[methods["study"] == study]
    return {
        method: params if isinstance(params, dict) else {}
        for method, params in zip(rows["method"], rows["params"], strict=True)
    }


def _charts(results: Results, study: str, style: dict[str, Look], index: int) -> list[Chart]:
    """The study's figures; plotly.js comes with the page's first one."""
    curves, images = _of_study(results.curves, study), _of_study(results.images, study)
    trials = _of_study(results.trials, study)
    made = [
        ("PSNR per iteration", figures.psnr_curves(curves, style), _CURVE_HELP),
        ("Residual per iteration", figures.residual_curves(curves, style), _RESIDUAL_HELP),
        ("Distribution of PSNR over test images", figures.psnr_boxes(images, style), _BOX_HELP),
        ("Search history", figures.search_history(trials, style), _SEARCH_HELP),
    ]
    return [
        Chart(title, _embed(figure, f"figure-{index}-{number}", index == number == 0), text)
        for number, (title, figure, text) in enumerate(made)
    ]


def _embed(figure: go.Figure, identifier: str, with_plotly: bool) -> Markup:
    """A figure as HTML; Plotly writes ``<``, ``>`` and ``/`` in its data as escapes."""
    return Markup(
        figure.to_html(
            full_html=False,
            include_plotlyjs=with_plotly,
            div_id=identifier,
            default_width="100%",
            default_height=f"{figure.layout.height}px",
            config={
                "responsive": True,
                "displaylogo": False,
                "modeBarButtons": [["toImage", "resetScale2d"]],
            },
        )
    )


def _of_study(frame: pd.DataFrame, study: str) -> pd.DataFrame:
    return frame if frame.empty else frame[frame["study"] == study]


def _reconstructions(results: Results, study: str, methods: dict[str, str]) -> list[Gallery]:
    """Per chosen image: original, measurement, and the reconstructions of `methods`.

    Args:
        results: what was measured.
        study: the study.
        methods: the methods to show, in this order, with the name to show under the picture.
    """
    held = {name: results.pictures.get((study, name), {}) for name in methods}
    prefix = "reconstruction/"
    chosen = {
        key.removeprefix(prefix) for kept in held.values() for key in kept if key.startswith(prefix)
    }
    scores = {name: _score_by_image(results, study, name) for name in methods}
    galleries = []
    for image in sorted(chosen):
        shown = []
        for kind in ("original", "measurement"):
            found = [kept[f"{kind}/{image}"] for kept in held.values() if f"{kind}/{image}" in kept]
            if found:
                size = " x ".join(map(str, found[0].shape))
                lines = (kind, f"{size} pixels")
                shown.append(Picture(pictures.gray(found[0]), f"{kind} of {image}", lines))
        for name, kept in held.items():
            if prefix + image in kept:
                psnr = scores[name].get(image, math.nan)
                lines = (methods[name], "PSNR -" if math.isnan(psnr) else f"{psnr:.2f} dB")
                alt = f"reconstruction of {image} by {name}"
                shown.append(Picture(pictures.gray(kept[prefix + image]), alt, lines))
        galleries.append(Gallery(image, shown))
    return galleries


def _score_by_image(results: Results, study: str, method: str) -> dict[str, float]:
    """PSNR [dB] by image, the mean over seeds."""
    scores = image_scores(image_rows(results, study, method))
    return {image: value for (_, image), value in scores.items()}


def _operators(results: Results, study: str, methods: list[str]) -> list[Gallery]:
    """The learned operators of the study, in the order of the leaderboard."""
    galleries = []
    for name in methods:
        matrix = results.operators.get((study, name))
        if matrix is not None:
            shape = _image_shape(results.pictures.get((study, name), {}), matrix.shape[0])
            galleries.append(Gallery(name, pictures.operator_pictures(matrix, shape, name)))
    return galleries


def _image_shape(held: dict[str, Any], pixels: int) -> tuple[int, int] | None:
    """Height and width of images of so many pixels: an original's, else a square."""
    for key, values in held.items():
        if key.startswith("original/") and values.size == pixels and values.ndim == 2:
            return values.shape
    side = math.isqrt(pixels)
    return (side, side) if side * side == pixels else None


def _last_start(methods: pd.DataFrame) -> str:
    """When the last of the methods was started, or nothing if unknown."""
    times = [] if methods.empty else [t for t in methods["started"] if pd.notna(t) and t > 0]
    return f"{datetime.fromtimestamp(max(times), UTC):%Y-%m-%d %H:%M} UTC" if times else ""


def _cell(value: Any, spec: str) -> str:
    """A formatted number, or a dash if it is missing."""
    return "-" if value is None or pd.isna(value) else format(float(value), spec)
