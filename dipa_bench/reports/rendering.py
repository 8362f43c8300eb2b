"""The print-outs of a leaderboard: for a terminal, Markdown, LaTeX, HTML, CSV or JSON."""

from __future__ import annotations

import html
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dipa_bench.errors import unknown
from dipa_bench.reports.columns import Column, chosen, interval_text, number_text, p_text, shown
from dipa_bench.reports.conclusions import conclusions
from dipa_bench.reports.text import counted, inert, plain, short, tex

if TYPE_CHECKING:
    from rich.console import Console

    from dipa_bench.reports.across import Pair
    from dipa_bench.reports.grid import Grid

WIDTH = 100  # columns of a table, more where they are not enough
LEAST = 13  # columns of a method's name
EXTREMES = 5  # images shown of a pair, on either side
CAPTION = (
    "± is half the width of the 95% interval over test subjects, searches and fits; p is corrected "
    "for the rows (Holm)"
)


def render(board: pd.DataFrame, format: str = "table", columns: Sequence[str] | None = None) -> str:
    """The board as text.

    Args:
        board: from `dipa_bench.reports.leaderboard.leaderboard`.
        format: ``"table"`` for a terminal of 100 columns, ``"markdown"``, ``"latex"`` (booktabs) or
            ``"html"``: the columns asked for; ``"csv"`` or ``"json"``: values, by default of every
            column (what is not finite is empty or null).
        columns: names of columns of the board; by default `dipa_bench.reports.columns.SHOWN`.

    Raises:
        UserError: an unknown format or column.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if format in VALUES:
        wanted = list(board.columns if columns is None else chosen(board, columns))
        return VALUES[format](board[wanted])
    return LAYOUTS[format](board, chosen(board, columns))


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


def _studies(board: pd.DataFrame) -> list[tuple[str, pd.DataFrame, list[str]]]:
    """Per study: a heading, its ranked rows, and a line for each that is not ranked."""
    parts = []
    for study in sorted(set(board["study"])):
        rows = board[board["study"] == study]
        ranked = rows["psnr"].notna()
        heading = f"task {plain(rows['task'].iloc[0])}, study {short(study)}"
        notes = settings(rows) + given(rows)
        notes += [f"images: {text}" for text in caveats(rows)] + conclusions(rows)
        notes += [
            f"not ranked: {short(row['method'])} ({row['state']})"
            + ("" if pd.isna(row["reason"]) else f": {short(row['reason'], 300)}")
            for _, row in rows[~ranked].iterrows()
        ]
        parts.append((heading, rows[ranked], notes))
    return parts


def settings(rows: pd.DataFrame) -> list[str]:
    """What a study's numbers hold for; one line, or several where rows differ in it."""
    told = dict.fromkeys(plain(text) for text in rows["setting"].dropna() if text)
    if not told:
        return []
    images = counted(rows["images"].max(), "test image")
    subjects = counted(rows["subjects"].max(), "subject")
    runs = counted(rows["replicates"].max(), "replicate")
    return [f"{images} of {subjects}, {runs}; {text}" for text in told]


def given(rows: pd.DataFrame) -> list[str]:
    """What each ranked row of a study was given of the training images, its start included."""
    rows = rows[rows["psnr"].notna()]
    told = rows[rows["learns_from"].notna()]
    parts = [
        f"{source}: {', '.join(short(name) for name in same['method'])}"
        for source, same in told.groupby("learns_from", sort=True)
    ]
    lines = [f"learned from {'; from '.join(plain(part) for part in parts)}"] if parts else []
    fitted = rows[rows["start"] == "lmmse"]["method"]
    if len(fitted):
        names = "all rows" if len(fitted) == len(rows) else ", ".join(map(short, fitted))
        lines.append(f"started from the LMMSE estimate, fitted on training images: {names}")
    return lines


def caveats(rows: pd.DataFrame) -> list[str]:
    """What to know of the images of a study's rows, each said once."""
    return sorted({short(text, 300) for text in rows["caveat"].dropna()})


