"""`dipa-bench study`: calls `dipa_bench.api` and prints what came of it."""

from __future__ import annotations

import typer

from dipa_bench import api, devices
from dipa_bench.cli.console import Stopped, add_row, new_table, wide_console
from dipa_bench.cli.progress import Terminal
from dipa_bench.errors import StudyStopped
from dipa_bench.execution.study import Request, Study
from dipa_bench.runs.plan import plan
from dipa_bench.tracking.location import redacted

BUSY = 0.3  # cores that other programs use, from which measurements are off


def run(request: Request, quiet: bool = False) -> None:
    """Runs the study and prints its leaderboard; exit code 1 where nothing finished."""
    study = Study(request)
    try:
        with Terminal(quiet) as terminal:
            found = api.run_prepared(study, terminal)
    except StudyStopped as stop:
        raise Stopped(str(stop)) from None
    if not found.measured:
        print(f"no method of study {found.name!r} finished; the lines above say why")
        raise typer.Exit(1)
    print(found)
    if not found.sent:
        print("the results were not all sent, `dipa-bench sync` sends them")
    print(
        f"\nsee it: dipa-bench dashboard --task {found.task}, or dipa-bench ui "
        f"(results in {redacted(study.uri)})"
    )


def print_plan(request: Request) -> None:
    """Prints what the study would cost; starts nothing."""
    study = Study(request)
    busy = devices.busy_cores() if study.where.type == "cpu" else 0.0
    found = plan(study.resolved, study.task)
    table = new_table("method", "trials", "minutes", "note", title=f"study {study.resolved.name}")
    for entry in found.entries:
        note = f"skipped: {entry.skip}" if entry.skip else "fitted" if entry.fitted else ""
        add_row(table, entry.entry, entry.trials, f"{entry.minutes:.1f}", note)
    replicates = study.resolved.budget.replicates
    console, workers = wide_console(), study.worker_config.count
    console.print(table)
    minutes = replicates * found.minutes / workers
    console.print(
        f"{replicates * found.trials} trials, about {minutes:.1f} minutes and "
        f"{workers * found.memory / 2**30:.1f} GiB on {devices.describe(study.task.device)}; "
        "nothing was started"
    )
    if busy >= BUSY:
        console.print(f"other programs use {busy:.1f} cores: measured beside them, it takes longer")
