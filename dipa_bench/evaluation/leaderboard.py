"""The leaderboard: one row per study and method, its print-outs, and a verdict in one line."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Hashable
from typing import Any

import pandas as pd

from dipa_bench.errors import unknown
from dipa_bench.evaluation import statistics
from dipa_bench.tracking.results import Results

RULES = ("tuned", "published")
COLUMNS = (
    *("task", "study", "method", "title"),
    *("psnr", "psnr_low", "psnr_high", "psnr_seed_std"),
    *("ssim", "ssim_low", "ssim_high"),
    *("reference", "difference", "difference_low", "difference_high", "p_value"),
    *("images", "subjects", "unpaired_images"),
    *("seconds_per_image", "operator_calls", "denoiser_calls", "parameters"),
    *("trials", "seeds", "fit_seconds", "search_seconds"),
    *("rules", "preset", "operator", "rule", "learned", "start", "state", "reason"),
)
NEGLIGIBLE = 0.1
"""Seconds; a fitting time below this is no denominator."""

Row = dict[Hashable, Any]


def leaderboard(
    results: Results,
    reference: str = "identity",
    rules: str | None = None,
    study: str | None = None,
) -> pd.DataFrame:
    """One row per study and method, best mean test PSNR first, unfinished methods last.

    Args:
        results: what was measured.
        reference: the method of the *same* study that each row is paired with, image by image;
            where a study has no finished method of this name, the difference columns are NaN.
        rules: keep only ``"tuned"`` or ``"published"`` rows.
        study: keep only this study.

    Returns:
        A frame with the columns `COLUMNS`: psnr and differences in dB with the ends of their 95%
        intervals (see `dipa_bench.evaluation.statistics`), psnr_seed_std the standard deviation of
        the mean PSNR over seeds in dB, seconds and calls for one image, fit_seconds the mean over
        seeds. Methods that are not finished have no scores.

    Raises:
        UserError: no such study or rules.
    """
    methods = results.methods
    if rules is not None and rules not in RULES:
        raise unknown("rules", rules, RULES)
    studies = set() if methods.empty else set(methods["study"])
    if study is not None and study not in studies:
        raise unknown("study", study, studies)
    rows = [
        _row(results, record, reference)
        for record in methods.to_dict("records")
        if rules in (None, record["rules"]) and study in (None, record["study"])
    ]
    rows.sort(key=_order)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def image_rows(results: Results, study: str, method: str) -> pd.DataFrame:
    """The rows of ``results.images`` of one finished method; none if it did not finish."""
    images, methods = results.images, results.methods
    if images.empty or methods.empty:
        return images.iloc[:0]
    row = (methods["study"] == study) & (methods["method"] == method)
    if not (methods.loc[row, "state"] == "finished").any():
        return images.iloc[:0]
    return images[(images["study"] == study) & (images["method"] == method)]


def _row(results: Results, record: Row, reference: str) -> Row:
    """A leaderboard row from a row of ``results.methods``."""
    ours = image_rows(results, record["study"], record["method"])
    psnr = statistics.mean_interval(ours, "psnr")
    ssim = statistics.mean_interval(ours, "ssim")
    paired = statistics.paired_difference(ours, image_rows(results, record["study"], reference))
    row = {name: record[name] for name in COLUMNS if name in record}
    row |= {"task": results.task, "psnr_seed_std": statistics.seed_spread(ours)}
    row |= {"psnr": psnr.mean, "psnr_low": psnr.low, "psnr_high": psnr.high}
    row |= {"ssim": ssim.mean, "ssim_low": ssim.low, "ssim_high": ssim.high}
    row |= {"reference": reference, "difference": paired.mean, "p_value": paired.p_value}
    row |= {"difference_low": paired.low, "difference_high": paired.high}
    row |= {"images": psnr.images, "subjects": psnr.subjects}
    row |= {"unpaired_images": paired.unpaired if paired.images else 0}
    if record["state"] == "finished" and math.isnan(psnr.mean):
        row["reason"] = _why_unscored(ours)
    return row


def _why_unscored(images: pd.DataFrame) -> str:
    """Why a finished method has no mean PSNR, in one line."""
    scores = statistics.image_scores(images)
    if scores.empty:
        return "no test scores"
    return f"no finite PSNR on {int(scores.isna().sum())} of {len(scores)} test images"


def _order(row: Row) -> tuple[bool, bool, float, str, str]:
    """Sort key: finished before not, scored before not, best first, then by name."""
    missing = math.isnan(row["psnr"])
    score = 0.0 if missing else -row["psnr"]
    return row["state"] != "finished", missing, score, str(row["study"]), str(row["method"])


# ---------------------------------------------------------------------------------- the verdict


def verdict(board: pd.DataFrame, results: Results) -> str:
    """What training bought: best learned method against the best one without training.

    "Best" is by mean test PSNR among the finished rows of the board, and the difference is paired
    per image and clustered by subject; it carries no correction for the choice of the best. Cost is
    ``fit_seconds``: one fit of the winner, without its search.

    Returns:
        One line, or one line per study if the board holds several.
    """
    studies = sorted(set(board["study"]))
    if not studies:
        return "no verdict: the leaderboard is empty"
    lines = [_study_verdict(board[board["study"] == study], results) for study in studies]
    if len(studies) == 1:
        return lines[0]
    return "\n".join(f"{short(study)}: {line}" for study, line in zip(studies, lines, strict=True))


def _study_verdict(board: pd.DataFrame, results: Results) -> str:
    """The verdict line of one study."""
    ranked = board[(board["state"] == "finished") & board["psnr"].notna()]
    is_learned = ranked["learned"].astype(bool)
    learned, untrained = ranked[is_learned], ranked[~is_learned]
    if learned.empty and untrained.empty:
        return "no verdict: no method has finished"
    if learned.empty:
        return f"no verdict: no learned method finished; best untrained: {_named(untrained)}"
    if untrained.empty:
        return f"no verdict: no method without training finished; best learned: {_named(learned)}"
    ours, theirs = learned.iloc[0], untrained.iloc[0]
    paired = statistics.paired_difference(
        image_rows(results, ours["study"], ours["method"]),
        image_rows(results, theirs["study"], theirs["method"]),
    )
    lmmse = "; its LMMSE start was fitted on training images" if theirs["start"] == "lmmse" else ""
    return (
        f"best learned method ({short(ours['method'])}) minus the best method without training "
        f"({short(theirs['method'])}{lmmse}) = {_gain(paired)}, "
        f"{_cost(float(ours['fit_seconds']), float(theirs['fit_seconds']))}"
    )


def _named(rows: pd.DataFrame) -> str:
    """The first row's method and PSNR in words."""
    return f"{short(rows.iloc[0]['method'])} at {rows.iloc[0]['psnr']:.2f} dB"