def _table(board: pd.DataFrame, columns: dict[str, Column]) -> str:
    from rich.table import Table
    from rich.text import Text

    console = text_console()
    for heading, rows, notes in _studies(board):
        table = Table(title=Text(heading), title_justify="left", box=None, padding=(0, 1, 0, 0))
        texts = shown(rows, columns)
        console.width = max(WIDTH, _narrowest(texts, columns))
        for name, (key, column) in zip(texts.columns, columns.items(), strict=True):
            side = "left" if column.words else "right"
            table.add_column(Text(name), justify=side, no_wrap=key != "method", overflow="fold")
        for cells in texts.itertuples(index=False, name=None):
            table.add_row(*map(Text, cells))
        console.print(table)
        console.width = WIDTH
        for line in [CAPTION, *notes]:
            console.print(Text(line))
        console.print()
    if board.empty:
        console.print("the leaderboard is empty")
    return console.file.getvalue().rstrip() + "\n"


def _narrowest(texts: pd.DataFrame, columns: Mapping[str, Column]) -> int:
    """The width at which no column is cut; names of methods may be folded."""
    from rich.cells import cell_len

    widths = [
        LEAST if key == "method" else max(map(cell_len, [name, *texts.iloc[:, place]]))
        for place, (key, name) in enumerate(zip(columns, texts.columns, strict=True))
    ]
    return sum(widths) + len(widths)


def render_grid(grid: Grid, study: str) -> str:
    """Operators against rules as a table for a terminal, and what it says."""
    from rich.table import Table
    from rich.text import Text

    console = text_console()
    console.print(Text(f"study {short(study)}: gain over the reference [dB], operator x rule"))
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("operator")
    for rule in grid.gains.columns:
        table.add_column(Text(plain(rule)), justify="right", overflow="fold")
    for operator, row in grid.gains.iterrows():
        table.add_row(Text(plain(operator)), *(Text(number_text(value, "+.2f")) for value in row))
    console.print(table)
    for line in grid.sentences():
        console.print(Text(line))
    return console.file.getvalue().rstrip()


def render_frame(frame: pd.DataFrame, format: str) -> str:
    """A frame of texts whose first column has words; formats as `render`."""
    if format in VALUES:
        return VALUES[format](frame)
    if format == "latex":
        return frame.map(tex).to_latex(index=False, escape=False)
    if format == "html":
        return frame.to_html(index=False, border=0)
    if format == "markdown":
        heads = [" | ".join(map(inert, frame.columns)), " | ".join("---" for _ in frame.columns)]
        rows = [" | ".join(map(inert, cells)) for cells in frame.itertuples(index=False, name=None)]
        return "\n".join(f"| {line} |" for line in [*heads, *rows])
    from rich.table import Table
    from rich.text import Text

    console = text_console()
    table = Table(box=None, padding=(0, 1, 0, 0))
    for place, name in enumerate(frame.columns):
        side = "left" if not place else "right"
        table.add_column(Text(plain(name)), justify=side, overflow="fold")
    for cells in frame.itertuples(index=False, name=None):
        table.add_row(*(Text(plain(cell)) for cell in cells))
    console.print(table)
    return console.file.getvalue().rstrip()


