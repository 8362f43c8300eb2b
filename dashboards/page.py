"""The dashboard: one HTML file of a task's results that works offline."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup

from dashboards import architectures, figures, pictures, spectra
from dashboards.generalisation import psnr_by_setting
from dashboards.importance import importance_bars
from dashboards.palette import Look, looks
from dashboards.pictures import Picture
from dashboards.profiles import reached
from dashboards.tuning import REACH, best_against_budget
from dipa_bench.reports.columns import p_text
from dipa_bench.reports.comparison import MARGIN
from dipa_bench.reports.conclusions import conclusions, verdict
from dipa_bench.reports.generalisation import by_study
from dipa_bench.reports.importance import LEAST, parameter_importance
from dipa_bench.reports.leaderboard import base_studies, image_rows, leaderboard
from dipa_bench.reports.profiles import arrivals
from dipa_bench.reports.rendering import caveats, given, settings
from dipa_bench.reports.text import plain, short
from dipa_bench.reports.tuning import UNITS, curves
from dipa_bench.statistics import image_scores
from dipa_bench.tracking.results import Linearised, TaskResults


@dataclass(frozen=True)
class Chart:
    """A figure on the page: title, HTML and a sentence on how to read it."""

    title: str
    html: Markup
    help: str


Drawn = tuple[str, go.Figure, str]
"""A figure's title, the figure, and the sentence on how to read it."""


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side under a heading."""

    title: str
    pictures: list[Picture]


@dataclass(frozen=True)
class Section:
    """All that the page shows of one study; rows are leaderboard rows with their look."""

    study: str
    conclusions: list[str]
    verdict: str
    settings: list[str]
    given: list[str]
    caveats: list[str]
    reference: str
    ranked: list[dict[str, Any]]
    unranked: list[dict[str, Any]]
    charts: list[Chart]
    reconstructions: list[Gallery]
    operators: list[Gallery]
    spectra: list[Chart]


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
_SHIFT_HELP = (
    "Winners as they are, at settings that they were neither trained nor tuned for; operators that "
    "are made from A are made anew there. Bars are 95% intervals over test subjects."
)
_PROFILE_HELP = (
    "How soon a row is as good as {reference} ends: the share of runs on test images whose PSNR is "
    "within {margin:g} dB of what {reference} ends with on the same image. Further left is sooner, "
    "a line that ends below 100% never gets there on the others. Rows are tuned for their end, not "
    "for this; calls and seconds are those of one image."
)
_SEARCH_HELP = (
    "A mark is a trial (one that ran on some images, where it is estimated), the line the best "
    "finished trial so far: a line that still rises at its end asks for more trials. Marks on the "
    "lowest line have no value, or one below the axis."
)
_BUDGET_HELP = (
    "Who is better, and who was only tuned longer? The best finished trial so far, {searches}; the "
    "mark is the end of the budget, on which lines that still rise ask for more. Seconds are those "
    "of fitting and validating, and count in full what another row had computed before. Methods "
    "more than {reach:g} dB below the best lie outside."
)
_SIZE_HELP = (
    "Further up and further left is better. Marks are test PSNR with 95% intervals, open where "
    "nothing was learned; names without room are in the legend. Faint dots are the validation PSNR "
    "of the search's trials of learned methods (the lowest may lie below the axis), and the grey "
    "steps the highest that a trial with at most so many parameters has."
)
_TIME_HELP = (
    "The same with the time that one image's reconstruction takes, on the machine of each run. "
    "Trials are timed once, winners after a run to warm up: compare marks with marks."
)
_SINGULAR_HELP = (
    "How much J, the Jacobian of an operator near one gradient (of a linear P its matrix), "
    "stretches its n principal directions. A flat line at 1 is the identity; directions at the "
    "far end of a steep line are dropped."
)
_SYMMETRIC_HELP = (
    "Where all eigenvalues of (J + Jᵀ) / 2 are positive, J turns no small change of the gradient "
    "by 90 degrees or more; negative ones belong to changes that it sends uphill."
)
_PRODUCT_HELP = (
    "A gradient step of size s multiplies the error along an eigenvector of J AᵀA by 1 - s times "
    "its eigenvalue. Eigenvalues near 0 leave their directions to the prior; where all others are "
    "alike, one step does for all; negative real parts drive the error up."
)


def write_dashboard(results: TaskResults, path: Path) -> Path:
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


def _page(results: TaskResults) -> str:
    """The page's HTML."""
    methods = results.methods
    names = [] if methods.empty else [str(name) for name in methods["method"]]
    studies = sorted(set(base_studies(methods)))
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


