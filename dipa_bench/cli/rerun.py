"""`dipa-bench rerun`: find a record, repeat it, compare."""

from __future__ import annotations

from pathlib import Path

import typer

from dipa_bench import devices
from dipa_bench.archive.redaction import code_of
from dipa_bench.cli.console import RESULTS
from dipa_bench.errors import UserError
from dipa_bench.runs import rerun
from dipa_bench.tracking import records
from dipa_bench.tracking.connection import StoreUnavailable
from dipa_bench.tracking.load import find_run
from dipa_bench.tracking.location import resolve_uri
from dipa_bench.tracking.records import RunRecord


def repeat_run(run: str, device: str, tracking_uri: str | None) -> None:
    """Prints recorded and repeated figures; exit code 1 unless they agree."""
    where = devices.resolve(device)
    root = Path.cwd() / RESULTS
    record = _record(run, root, tracking_uri)
    found = rerun.repeat(record, root, where)
    print(f"study {record.study}, row {record.method}: {_what(record)}, again from its record")
    print(f"state: recorded {found.state[0]}, now {found.state[1]}")
    for name, (before, now) in found.figures.items():
        shown = "missing" if now is None else f"{now:.6f}"
        print(f"{name}: recorded {before:.6f}, now {shown}")
    for name, (before, now) in found.differences.items():
        print(f"{name} differs: recorded {before}, now {now}")
    tolerance = rerun.tolerance(where, record)
    if found.agrees(tolerance):
        print("agrees" + (" exactly" if not tolerance else f" to {tolerance} dB"))
        return
    print("does not agree")
    raise typer.Exit(1)


def _what(record: RunRecord) -> str:
    """Which of its row's runs a record is of."""
    return {
        "method": "the winner's test",
        "trial": f"trial {record.number}",
        "seed": "the winner's test",
        "published": "the test of its published settings",
    }[record.kind]


def _record(run: str, root: Path, tracking_uri: str | None) -> RunRecord:
    place = rerun.find(run, root)
    if place is not None:
        return records.read(place)
    try:
        record = find_run(resolve_uri(tracking_uri, Path.cwd()), run)
    except StoreUnavailable as error:
        raise UserError(str(error)) from None
    code = code_of(record.study_file)
    place = rerun.find(rerun.name_of(record), root)
    ours = place is not None and records.read(place).study_file == record.study_file
    if code and not ours:
        raise UserError(
            f"run {run} names code to import ({', '.join(code)}), and a tracking store may not "
            "choose what runs here: give the run's folder instead of its id"
        )
    return record
