"""Trained at the matched setting, tested at shifted ones: who keeps how much?

Read from a table of test scores alone. Intervals, pairing and what counts as a failure are those of
`dipa_bench.statistics`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from dipa_bench import names, statistics
from dipa_bench.errors import UserError, unknown
from dipa_bench.reports.columns import spread
from dipa_bench.reports.rendering import VALUES, text_console
from dipa_bench.reports.text import inert, plain, short
from dipa_bench.tracking.results import TaskResults

"""The setting that methods were trained at."""

SHOWN = ("table", "markdown", *VALUES)
NEEDED = ("study", "method", "setting", "seed", "image", "subject", "psnr", "ssim")
COLUMNS = (
    *("study", "method", "setting"),
    *("psnr", "psnr_low", "psnr_high", "ssim", "ssim_low", "ssim_high"),
    *("reference", "difference", "difference_low", "difference_high", "p_value"),
    *("drop", "drop_low", "drop_high"),
    *("images", "subjects", "unpaired_images"),
)
Key = tuple[str, str, str]
_CAPTION = "± is half the width of the 95% interval over test subjects"
_PARTS = {
    "psnr": ("PSNR [dB]", ".2f"),
    "difference": ("PSNR minus that of {reference} in the same setting [dB]", "+.2f"),
    "drop": ("PSNR lost against the method's own matched setting [dB]", "+.2f"),
}


def generalisation(shifts: pd.DataFrame, reference: str) -> pd.DataFrame:
    """One row per study, method and setting.

    Args:
        shifts: test scores, one row per study, method, setting, seed and image, with the columns
            `NEEDED`; setting is text, `MATCHED` where the method was trained.
        reference: the method of the same study and setting that each row is paired with, image by
            image.

    Returns:
        A frame with the columns `COLUMNS`. Each figure comes with the ends of its 95% interval:
        psnr the mean over images in dB, difference that of the reference taken away, drop how much
        less it is than the method's own at the matched setting (positive where a shift costs),
        paired by image as well. NaN where there is nothing to pair with. Within a study the method
        that is best at the matched setting comes first; of a method the matched setting, then the
        others in the order of the table.

    Raises:
        UserError: a column is missing, or no method is named like the reference.
    """
    if lacking := [name for name in NEEDED if name not in shifts]:
        raise UserError(f"the table of shifts has no column {lacking[0]!r}: it needs {NEEDED}")
    if shifts.empty:
        return pd.DataFrame(columns=list(COLUMNS))
    if reference not in set(shifts["method"]):
        raise unknown("reference", reference, set(shifts["method"]))
    groups = dict(list(shifts.groupby(["study", "method", "setting"], sort=False)))
    rows = [_row(groups, key, reference) for key in groups]
    settings = list(dict.fromkeys(shifts["setting"]))
    return _sorted(pd.DataFrame(rows, columns=list(COLUMNS)), settings)


def by_study(results: TaskResults) -> Iterator[pd.DataFrame]:
    """`generalisation` of every study that tested other settings, against its own reference."""
    if results.shifts.empty:
        return
    wanted = results.methods.groupby("study").first().get("reference", {})
    for study, rows in results.shifts.groupby("study"):
        names = list(dict.fromkeys(rows["method"]))
        named = wanted.get(study)
        yield generalisation(rows, named if named in names else names[0])


def _row(groups: dict[Key, pd.DataFrame], key: Key, reference: str) -> dict[str, Any]:
    """The row of one study, method and setting, from the scores of all."""
    study, method, setting = key
    ours = groups[key]
    nothing = ours.iloc[:0]
    psnr, ssim = (statistics.mean_interval(ours, metric) for metric in ("psnr", "ssim"))
    paired = statistics.paired_difference(ours, groups.get((study, reference, setting), nothing))
    drop = statistics.paired_difference(groups.get((study, method, names.MATCHED), nothing), ours)
    row = {"study": study, "method": method, "setting": setting, "reference": reference}
    figures = {"psnr": psnr, "ssim": ssim, "difference": paired, "drop": drop}
    for name, found in figures.items():
        row |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
    row |= {"p_value": paired.p_value, "images": psnr.images, "subjects": psnr.subjects}
    return row | {"unpaired_images": paired.unpaired if paired.images else 0}


def wide(table: pd.DataFrame, study: str, figure: str = "psnr") -> pd.DataFrame:
    """Methods in rows, settings in columns, as text: mean ± half the interval.

    Args:
        table: from `generalisation`.
        study: whose rows.
        figure: ``"psnr"``, ``"difference"`` or ``"drop"``.
    """
    rows = table[table["study"] == study]
    methods, settings = dict.fromkeys(rows["method"]), dict.fromkeys(rows["setting"])
    settings = sorted(settings, key=lambda setting: setting != names.MATCHED)
    cells = pd.DataFrame("-", index=list(methods), columns=settings)
    for _, row in rows.iterrows():
        cells.loc[row["method"], row["setting"]] = _cell(row, figure)
    return cells


def render(table: pd.DataFrame, format: str = "table") -> str:
    """The table as text.

    Args:
        table: from `generalisation`.
        format: ``"table"`` for a terminal of 100 columns and ``"markdown"`` have methods in rows
            and settings in columns; ``"csv"`` and ``"json"`` all columns of the table.

    Raises:
        UserError: an unknown format.
    """
    if format not in SHOWN:
        raise unknown("format", format, SHOWN)
    if format in VALUES:
        return VALUES[format](table)
    if table.empty:
        return "nothing was tested at a shifted setting\n"
    return (_markdown if format == "markdown" else _table)(table)


def _cell(row: pd.Series, figure: str) -> str:
    if figure == "difference" and row["method"] == row["reference"]:
        return "reference"
    if figure == "drop" and row["setting"] == names.MATCHED:
        return names.MATCHED
    return spread(row, figure, _PARTS[figure][1])


def _sorted(table: pd.DataFrame, settings: list[str]) -> pd.DataFrame:
    """Studies by name, methods by their matched PSNR, settings with the matched one first."""
    matched = table[table["setting"] == names.MATCHED].set_index(["study", "method"])["psnr"]
    keys = pd.DataFrame(
        {
            "study": table["study"],
            "score": [-matched.get(key, float("nan")) for key in _pairs(table)],
            "method": table["method"],
            "late": table["setting"] != names.MATCHED,
            "place": table["setting"].map(settings.index),
        }
    )
    return table.loc[keys.sort_values(list(keys), kind="stable").index].reset_index(drop=True)


def _pairs(table: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(table["study"], table["method"], strict=True))


def _parts(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """A heading and its cells for each study and figure."""
    parts = []
    for study in dict.fromkeys(table["study"]):
        for figure, (heading, _) in _PARTS.items():
            named = heading.format(reference=short(table["reference"].iloc[0], 20))
            parts.append((f"study {short(study)}: {named}", wide(table, study, figure)))
    return parts


def _table(table: pd.DataFrame) -> str:
    from rich.table import Table
    from rich.text import Text

    console = text_console()
    for heading, cells in _parts(table):
        shown = Table(title=Text(heading), title_justify="left", box=None, padding=(0, 1, 0, 0))
        shown.add_column("method", overflow="fold")
        for name in cells.columns:
            shown.add_column(Text(plain(name)), justify="right", overflow="fold")
        for method, row in cells.iterrows():
            shown.add_row(Text(short(method)), *(Text(cell) for cell in row))
        console.print(shown)
        console.print()
    console.print(_CAPTION)
    return console.file.getvalue().rstrip() + "\n"


def _markdown(table: pd.DataFrame) -> str:
    lines: list[str] = []
    for heading, cells in _parts(table):
        names = ["method", *map(plain, cells.columns)]
        lines += [f"### {inert(heading)}", "", "| " + " | ".join(map(inert, names)) + " |"]
        lines += ["| --- " + "| ---: " * len(cells.columns) + "|"]
        for method, row in cells.iterrows():
            lines.append("| " + " | ".join(map(inert, [short(method), *row])) + " |")
        lines.append("")
    return "\n".join([*lines, _CAPTION]) + "\n"