def _section(results: TaskResults, study: str, style: dict[str, Look], index: int) -> Section:
    """The section of one study, the `index`-th on the page."""
    board = leaderboard(results, study=study)
    rows = [row | {"look": style[row["method"]]} for row in board.to_dict("records")]
    charts = [
        *_charts(results, study, style),
        *_profiles(results, study, style),
        *_budgets(results, study, style),
        *_tuning(results, study, board, style),
        *_shifted(results, study, style),
    ]
    spectral = _spectra(results, study, [row["method"] for row in rows], style)
    embedded = _embedded(charts + spectral, index)
    params = _winners(results.methods, study)
    for row in rows:
        row["params"] = params.get(row["method"], {})
    ranked = [row for row in rows if not math.isnan(row["psnr"])]
    return Section(
        study=study,
        conclusions=conclusions(board),
        verdict=verdict(board, results),
        settings=settings(board),
        given=given(board),
        caveats=caveats(board),
        reference=rows[0]["reference"],
        ranked=ranked,
        unranked=[row for row in rows if math.isnan(row["psnr"])],
        charts=embedded[: len(charts)],
        reconstructions=_reconstructions(
            results, study, {row["method"]: row["look"].name for row in ranked}
        ),
        operators=_operators(results, study, [row["method"] for row in rows]),
        spectra=embedded[len(charts) :],
    )


def _winners(methods: pd.DataFrame, study: str) -> dict[str, dict[str, Any]]:
    """The winner's hyper-parameters by method."""
    rows = methods[methods["study"] == study]
    return {
        method: params if isinstance(params, dict) else {}
        for method, params in zip(rows["method"], rows["params"], strict=True)
    }


def _charts(results: TaskResults, study: str, style: dict[str, Look]) -> list[Drawn]:
    """The figures that every study has."""
    curves, images = _of_study(results.curves, study), _of_study(results.images, study)
    trials = _of_study(results.trials, study)
    return [
        ("PSNR per iteration", figures.psnr_curves(curves, style), _CURVE_HELP),
        ("Residual per iteration", figures.residual_curves(curves, style), _RESIDUAL_HELP),
        ("Distribution of PSNR over test images", figures.psnr_boxes(images, style), _BOX_HELP),
        ("Search history", figures.search_history(trials, style), _SEARCH_HELP),
    ]


def _profiles(results: TaskResults, study: str, style: dict[str, Look]) -> list[Drawn]:
    """When images came to the reference's quality, where the study has its reference."""
    methods = results.methods
    own = arrivals(replace(results, methods=methods[base_studies(methods) == study]))
    if own.empty:
        return []
    text = _PROFILE_HELP.format(reference=short(own["reference"].iloc[0], 40), margin=MARGIN)
    return [("Images at the reference's quality", reached(own, style), text)]


def _budgets(results: TaskResults, study: str, style: dict[str, Look]) -> list[Drawn]:
    """The best trial so far against the budget, over all searches of the study."""
    methods = results.methods
    base = methods.loc[methods["study"] == study, "replicate_of"].iloc[0]
    own = replace(results, methods=methods[methods["replicate_of"] == base])
    lines = {unit: curves(own, unit) for unit in UNITS}
    if lines["trials"].empty:
        return []
    replicates = int(lines["trials"]["replicates"].max())
    searches = (
        f"the mean over {replicates} independent searches with its 95% t interval"
        if replicates > 1
        else "of one search (`study --replicates 5` makes more, and bands)"
    )
    text = _BUDGET_HELP.format(searches=searches, reach=REACH)
    return [("Best trial against budget spent", best_against_budget(lines, style), text)]


def _shifted(results: TaskResults, study: str, style: dict[str, Look]) -> list[Drawn]:
    """What winners keep at other settings, where the study tested some."""
    own = replace(results, shifts=_of_study(results.shifts, study))
    return [
        ("PSNR at other settings", psnr_by_setting(table, style), _SHIFT_HELP)
        for table in by_study(own)
    ]


def _tuning(
    results: TaskResults, study: str, board: pd.DataFrame, style: dict[str, Look]
) -> list[Drawn]:
    """Quality against cost, and importance of hyper-parameters, where the study has them."""
    trials, drawn = _of_study(results.trials, study), []
    if architectures.comparable(board, trials):
        pixels = _pixels(results, study)
        for cost, title, text in (
            ("parameters", "PSNR against parameters", _SIZE_HELP),
            ("seconds_per_image", "PSNR against time", _TIME_HELP),
        ):
            dense = pixels**2 if cost == "parameters" and pixels else None
            figure = architectures.quality_by_cost(board, trials, style, cost, dense)
            drawn.append((title, figure, text))
    table = parameter_importance(trials)
    if len(table):
        figure = importance_bars(table, style)
        text = _importance_help(table, sorted(set(trials["method"])))
        drawn.append(("Importance of hyper-parameters", figure, text))
    return drawn


