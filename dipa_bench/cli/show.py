"""Commands that show or send what tracking stored."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from dipa_bench.api import stored_results
from dipa_bench.cli.console import RESULTS
from dipa_bench.errors import UserError, unknown
from dipa_bench.tracking.connection import StoreUnavailable
from dipa_bench.tracking.location import redacted, resolve_uri
from dipa_bench.tracking.results import TaskResults
from dipa_bench.tracking.store import sync

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Wanted:
    """What a leaderboard is asked for; see the options of `dipa-bench leaderboard`."""

    task: str
    study: str | None = None
    protocol: str | None = None
    reference: str | None = None
    margin: float = 0.1
    methods: str | None = None
    columns: str | None = None
    sort: str | None = None
    pivot: str | None = None
    tracking_uri: str | None = None


def show_leaderboard(wanted: Wanted, format: str, output: Path | None) -> None:
    """Prints or writes the leaderboard; under a table stands what it says."""
    from dipa_bench.reports.across import by_task, only, sorted_by
    from dipa_bench.reports.leaderboard import leaderboard
    from dipa_bench.reports.rendering import render, render_frame

    format = _layout(format)
    ranked = format != "table" or bool(wanted.columns or wanted.sort)  # may show the rank test
    boards, told = [], []
    for task in wanted.task.split(","):
        results = stored_results(
            task.strip(),
            study=wanted.study,
            protocol=wanted.protocol,
            tracking_uri=wanted.tracking_uri,
            scores_only=True,
        )
        board = leaderboard(
            results,
            reference=wanted.reference,
            margin=wanted.margin,
            rank_test=ranked,
        )
        told.append(_told(board, results) if format == "table" and not wanted.pivot else "")
        if wanted.methods is not None:
            board = only(board, _list(wanted.methods))
        boards.append(board if wanted.sort is None else sorted_by(board, wanted.sort))
    names = None if wanted.columns is None else _list(wanted.columns)
    if wanted.pivot is not None:
        text = render_frame(by_task(_joined(boards), wanted.pivot), format)
    elif format == "table":
        parts = zip(boards, told, strict=True)
        text = "\n".join(f"{render(board, format, names)}\n{more}" for board, more in parts)
    else:
        text = render(_joined(boards), format, names)
    if output is None:
        print(text)
    else:
        output.write_text(text + "\n", encoding="utf-8")
        print(f"wrote {output}")


def _list(text: str) -> list[str]:
    """The parts between commas."""
    return [one.strip() for one in text.split(",")]


def _layout(format: str) -> str:
    """A format by its whole name.

    Raises:
        UserError: an unknown one.
    """
    from dipa_bench.reports.rendering import FORMATS

    format = "markdown" if format == "md" else format
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    return format


def _joined(boards: Sequence[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    return boards[0] if len(boards) == 1 else pd.concat(boards, ignore_index=True)


def _told(board: pd.DataFrame, results: TaskResults) -> str:
    """What is to be said of a whole board below its table."""
    from dipa_bench.reports.conclusions import verdict

    return "\n".join([verdict(board, results), *_grids(board, results), *_shifts(results)])


def show_comparison(
    task: str,
    first: str,
    second: str,
    margin: float,
    output: Path | None,
    tracking_uri: str | None,
) -> None:
    """Prints how two rows differ, and writes a page with a plot of all images."""
    from dipa_bench.reports.across import compare_rows
    from dipa_bench.reports.rendering import render_pair

    pair = compare_rows(stored_results(task, tracking_uri=tracking_uri), first, second, margin)
    print(render_pair(pair).rstrip("\n"))
    if output is not None:
        from dashboards.pairs import write_pair

        print(f"wrote {write_pair(pair, output)}: open it in a browser")


def _grids(board: pd.DataFrame, results: TaskResults) -> Iterator[str]:
    """Operators against rules, of every study that has both."""
    from dipa_bench.reports.grid import grid
    from dipa_bench.reports.rendering import render_grid

    for study in sorted(set(board["study"])):
        found = grid(board, results, study)
        if found is not None:
            yield f"\n{render_grid(found, study)}"


def _shifts(results: TaskResults) -> Iterator[str]:
    """How winners do at other settings, of the studies that tested it."""
    from dipa_bench.reports.generalisation import by_study, render

    for table in by_study(results):
        yield f"\n{render(table)}"


def show_tuning(
    task: str,
    study: str | None,
    by: str,
    format: str,
    protocol: str | None,
    reference: str | None,
    tracking_uri: str | None,
) -> None:
    """Prints what every row's search had found after how much, over its replicates."""
    from dipa_bench.reports.tuning import UNITS
    from dipa_bench.reports.tuning_table import SHOWN, render, tuning_table

    if by not in UNITS:
        raise unknown("--by", by, UNITS)
    if format not in SHOWN:
        raise unknown("format", format, SHOWN)
    results = stored_results(task, study=study, protocol=protocol, tracking_uri=tracking_uri)
    print(render(tuning_table(results, reference, by), results, format).rstrip("\n"))


def show_profile(
    task: str,
    study: str | None,
    reference: str | None,
    margin: float,
    format: str,
    protocol: str | None,
    tracking_uri: str | None,
) -> None:
    """Prints how soon rows are as good as the reference ends."""
    from dipa_bench.reports.profiles import profile_table, render

    format = _layout(format)
    results = stored_results(task, study=study, protocol=protocol, tracking_uri=tracking_uri)
    print(render(profile_table(results, reference, margin), task, format).rstrip("\n"))


def make_dashboard(
    task: str,
    output: Path | None,
    study: str | None,
    protocol: str | None,
    tracking_uri: str | None,
) -> None:
    """Writes the dashboard and says where."""
    from dashboards.page import write_dashboard

    results = stored_results(task, study=study, protocol=protocol, tracking_uri=tracking_uri)
    path = write_dashboard(results, output or Path(f"dashboard-{task}.html"))
    print(f"wrote {path} ({path.stat().st_size / 2**20:.1f} MB): open it in a browser")


def send_pending(tracking_uri: str | None, rebuild: bool = False) -> None:
    """Sends every record that the store does not have yet, or all of them."""
    uri = resolve_uri(tracking_uri, Path.cwd())
    try:
        report = sync(Path.cwd() / RESULTS, uri, rebuild)
    except StoreUnavailable as error:
        raise UserError(str(error)) from None
    print(f"{redacted(uri)}: {report.sent} runs sent, {report.unchanged} were there already")
    for failure in report.failed:
        print(f"not sent: {failure}", file=sys.stderr)
    if report.failed:
        raise typer.Exit(1)
