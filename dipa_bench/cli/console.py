"""What the commands share: where results go, and tables that are wide enough."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

RESULTS = "mlruns"
INTERRUPTED = 130  # the shell's code for Ctrl-C
NARROWEST = 120  # columns where standard output is no terminal


class Stopped(Exception):
    """Ctrl-C in the middle of something that can be continued; the message says how."""


def wide_console() -> Console:
    """The terminal as it is; a file or a pipe has no width of its own and gets a wide one."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = max(NARROWEST, console.width)
    return console


def new_table(*columns: str, title: str = "") -> Table:
    """A plain table with a title on its left."""
    from rich.table import Table

    return Table(*columns, title=title, title_justify="left", box=None, pad_edge=False)


def add_row(table: Table, *cells: object) -> None:
    """Adds a row of texts, in which nothing is markup."""
    from rich.text import Text

    table.add_row(*(Text(str(cell)) for cell in cells))
