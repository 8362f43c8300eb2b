"""`dipa-bench evaluate`: a run's operator at another solver, prior, K or operator."""

from __future__ import annotations

import sys

from dipa_bench.cli.console import RESULTS, add_row, new_table, wide_console
from dipa_bench.errors import unknown
from dipa_bench.reports.columns import interval_text
from dipa_bench.reports.rendering import render
from dipa_bench.runs import restore, transfer
from dipa_bench.runs.transfer import Line
from dipa_bench.statistics import Estimate

HERE = "at the study's own setting"
SHOWN = ("table", "csv", "json")


def evaluate_run(
    run: str,
    sets: list[str],
    trials: int | None,
    device: str = "auto",
    format: str = "table",
    tracking_uri: str | None = None,
) -> None:
    """Prints the operator at its own setting and at another, and the identity beside it."""
    if format not in SHOWN:
        raise unknown("format", format, SHOWN)
    found = restore.load(run, RESULTS, device, tracking_uri)
    problem = transfer.changed(found.study, sets)
    lines = transfer.transfer(found, problem, trials, lambda text: print(text, file=sys.stderr))
    if format != "table":
        print(render(transfer.table(lines), format).rstrip("\n"))
        return
    name = f"{found.record.study} / {found.entry.name}"
    print(f"{name}, {lines[0].psnr.images} test images; ± is half the width of the 95% interval")
    for setting in dict.fromkeys(line.setting for line in lines):
        print()
        _show_setting(setting, [line for line in lines if line.setting == setting])


def _show_setting(setting: str, lines: list[Line]) -> None:
    """The rows of one setting, the solver settings that were tuned there, and what went wrong."""
    heading = f"vs {lines[-1].name} [dB]"
    columns = ("row", "PSNR [dB]", heading, "SSIM", "solver settings")
    table = new_table(*columns, title=f"at {setting}" if setting != transfer.HOME else HERE)
    for line in lines:
        gap = "-" if line.difference is None else _spread(line.difference, "+.2f")
        quality = _spread(line.psnr, ".2f"), gap, _spread(line.ssim, ".3f")
        add_row(table, line.name, *quality, line.source)
    wide_console().print(table)
    for line in lines:
        if line.tuned:
            settings = ", ".join(
                f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
                for name, value in line.solve.items()
            )
            print(f"{line.name}: {settings}")
        if line.note:
            print(f"{line.name} diverged: {line.note}")


def _spread(found: Estimate, spec: str) -> str:
    """``mean ± half the interval``, or the mean alone where there is no interval."""
    return interval_text(found.mean, found.low, found.high, spec)