def _importance_help(table: pd.DataFrame, methods: list[str]) -> str:
    """What the bars say, from how many trials, and which methods have none."""
    fewest, most = int(table["trials"].min()), int(table["trials"].max())
    trials = str(most) if fewest == most else f"{fewest} to {most}"
    missing = [short(method, 40) for method in methods if method not in set(table["method"])]
    none = (
        f" No bar for {', '.join(missing)}: fewer than {LEAST} finished trials, or nothing varied."
    )
    return (
        "How much of the differences in validation PSNR each hyper-parameter explains by itself "
        f"(fANOVA), from {trials} finished trials of each method. The light piece is a random "
        "number that was drawn beside each trial: what is not clearly longer means nothing. "
        "Parameters that only some trials have are left out." + (none if missing else "")
    )


def _spectra(
    results: TaskResults, study: str, methods: list[str], style: dict[str, Look]
) -> list[Drawn]:
    """The figures of learned operators near one gradient, if there are any."""
    held = results.linearisations
    found = {name: held[study, name] for name in methods if (study, name) in held}
    if not found:
        return []
    return [
        ("Singular values", spectra.singular_values(found, style), _SINGULAR_HELP),
        ("Symmetric part", spectra.symmetric_spectrum(found, style), _SYMMETRIC_HELP),
        ("Eigenvalues of J AᵀA", spectra.product_spectrum(found, style), _PRODUCT_HELP),
    ]


def _embedded(drawn: list[Drawn], index: int) -> list[Chart]:
    """Figures as parts of the `index`-th study; plotly.js comes with the page's first one."""
    return [
        Chart(title, _embed(figure, f"figure-{index}-{number}", index == number == 0), text)
        for number, (title, figure, text) in enumerate(drawn)
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


def _reconstructions(results: TaskResults, study: str, methods: dict[str, str]) -> list[Gallery]:
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


def _score_by_image(results: TaskResults, study: str, method: str) -> dict[str, float]:
    """PSNR [dB] by image, the mean over replicates."""
    scores = image_scores(image_rows(results, study, method))
    return {image: value for (_, image), value in scores.items()}


def _operators(results: TaskResults, study: str, methods: list[str]) -> list[Gallery]:
    """The study's learned operators, linear or linearised, in the order of the leaderboard."""
    galleries = []
    for name in methods:
        matrix = results.operators.get((study, name))
        near = results.linearisations.get((study, name))
        held = results.pictures.get((study, name), {})
        if matrix is not None:
            shape = _image_shape(held, matrix.shape[0])
            galleries.append(Gallery(name, pictures.operator_pictures(matrix, shape, name)))
        elif near is not None and near.matrix is not None:
            shape = _image_shape(held, near.matrix.shape[0])
            shown = pictures.operator_pictures(near.matrix, shape, name, "J", _reference(near))
            galleries.append(Gallery(f"{short(name, 60)}: Jacobian", shown))
    return galleries


def _reference(near: Linearised) -> str:
    """Where a Jacobian was taken, and how unless exactly."""
    place = f"at validation image {short(near.image, 40) or '?'}"
    when = "" if near.iteration is None else f", iteration {near.iteration}"
    how = "" if near.derivative == "exact" else f", by {short(near.derivative, 40)}"
    return place + when + how


def _image_shape(held: dict[str, Any], numbers: int) -> tuple[int, int] | None:
    """Height and width of images of so many numbers: an original's, else a square."""
    for key, values in held.items():
        if key.startswith("original/") and values.ndim == 2 and numbers % values.size == 0:
            return values.shape
    side = math.isqrt(numbers)
    return (side, side) if side * side == numbers else None


def _pixels(results: TaskResults, study: str) -> int | None:
    """H W of the study's images, as its pictures have it."""
    for (owner, _), held in results.pictures.items():
        for key, values in held.items():
            if owner == study and key.startswith("original/"):
                return int(values.size)
    return None


def _last_start(methods: pd.DataFrame) -> str:
    """When the last of the methods was started, or nothing if unknown."""
    times = [] if methods.empty else [t for t in methods["started"] if pd.notna(t) and t > 0]
    return f"{datetime.fromtimestamp(max(times), UTC):%Y-%m-%d %H:%M} UTC" if times else ""


def _cell(value: Any, spec: str) -> str:
    """A formatted number, or a dash if it is missing."""
    return "-" if value is None or pd.isna(value) else format(float(value), spec)