def render_pair(pair: Pair) -> str:
    """Two rows image by image, for a terminal."""
    found, low_high = pair.found, pair.found.interval()
    subjects, runs = counted(found.subjects, "subject"), counted(found.replicates, "replicate")
    scope = f"{counted(found.images, 'image')} of {subjects}, {runs}"
    lines = [
        f"{short(pair.first)} minus {short(pair.second)}: "
        f"{interval_text(found.mean, *low_high, '+.2f')} dB, {pair.verdict.word} ({scope})",
        f"p = {p_text(found.p_value)} (t test), {p_text(found.wilcoxon)} (Wilcoxon, subjects)",
    ]
    if pair.verdict.advice:
        lines.append(f"{pair.verdict.advice} would decide")
    count = min(EXTREMES, len(pair.images) // 2)
    for title, rows in (
        ("images that gain most", pair.images.head(count)),
        ("images that lose most, or gain least", pair.images.tail(count)[::-1]),
    ):
        frame = pd.DataFrame(
            {
                "image": rows["image"].map(short),
                "subject": rows["subject"].map(short),
                "first [dB]": rows["first"].map("{:.2f}".format),
                "second [dB]": rows["second"].map("{:.2f}".format),
                "difference": rows["difference"].map("{:+.2f}".format),
            }
        )
        lines += ["", title, render_frame(frame, "table")]
    if len(pair.parameters):
        frame = pair.parameters.map(lambda value: "-" if value is None else short(value))
        lines += ["", "parameters that differ", render_frame(frame, "table")]
    return "\n".join(lines) + "\n"


def text_console() -> Console:
    """Prints into a string of `WIDTH` columns."""
    from rich.console import Console

    return Console(width=WIDTH, file=io.StringIO(), color_system=None, legacy_windows=False)


def _markdown(board: pd.DataFrame, columns: dict[str, Column]) -> str:
    lines: list[str] = []
    for heading, rows, notes in _studies(board):
        texts = shown(rows, columns)
        lines += [f"### {inert(heading)}", "", "| " + " | ".join(map(inert, texts.columns)) + " |"]
        sides = ["---" if column.words else "---:" for column in columns.values()]
        lines += ["| " + " | ".join(sides) + " |"]
        for cells in texts.itertuples(index=False, name=None):
            lines.append("| " + " | ".join(map(inert, cells)) + " |")
        lines += ["", CAPTION, "", *(f"- {inert(note)}" for note in notes), ""]
    return "\n".join(lines or ["the leaderboard is empty"]).rstrip() + "\n"


def _latex(board: pd.DataFrame, columns: dict[str, Column]) -> str:
    """A booktabs table for each study; the best and what ties with it in bold."""
    parts = ["% needs \\usepackage{booktabs}"]
    for heading, rows, notes in _studies(board):
        texts = shown(rows, columns).map(tex)
        texts.columns = [tex(name) for name in texts.columns]
        for place in np.flatnonzero(rows["rank"] == 1):
            texts.iloc[place] = [
                f"\\textbf{{{cell}}}" if cell else "" for cell in texts.iloc[place]
            ]
        sides = "".join("l" if column.words else "r" for column in columns.values())
        caption = ". ".join(tex(text) for text in [heading, *settings(rows), CAPTION]) + "."
        lines = [
            "\\begin{table}",
            "\\centering",
            f"\\caption{{{caption}}}",
            f"\\begin{{tabular}}{{{sides}}}",
            "\\toprule",
            " & ".join(texts.columns) + r" \\",
            "\\midrule",
            *(" & ".join(cells) + r" \\" for cells in texts.itertuples(index=False, name=None)),
            "\\bottomrule",
            "\\end{tabular}",
            "\\end{table}",
        ]
        parts += ["", *lines, *(f"% {plain(note)}" for note in notes)]
    return "\n".join(parts) + "\n"


def _html(board: pd.DataFrame, columns: dict[str, Column]) -> str:
    parts = ['<!doctype html><meta charset="utf-8"><title>dipa-bench</title>']
    for heading, rows, notes in _studies(board):
        texts = shown(rows, columns)
        parts += [f"<h2>{html.escape(heading)}</h2>", texts.to_html(index=False, border=0)]
        parts += [f"<p>{html.escape(line)}</p>" for line in [CAPTION, *notes]]
    return "\n".join(parts) + "\n"


VALUES: dict[str, Callable[[pd.DataFrame], str]] = {"csv": _csv, "json": _json}
"""Formats that hold values."""

LAYOUTS: dict[str, Callable[[pd.DataFrame, dict[str, Column]], str]] = {
    "table": _table,
    "markdown": _markdown,
    "latex": _latex,
    "html": _html,
}
"""Formats that hold texts, study by study, with what is to be said of each."""

FORMATS = (*LAYOUTS, *VALUES)
