"""Trials of solver settings that ran on some of the validation images: one table of their entry.

A search evaluates about a hundred settings, most of them on a few images. As runs of their own they
would bury the rows of MLflow's list, so they are sent as one file of the entry's run, in the format
of ``mlflow.log_table``, which MLflow's own pages show as a table. Their run folders and Optuna's
journal stay as they are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dipa_bench import names
from dipa_bench.files import write_json
from dipa_bench.tracking.records import RunRecord, Scalar
from dipa_bench.tracking.tables import OF_TRIAL, trial_row

FACTS = ("number", "index", "state", *OF_TRIAL, "reason")
UNUSED = ""  # the cell of a parameter that a trial does not have
TAG = {"mlflow.loggedArtifacts": json.dumps([{"path": names.SETTINGS, "type": "table"}])}
"""Tells MLflow's pages that an entry's run has the table."""


def belongs(record: RunRecord) -> bool:
    """Whether a run is told of in the table, not as an MLflow run of its own."""
    return record.kind == "trial" and record.images is not None


def write(path: Path, trials: Iterable[RunRecord]) -> None:
    """Writes the table.

    Args:
        path: the file.
        trials: in the order of their numbers.
    """
    trials = list(trials)
    own = sorted({name for record in trials for name in record.params})
    data = []
    for record in trials:
        row = trial_row(record)
        cells = [_json(row[name]) for name in FACTS]
        params = [record.params.get(name, UNUSED) for name in own]
        data.append([*cells, record.stage, record.images, *params])
    write_json(path, {"columns": [*FACTS, "stage", "images", *own], "data": data})


def _json(value: Scalar) -> Scalar:
    """JSON has no word for what is not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of the results' table of trials, without study and method.

    Raises:
        ValueError, KeyError: a damaged file.
    """
    table = json.loads(path.read_text(encoding="utf-8"))
    first = len(FACTS) + 2
    own, found = table["columns"][first:], []
    for cells in table["data"]:
        row = dict(zip(FACTS, cells, strict=False))
        row |= {name: float("nan") for name in OF_TRIAL if row[name] is None}
        pairs = zip(own, cells[first:], strict=True)
        found.append({**row, "params": {name: value for name, value in pairs if value != UNUSED}})
    return found