def _gain(paired: statistics.Difference) -> str:
    """A paired difference in words, in dB."""
    if paired.images == 0:
        return "unknown (no image in common)"
    note = f" on {paired.images} common images" if paired.unpaired else ""
    if math.isnan(paired.low):
        return f"{paired.mean:+.2f} dB [no interval from one subject]{note}"
    return f"{paired.mean:+.2f} dB [{paired.low:+.2f}, {paired.high:+.2f}]{note}"


def _cost(ours: float, theirs: float) -> str:
    """How the fitting costs, both in seconds, compare."""
    if not (math.isfinite(ours) and math.isfinite(theirs)):
        return "fitting cost unknown"
    if theirs < NEGLIGIBLE:
        return f"fitted in {ours:.3g} s against {theirs:.2g} s"
    ratio = ours / theirs
    times = f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.2g}"
    return f"at {times} times its fitting cost"


# ------------------------------------------------------------------------------- the print-outs


def render(board: pd.DataFrame, format: str = "table") -> str:
    """The board as text.

    Args:
        board: from `leaderboard`.
        format: ``"table"`` for a terminal of 100 columns, ``"markdown"`` (the same columns),
            ``"csv"`` or ``"json"`` (every column; what is not finite is empty or null).

    Raises:
        UserError: an unknown format.
    """
    formats: dict[str, Callable[[pd.DataFrame], str]] = {
        "table": _table,
        "csv": _csv,
        "markdown": _markdown,
        "json": _json,
    }
    if format not in formats:
        raise unknown("format", format, formats)
    return formats[format](board)


