"""From MLflow to the results tables that leaderboards and dashboards show.

Only MLflow is read, never the run folders, so that the results of a shared server, sent from many
machines, load like one's own. Nothing that is read can run code: tags, JSON, Parquet, safetensors.
"""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
from collections.abc import Container, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from dipa_bench import names
from dipa_bench.errors import UserError
from dipa_bench.tracking import records, settings_table
from dipa_bench.tracking.connection import asked, guarded, reader
from dipa_bench.tracking.location import redacted
from dipa_bench.tracking.mlflow_format import decode, experiment_name
from dipa_bench.tracking.records import RECORD, RunRecord, Scalar
from dipa_bench.tracking.registry import SCHEME, find_model
from dipa_bench.tracking.results import TaskResults
from dipa_bench.tracking.tables import (
    ARTIFACTS,
    Facts,
    Tables,
    method_figures,
    selected,
    trial_figures,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)


def load_results(
    uri: str,
    task: str,
    *,
    study: str | None = None,
    protocol: str | None = None,
) -> TaskResults:
    """Reads what the store at `uri` knows about a task.

    Where a study holds a method more than once (it was run again in a new folder), the newest run
    counts.

    Args:
        uri: a resolved tracking address.
        task: the task's name.
        study: only this study, with its replicates, which are studies of their own; by default
            all.
        protocol: only rows under this protocol, ``"tuned"`` or ``"published"``; by default both.

    Raises:
        UserError: no runs of that task, or an unknown study or protocol.
        StoreUnavailable: nothing answers at `uri`.
    """
    if (client := reader(uri)) is None:
        raise _nothing(uri, task)
    with guarded(uri):
        runs = _runs(client, uri, task)
    methods = [run for run in runs if _tag(run, "kind") == "method"]
    parents = _newest([run for run in methods if _tag(run, "protocol")])
    if older := len(methods) - sum(bool(_tag(run, "protocol")) for run in methods):
        log.warning("%d runs of methods were sent by an older version and are left out", older)
    if not parents:
        raise _nothing(uri, task)
    parents = selected(parents, _facts, study, protocol)
    children: dict[str, list[Run]] = {run.info.run_id: [] for run in parents}
    for run in runs:
        if (parent := run.data.tags.get("mlflow.parentRunId")) in children:
            children[parent].append(run)
    tables = Tables()
    for parent in parents:
        own = children[parent.info.run_id]
        trials = [_trial_row(client, child) for child in own if _tag(child, "kind") == "trial"]
        with _artifacts(client, parent, ARTIFACTS) as files:
            trials += _settings(parent, files, {trial["number"] for trial in trials})
            tables.add(_method_row(client, parent, own), trials, files, partial(_damaged, parent))
    return tables.results(task)


def find_run(uri: str, run_id: str) -> RunRecord:
    """The record of an MLflow run, as it was sent.

    Args:
        uri: a resolved tracking address.
        run_id: the run's id in MLflow, or a registered model (`find_model`).

    Raises:
        UserError: there is no such run, or it has no record.
        StoreUnavailable: nothing answers at `uri`.
    """
    if run_id.startswith(SCHEME):
        run_id = find_model(uri, run_id)
    missing = UserError(
        f"no run {run_id!r} in {redacted(uri)}: copy the id from MLflow, or name another store "
        "with --tracking-uri"
    )
    client, run = asked(uri, lambda client: (client, client.get_run(run_id)), missing)
    return _record(client, run)


# ---------------------------------------------------------------------------- rows


def _method_row(client: MlflowClient, run: Run, children: list[Run]) -> dict[str, Any]:
    params, figures = _params(client, run), _metrics(run)
    kinds = [(_tag(child, "kind"), _tag(child, "state")) for child in children]
    return {
        **{name: _tag(run, name) for name in ("study", "method", "title", "operator", "rule")},
        **{name: _tag(run, name) for name in ("protocol", "preset", "state")},
        "learned": _tag(run, "learned") == "true",
        "reason": _tag(run, "reason") or None,
        "trials": int(figures.get("search/trials", kinds.count(("trial", "finished")))),
        **method_figures(figures),
        "start": params.get("solve.start"),
        "learns_from": _tag(run, "note.learns_from") or None,
        "reference": _tag(run, "reference") or None,
        "caveat": _tag(run, "note.caveat") or None,
        "contains": _tag(run, "note.contains") or None,
        "params": params,
        "run_id": run.info.run_id,
        "started": _started(run),
        "replicate": int(_tag(run, "replicate") or 0),
        "replicate_of": _replicate_of(run),
        "setting": _tag(run, "setting"),
    }


def _trial_row(client: MlflowClient, run: Run) -> dict[str, Any]:
    figures, number = _metrics(run), int(_tag(run, "number") or 0)
    return {
        "number": number,
        "index": int(_tag(run, "note.index") or number),
        "state": _tag(run, "state"),
        **trial_figures(figures),
        "params": _params(client, run),
        "reason": _tag(run, "reason") or None,
    }


