"""The print-outs of repeated searches: a table, CSV or JSON, and what they say in plain words."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pandas as pd

from dipa_bench.errors import unknown
from dipa_bench.reports.columns import interval_text
from dipa_bench.reports.rendering import VALUES, text_console
from dipa_bench.reports.text import plain, short
from dipa_bench.reports.tuning import NEAR, UNITS, Unit, best_at, curves, reversals, verdict
from dipa_bench.tracking.results import TaskResults

SHOWN = ("table", "csv", "json")
_BUDGETS = 8
"""Most columns of budgets in a table."""
_NAMED = 6
"""Most methods that a sentence lists."""


def tuning_table(
    results: TaskResults, reference: str | None = None, unit: Unit = "trials"
) -> pd.DataFrame:
    """`dipa_bench.reports.tuning.verdict` with the mean best PSNR at a few budgets beside it.

    Args:
        results: what was measured.
        reference: the method that each is paired with; by default the study's.
        unit: of the budgets.

    Returns:
        The columns of the verdict and then one for each of `budgets`, named ``best_at_4_trials`` or
        ``best_at_0.5_seconds``, in dB; NaN where not all searches had a finished trial.

    Raises:
        UserError: an unknown reference or unit.
    """
    drawn, table = curves(results, unit), verdict(results, reference)
    if table.empty:
        return table
    shown = best_at(results, budgets(drawn["budget"], unit), unit)
    shown.columns = [f"best_at_{budget:g}_{unit}" for budget in shown.columns]
    return table.merge(shown, left_on=["study", "method"], right_index=True)


def budgets(spent: pd.Series, unit: Unit) -> list[float]:
    """At most `_BUDGETS` budgets to show: 1, 2, 4, ... trials, or 1, 2, 5, 10, ... seconds.

    Args:
        spent: the budgets at which anything happened.
        unit: of the budgets.
    """
    spent = spent.astype(float)
    spent = spent[spent > 0]
    if spent.empty:
        return []
    low, high = float(spent.min()), float(spent.max())
    if unit == "trials":
        grid = [2.0**power for power in range(math.floor(math.log2(high)) + 1)]
    else:
        decades = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
        grid = [float(f"{digit}e{decade}") for decade in decades for digit in (1, 2, 5)]
    shown = [budget for budget in grid if low <= budget <= high]
    stride = max(1, math.ceil(len(shown) / _BUDGETS))
    return shown[::-1][::stride][::-1]


def render(table: pd.DataFrame, results: TaskResults, format: str = "table") -> str:
    """The table as text; under a table for a terminal stands what it says.

    Args:
        table: from `tuning_table`.
        results: what it was made from.
        format: ``"table"``, ``"csv"`` or ``"json"`` (every column).

    Raises:
        UserError: an unknown format.
    """
    if format not in SHOWN:
        raise unknown("format", format, SHOWN)
    return _table(table, results) if format == "table" else VALUES[format](table)


def sentences(table: pd.DataFrame, results: TaskResults, study: str) -> list[str]:
    """What the searches of one study say, a line each.

    Args:
        table: from `dipa_bench.reports.tuning.verdict`.
        results: what it was made from.
        study: the study that is repeated.
    """
    rows = table[table["study"] == study]
    return [
        _caption(int(rows["replicates"].max())),
        *_lead(rows),
        *(line for unit in UNITS for line in _turned(reversals(results, unit), study, unit)),
        *_unfinished(rows),
    ]


def _caption(replicates: int) -> str:
    near = f"arrived: within {NEAR:g} dB of its own end; gain: in the same search, on validation"
    if replicates < 2:
        return f"{near}; one search each, so no ± (`study --replicates 5` makes more)"
    wide = ", wide from so few" if replicates < 4 else ""
    return f"{near}; ± is half the width of the 95% t interval over {replicates} searches{wide}"


def _lead(rows: pd.DataFrame) -> Iterator[str]:
    """What leads on validation images, and how much another search or other images change that."""
    ranked = rows[rows["best"].notna()]
    if ranked.empty:
        yield "no search has a finished trial yet"
        return
    first = ranked.iloc[0]
    name, reference = short(first["method"]), short(first["reference"])
    if first["method"] == first["reference"]:
        yield f"no row ends above {reference}"
    elif pd.notna(first["gain"]):
        gain = interval_text(first["gain"], first["gain_low"], first["gain_high"], "+.2f")
        yield f"{name} leads, {gain} dB over {reference} on validation images: {_sure(first)}"
    if pd.notna(first["test"]):
        yield f"{name} on test images: {first['test']:.2f} dB, {_moves(first, 'test', 'images')}"
    if pd.notna(first["test_gain"]) and first["method"] != first["reference"]:
        moves = _moves(first, "test_gain", "images_gain")
        yield f"{name} minus {reference} on test images: {first['test_gain']:+.2f} dB, {moves}"


def _sure(row: pd.Series) -> str:
    if math.isnan(row["gain_low"]):
        return "whether another search agrees is not known"
    if row["gain_low"] > 0:
        return "more than luck in the search explains: better at this budget, not only better tuned"
    return "luck in the search may explain it: perhaps only better tuned"


def _moves(row: pd.Series, searches: str, images: str) -> str:
    parts = [(row[f"{name}_high"] - row[f"{name}_low"]) / 2 for name in (searches, images)]
    texts = ["unknown" if math.isnan(half) else f"± {half:.2f}" for half in parts]
    return f"{texts[0]} over searches, {texts[1]} over test subjects"


def _turned(turned: pd.DataFrame, study: str, unit: Unit) -> Iterator[str]:
    """Where the order is another at equal budgets, a line for each row that was ahead."""
    rows = turned[turned["study"] == study].sort_values("budget", kind="stable")
    for other, leaders in rows.groupby("other", sort=False):
        first = leaders.iloc[0]
        named = [
            f"{short(row.leader)} ({_dB(row.leader_best)})"
            for row in leaders.iloc[:_NAMED].itertuples()
        ]
        more = f" and {len(leaders) - _NAMED} more" if len(leaders) > _NAMED else ""
        yield (
            f"other order at equal {unit}: when {short(other)} was done "
            f"({_spent(first['budget'], unit)}, {first['other_best']:.2f} dB), rows that end ahead "
            f"of it were behind: {', '.join(named)}{more}"
        )


def _unfinished(rows: pd.DataFrame) -> Iterator[str]:
    for row in rows[rows["running"].astype(bool)].itertuples():
        yield f"{short(row.method)} still runs: shown up to trial {row.trials}"


def _dB(value: float) -> str:  # noqa: N802 (the unit's name)
    return "nothing yet" if math.isnan(value) else f"{value:.2f} dB"


def _spent(value: float, unit: Unit) -> str:
    """A budget in words."""
    if math.isnan(value):
        return "-"
    return f"{value:.3g} s" if unit == "seconds" else f"{value:.3g} trials"


def _table(table: pd.DataFrame, results: TaskResults) -> str:
    from rich.table import Table
    from rich.text import Text

    console = text_console()
    columns = {name: float(name.split("_")[2]) for name in table if name.startswith("best_at_")}
    unit: Unit = "seconds" if any(name.endswith("_seconds") for name in columns) else "trials"
    sign = "s" if unit == "seconds" else ""
    for study, rows in table.groupby("study", sort=True):
        heading = f"task {plain(results.task)}, study {short(study)}: best validation PSNR [dB]"
        console.print(Text(f"{heading} after so many {unit}"))
        printed = Table(box=None, padding=(0, 1, 0, 0))
        printed.add_column("method", overflow="fold")
        shown = [name for name, budget in columns.items() if budget <= rows[unit].max()]
        versus = f"vs {short(rows['reference'].iloc[0], 12)}"
        heads = [f"{columns[name]:g}{sign}" for name in shown]
        for name in ("searches", *heads, "end", f"arrived [{sign or 'trials'}]", versus):
            printed.add_column(Text(name), justify="right", overflow="fold")
        for _, row in rows.iterrows():
            printed.add_row(*(Text(cell) for cell in _cells(row, shown, unit)))
        console.print(printed)
        for line in sentences(table, results, str(study)):
            console.print(Text(line))
        console.print()
    if table.empty:
        console.print("no trials are known")
    return console.file.getvalue().rstrip() + "\n"


def _cells(row: pd.Series, shown: list[str], unit: Unit) -> list[str]:
    """What a table shows of a row."""
    near, gain = row[f"near_{unit}"], "reference"
    if row["method"] != row["reference"]:
        gain = interval_text(row["gain"], row["gain_low"], row["gain_high"], "+.2f")
    return [
        short(row["method"]),
        str(row["replicates"]),
        *("-" if math.isnan(row[name]) else f"{row[name]:.2f}" for name in shown),
        interval_text(row["best"], row["best_low"], row["best_high"], ".2f"),
        "-" if math.isnan(near) else f"{near:.3g}",
        gain,
    ]
