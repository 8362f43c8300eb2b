"""The print-outs of a leaderboard: as a table for a terminal, Markdown, CSV or JSON."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pandas as pd

from dipa_bench.errors import unknown

if TYPE_CHECKING:
    from rich.console import Console

    from dipa_bench.reports.grid import Grid

_CAPTION = "± is half the width of the 95% interval over test subjects; p of the paired difference"


def render(board: pd.DataFrame, format: str = "table") -> str:
    """The board as text.

    Args:
        board: from `dipa_bench.reports.leaderboard.leaderboard`.
        format: ``"table"`` for a terminal of 100 columns, ``"markdown"`` (the same columns),
            ``"csv"`` or ``"json"`` (every column; what is not finite is empty or null).

    Raises:
        UserError: an unknown format.
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    return FORMATS[format](board)


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
        spread(row, "psnr", ".2f"),
        spread(row, "ssim", ".3f"),
        "reference" if row["method"] == row["reference"] else spread(row, "difference", "+.2f"),
        p_text(row["p_value"]),
        _number(row["seconds_per_image"], ".2g"),
        _number(row["parameters"], ",.0f"),
        _number(row["trials"], ".0f"),
        plain(row["protocol"]),
    ]


def _headings(board: pd.DataFrame) -> list[str]:
    versus = short(board["reference"].iloc[0], 12) if len(board) else "reference"
    return [
        *("method", "PSNR [dB]", "SSIM", f"vs {versus} [dB]", "p"),
        *("s/image", "params", "trials", "protocol"),
    ]


def spread(row: pd.Series, name: str, spec: str) -> str:
    """``mean ± half the interval``, or the mean alone if there is no interval."""
    return interval_text(row[name], row[f"{name}_low"], row[f"{name}_high"], spec)


def interval_text(mean: float, low: float, high: float, spec: str) -> str:
    """``mean ± half the interval``, or the mean alone if there is no interval."""
    half = (high - low) / 2
    text = _number(mean, spec)
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
        notes = [f"images: {text}" for text in caveats(rows)]
        notes += [
            f"not ranked: {short(row['method'])} ({row['state']})"
            + ("" if pd.isna(row["reason"]) else f": {short(row['reason'], 300)}")
            for _, row in rows[~ranked].iterrows()
        ]
        parts.append((heading, rows[ranked], notes))
    return parts


def caveats(rows: pd.DataFrame) -> list[str]:
    """What to know of the images of a study's rows, each said once."""
    return sorted({short(text, 300) for text in rows["caveat"].dropna()})


def _table(board: pd.DataFrame) -> str:
    from rich.table import Table
    from rich.text import Text

    console = text_console()
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
        table.add_row(Text(plain(operator)), *(Text(_number(value, "+.2f")) for value in row))
    console.print(table)
    for line in grid.sentences():
        console.print(Text(line))
    return console.file.getvalue().rstrip()


def text_console() -> Console:
    """Prints into a string of 100 columns."""
    from rich.console import Console

    return Console(width=100, file=io.StringIO(), color_system=None, legacy_windows=False)


def _markdown(board: pd.DataFrame) -> str:
    lines: list[str] = []
    for heading, rows, notes in _studies(board):
        names = _headings(board)
        lines += [f"### {inert(heading)}", "", "| " + " | ".join(map(inert, names)) + " |"]
        lines += ["| --- " + "| ---: " * (len(names) - 2) + "| --- |"]
        for _, row in rows.iterrows():
            lines.append("| " + " | ".join(map(inert, _cells(row))) + " |")
        lines += ["", _CAPTION, "", *(f"- {inert(note)}" for note in notes), ""]
    return "\n".join(lines or ["the leaderboard is empty"]).rstrip() + "\n"


def inert(text: str) -> str:
    """Text that Markdown shows as it is: no cells, emphasis, links or HTML."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#&~$" else c for c in text)


FORMATS: dict[str, Callable[[pd.DataFrame], str]] = {
    "table": _table,
    "csv": _csv,
    "markdown": _markdown,
    "json": _json,
}
"""How each format is written."""