def plain(text: object) -> str:
    """Text on one line without control characters, which could steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in str(text))


def short(text: object, length: int = 60) -> str:
    """Text on one line, cut to `length` characters with an ellipsis."""
    line = plain(text)
    return line if len(line) <= length else line[: length - 1] + "…"


def _json(board: pd.DataFrame) -> str:
    rows = [{k: _jsonable(v) for k, v in row.items()} for row in board.to_dict("records")]
    return json.dumps(rows, indent=1, allow_nan=False)


def _jsonable(value: Any) -> Any:
    """A plain Python scalar; None for what is missing or not finite."""
    if hasattr(value, "item"):
        value = value.item()
    if value is None or value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value


def _csv(board: pd.DataFrame) -> str:
    return board.to_csv(index=False, lineterminator="\n")


def _cells(row: pd.Series) -> list[str]:
    """What a table shows of a row: one text per column of `_headings`."""
    return [
        short(row["method"]),
        _spread(row, "psnr", ".2f"),
        _spread(row, "ssim", ".3f"),
        "reference" if row["method"] == row["reference"] else _spread(row, "difference", "+.2f"),
        p_text(row["p_value"]),
        _number(row["seconds_per_image"], ".2g"),
        _number(row["parameters"], ",.0f"),
        _number(row["trials"], ".0f"),
        plain(row["rules"]),
    ]


def _headings(board: pd.DataFrame) -> list[str]:
    versus = short(board["reference"].iloc[0], 12) if len(board) else "reference"
    return [
        *("method", "PSNR [dB]", "SSIM", f"vs {versus} [dB]", "p"),
        *("s/image", "params", "trials", "rules"),
    ]


def _spread(row: pd.Series, name: str, spec: str) -> str:
    """``mean ± half the interval``, or the mean alone if there is no interval."""
    half = (row[f"{name}_high"] - row[f"{name}_low"]) / 2
    text = _number(row[name], spec)
    return text if math.isnan(half) else f"{text} ± {_number(half, spec.lstrip('+'))}"


def _number(value: Any, spec: str) -> str:
    """A formatted number, or a dash if it is missing."""
    return "-" if value is None or pd.isna(value) else format(float(value), spec)


def p_text(value: float) -> str:
    """A p-value as text; a dash if there is none."""
    return "<0.001" if value < 0.001 else _number(value, ".2g")


def _studies(board: pd.DataFrame) -> list[tuple[str, pd.DataFrame, list[str]]]:
    """Per study: a heading, its ranked rows, and a line for each that is not ranked."""
    parts = []
    for study in sorted(set(board["study"])):
        rows = board[board["study"] == study]
        ranked = rows["psnr"].notna()
        heading = f"task {plain(rows['task'].iloc[0])}, study {short(study)}"
        notes = [
            f"not ranked: {short(row['method'])} ({row['state']})"
            + ("" if pd.isna(row["reason"]) else f": {short(row['reason'], 300)}")
            for _, row in rows[~ranked].iterrows()
        ]
        parts.append((heading, rows[ranked], notes))
    return parts


_CAPTION = "± is half the width of the 95% interval over test subjects; p of the paired difference"


def _table(board: pd.DataFrame) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=100, file=io.StringIO(), color_system=None, legacy_windows=False)
    for heading, rows, notes in _studies(board):
        table = Table(title=Text(heading), title_justify="left", box=None, padding=(0, 1, 0, 0))
        for index, name in enumerate(_headings(board)):
            side = "left" if index in (0, 8) else "right"
            table.add_column(Text(name), justify=side, no_wrap=index > 0, overflow="fold")
        for _, row in rows.iterrows():
            table.add_row(*(Text(cell) for cell in _cells(row)))
        console.print(table)
        for line in [_CAPTION, *notes]:
            console.print(Text(line))
        console.print()
    if board.empty:
        console.print("the leaderboard is empty")
    return console.file.getvalue().rstrip() + "\n"


def _markdown(board: pd.DataFrame) -> str:
    lines: list[str] = []
    for heading, rows, notes in _studies(board):
        names = _headings(board)
        lines += [f"### {_inert(heading)}", "", "| " + " | ".join(map(_inert, names)) + " |"]
        lines += ["| --- " + "| ---: " * (len(names) - 2) + "| --- |"]
        for _, row in rows.iterrows():
            lines.append("| " + " | ".join(map(_inert, _cells(row))) + " |")
        lines += ["", _CAPTION, "", *(f"- {_inert(note)}" for note in notes), ""]
    return "\n".join(lines or ["the leaderboard is empty"]).rstrip() + "\n"


def _inert(text: str) -> str:
    """Text that Markdown shows as it is: no cells, emphasis, links or HTML."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#&~$" else c for c in text)
