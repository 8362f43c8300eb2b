"""From the run folders of one study to the results tables, without a tracking store."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from dipa_bench.errors import UserError
from dipa_bench.tracking import records
from dipa_bench.tracking.mlflow_format import replicate_of
from dipa_bench.tracking.records import RunRecord
from dipa_bench.tracking.results import TaskResults
from dipa_bench.tracking.setting import setting_of
from dipa_bench.tracking.tables import ARTIFACTS, Tables, method_figures, trial_row


def study_results(folder: Path, task: str) -> TaskResults:
    """The tables of one study as its folder has them; the same as a store gives, without run ids.

    Args:
        folder: of the study.
        task: its name.

    Raises:
        UserError: a damaged record or file.
    """
    tables = Tables()
    places = [(records.read(path.parent), path.parent) for path in _method_records(folder)]
    for record, place in sorted(places, key=lambda pair: (pair[0].started, pair[0].method)):
        children = [records.read(child) for child in records.children(place)]
        trials = [trial_row(child) for child in children if child.kind == "trial"]
        files = {name: place / name for name in ARTIFACTS if (place / name).is_file()}
        tables.add(_method_row(record, children), trials, files, partial(_damaged, place))
    return tables.results(task)


def runs_table(folder: Path) -> pd.DataFrame:
    """A row for each method, trial and seed of a study.

    Args:
        folder: of the study.

    Returns:
        Columns study, kind, method, number, state, reason, one for each metric, and folder.
    """
    rows = []
    for path in _method_records(folder):
        for place in (path.parent, *records.children(path.parent)):
            record = records.read(place)
            facts = record.model_dump(
                include={"study", "kind", "method", "number", "state", "reason"}
            )
            rows.append({**facts, **record.metrics, "folder": str(place)})
    return pd.DataFrame(rows)


def _method_records(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*/{records.RECORD}"))


def _method_row(record: RunRecord, children: list[RunRecord]) -> dict[str, Any]:
    figures = record.metrics
    kinds = [(child.kind, child.state) for child in children]
    replicate = int(record.study_file.get("replicate") or 0)
    shared = ("study", "method", "title", "operator", "rule", "learned", "protocol", "preset")
    return {
        **{name: getattr(record, name) for name in (*shared, "state", "params", "started")},
        "reason": record.reason or None,
        "trials": int(figures.get("search/trials", kinds.count(("trial", "finished")))),
        "seeds": int(figures.get("search/seeds", kinds.count(("seed", "finished")))),
        **method_figures(figures),
        "start": record.params.get("solve.start"),
        "reference": record.study_file.get("reference") or None,
        "caveat": record.notes.get("caveat") or None,
        "run_id": "",
        "replicate": replicate,
        "replicate_of": replicate_of(record.study, replicate),
        "setting": setting_of(record),
    }


def _damaged(place: Path, reason: str) -> UserError:
    return UserError(
        f"damaged file in {place} ({reason}): move the folder away and run the study again"
    )