def _settings(
    parent: Run, files: Mapping[str, Path], shown: Container[int]
) -> list[dict[str, Any]]:
    """The trials in an entry's table of settings, but for those that are runs of their own."""
    if names.SETTINGS not in files:
        return []
    try:
        rows = settings_table.read(files[names.SETTINGS])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise _damaged(parent, f"{names.SETTINGS}: {error}") from None
    return [row for row in rows if row["number"] not in shown]


# ---------------------------------------------------------------------------- runs


def _nothing(uri: str, task: str) -> UserError:
    return UserError(
        f"no runs of task {task!r} in {redacted(uri)}: make some with `dipa-bench study --task "
        f"{task}`, or name another store with --tracking-uri"
    )


def _runs(client: MlflowClient, uri: str, task: str) -> list[Run]:
    """Every run of a task, page by page."""
    experiment = client.get_experiment_by_name(experiment_name(task))
    if experiment is None or experiment.lifecycle_stage != "active":
        raise _nothing(uri, task)
    runs: list[Run] = []
    token: str | None = None
    while True:
        page = client.search_runs(
            [experiment.experiment_id],
            "tags.`dipa.kind` != ''",
            max_results=1000,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        runs += page
        token = page.token
        if not token:
            return runs


def _newest(runs: list[Run]) -> list[Run]:
    """The newest run for each study and method, in the order of studies and starting times."""
    chosen: dict[tuple[str, str], Run] = {}
    for run in sorted(runs, key=lambda run: (_started(run), run.info.start_time)):
        chosen[_tag(run, "study"), _tag(run, "method")] = run
    return sorted(
        chosen.values(), key=lambda run: (_tag(run, "study"), _started(run), _tag(run, "method"))
    )


def _facts(run: Run) -> Facts:
    return Facts(_tag(run, "study"), _replicate_of(run), _tag(run, "protocol"))


def _tag(run: Run, name: str) -> str:
    return run.data.tags.get(f"dipa.{name}", "")


def _replicate_of(run: Run) -> str:
    """The study whose method's run replicates; its own for the first one."""
    return _tag(run, "replicate_of") or _tag(run, "study")


def _started(run: Run) -> float:
    try:
        return float(_tag(run, "started"))
    except ValueError:
        return run.info.start_time / 1000


def _metrics(run: Run) -> dict[str, float]:
    """A run's figures; NaN, also where there is only a curve, and infinity come from a tag."""
    figures = dict(run.data.metrics)
    with contextlib.suppress(ValueError, AttributeError):
        figures |= {
            name: float(value) for name, value in json.loads(_tag(run, "nonfinite")).items()
        }
    return figures


def _params(client: MlflowClient, run: Run) -> dict[str, Scalar]:
    """A run's hyper-parameters; MLflow cannot change them, so later ones come from a tag."""
    if text := _tag(run, "params"):
        try:
            return dict(json.loads(text))
        except ValueError:
            return dict(_record(client, run).params)
    return {name: decode(value) for name, value in run.data.params.items()}


# ---------------------------------------------------------------------------- files


def _record(client: MlflowClient, run: Run) -> RunRecord:
    with _artifacts(client, run, (RECORD,)) as files:
        if RECORD not in files:
            raise UserError(
                f"run {run.info.run_id} has no {RECORD}: it was not sent by dipa-bench, or its "
                "artifacts are gone; give a run folder instead"
            )
        return records.read(files[RECORD].parent)


@contextlib.contextmanager
def _artifacts(
    client: MlflowClient, run: Run, wanted: tuple[str, ...]
) -> Iterator[dict[str, Path]]:
    """Those of a run's files that exist: in place if they are on this machine, else fetched."""
    place = _local(run.info.artifact_uri)
    if place is not None and place.is_dir():
        yield {name: place / name for name in wanted if (place / name).is_file()}
        return
    if place is not None:
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="dipa-bench-") as folder:
        with guarded(client.tracking_uri):
            there = {info.path for info in client.list_artifacts(run.info.run_id)}
            files = {
                name: Path(client.download_artifacts(run.info.run_id, name, folder))
                for name in wanted
                if name in there
            }
        yield files


def _local(uri: str) -> Path | None:
    """The folder that an artifact address stands for, if it is a path."""
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Path(url2pathname(parts.path))
    return Path(uri) if not parts.scheme or len(parts.scheme) == 1 else None


def _damaged(run: Run, reason: str) -> UserError:
    return UserError(
        f"damaged file of run {run.info.run_id}, {_tag(run, 'study')} / {_tag(run, 'method')} "
        f"({reason}): send it again with `dipa-bench sync`, or delete the run in MLflow"
    )
