"""From run folders to the results tables, without a tracking store."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from dipa_bench import names
from dipa_bench.errors import UserError
from dipa_bench.tracking import records
from dipa_bench.tracking.mlflow_format import replicate_of
from dipa_bench.tracking.records import RunRecord
from dipa_bench.tracking.results import TaskResults
from dipa_bench.tracking.setting import setting_of
from dipa_bench.tracking.tables import (
    ARTIFACTS,
    Facts,
    Tables,
    method_figures,
    selected,
    trial_row,
)

log = logging.getLogger(__name__)

SCORES = (names.IMAGES, names.SHIFTS)
"""The files of test scores."""
Place = tuple[RunRecord, Path]


def folder_results(
    root: Path,
    task: str,
    *,
    study: str | None = None,
    protocol: str | None = None,
    scores_only: bool = False,
) -> TaskResults | None:
    """The tables of all studies of a task below a results folder.

    A damaged record or file costs its own row, of which a warning tells.

    Args:
        root: the results folder.
        task: its name.
        study: only this study, with its replicates.
        protocol: only rows under this protocol, ``"tuned"`` or ``"published"``.
        scores_only: leaves the tables of curves, trials, pictures and operators empty.

    Returns:
        None where the folder has not all of it: no run of the task, or a study that was shared with
        other machines, which have rows of it.

    Raises:
        UserError: an unknown study or protocol.
    """
    places: list[Place] = []
    for path in sorted(records.studies_root(root).glob(f"[!.]*/*/{records.RECORD}")):
        try:
            record = records.read(path.parent)
        except UserError as error:
            log.warning("left out: %s", error)
            continue
        if record.task == task and record.kind == "method":
            places.append((record, path.parent))
    if not places or any((place.parent / records.SHARED).exists() for _, place in places):
        return None
    places = selected(places, _facts, study, protocol)
    tables = Tables()
    for record, place in sorted(places, key=lambda one: (one[0].study, *_order(one))):
        try:
            _add(tables, record, place, scores_only)
        except UserError as error:
            log.warning("left out: %s", error)
    return tables.results(task)


def _facts(place: Place) -> Facts:
    record, _ = place
    return Facts(record.study, _replicate_of(record), record.protocol)


def _order(place: Place) -> tuple[float, str]:
    return place[0].started, place[0].method


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
    for record, place in sorted(places, key=_order):
        _add(tables, record, place)
    return tables.results(task)


def _add(tables: Tables, record: RunRecord, place: Path, scores_only: bool = False) -> None:
    """Adds an entry's row, trials and files."""
    trials: list[RunRecord] = []
    if not scores_only:
        trials = [one for one in _children(place) if one.kind == "trial"]
    wanted = SCORES if scores_only else ARTIFACTS
    files = {name: place / name for name in wanted if (place / name).is_file()}
    row = _method_row(record, lambda: _children(place))
    tables.add(row, map(trial_row, trials), files, partial(_damaged, place))


def _children(place: Path) -> list[RunRecord]:
    return [records.read(child) for child in records.children(place)]


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


def _method_row(record: RunRecord, children: Callable[[], list[RunRecord]]) -> dict[str, Any]:
    figures = record.metrics
    kinds: list[tuple[str, str]] = []
    if "search/trials" not in figures:  # its search has not ended
        kinds = [(child.kind, child.state) for child in children()]
    shared = ("study", "method", "title", "operator", "rule", "learned", "protocol", "preset")
    return {
        **{name: getattr(record, name) for name in (*shared, "state", "params", "started")},
        "reason": record.reason or None,
        "trials": int(figures.get("search/trials", kinds.count(("trial", "finished")))),
        **method_figures(figures),
        "start": record.params.get("solve.start"),
        "learns_from": record.notes.get("learns_from") or None,
        "reference": record.study_file.get("reference") or None,
        "caveat": record.notes.get("caveat") or None,
        "contains": record.notes.get("contains") or None,
        "run_id": "",
        "replicate": _replicate(record),
        "replicate_of": _replicate_of(record),
        "setting": setting_of(record),
    }


def _replicate(record: RunRecord) -> int:
    return int(record.study_file.get("replicate") or 0)


def _replicate_of(record: RunRecord) -> str:
    """The study whose method's run replicates; its own for the first one."""
    return replicate_of(record.study, _replicate(record))


def _damaged(place: Path, reason: str) -> UserError:
    return UserError(
        f"damaged file in {place} ({reason}): move the folder away and run the study again"
    )
