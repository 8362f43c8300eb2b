"""MLflow: run folders are sent to the store that a plain ``mlflow ui`` would open.

A record is on disk before anything is sent (see `dipa_bench.tracking.records`), so a store that is
down loses nothing. Beside each record that was sent lies a ``mlflow.json`` that says where it went
and what it was; `sync` sends what is new or has changed since, and nothing twice.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dipa_bench import names
from dipa_bench.errors import UserError
from dipa_bench.tracking import records, registry, settings_table, sync_state
from dipa_bench.tracking.connection import StoreUnavailable, connect, guarded
from dipa_bench.tracking.location import redacted, sqlite_path
from dipa_bench.tracking.mlflow_format import (
    MAX_TAG,
    STATUS,
    clean_key,
    experiment_name,
    figures_of,
    params_of,
    points_of,
    run_name,
    tags_of,
)
from dipa_bench.tracking.records import RunRecord

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

MAX_METRICS, MAX_PARAMS, MAX_TAGS = 800, 100, 100  # a batch of MLflow takes 1000 entries in all


@dataclass(frozen=True)
class SyncReport:
    """What came of sending runs.

    Attributes:
        sent: runs that were new or had changed.
        unchanged: runs that the store already had.
        failed: a line for each run that could not be sent.
    """

    sent: int = 0
    unchanged: int = 0
    failed: tuple[str, ...] = ()

    def __add__(self, other: SyncReport) -> SyncReport:
        return SyncReport(
            self.sent + other.sent, self.unchanged + other.unchanged, self.failed + other.failed
        )


class Store:
    """A tracking store that takes run folders.

    Args:
        uri: a resolved address (`dipa_bench.tracking.location.resolve_uri`).

    Raises:
        StoreUnavailable: nothing answers there, within about ten seconds.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._client = connect(uri)
        self._experiments: dict[str, str] = {}

    def send_method(self, folder: Path) -> SyncReport:
        """Sends a method's run and those of its trials and seeds that are new or have changed.

        Args:
            folder: the method's run folder.

        Returns:
            What was sent; a child with a damaged record is a line in ``failed``.

        Raises:
            UserError: the method's own record is missing or damaged.
            StoreUnavailable: the store stopped answering; what was sent so far is noted.
        """
        record = records.read(folder)
        winner = record.notes.get("winner")
        children, failed = _children(folder)
        settings = [child for child in children.values() if settings_table.belongs(child)]
        if settings:
            table = folder / names.SETTINGS
            settings_table.write(table, sorted(settings, key=lambda child: child.number))
        with guarded(self.uri):
            parent, changed, fresh = self._send(folder, record)
            report = SyncReport(sent=int(changed), unchanged=int(not changed), failed=failed)
            for place, child in children.items():
                if settings_table.belongs(child):
                    continue
                won = child.kind == "trial" and winner is not None and child.number == winner
                _, changed, _ = self._send(place, child, parent, won, fresh)
                report += SyncReport(sent=int(changed), unchanged=int(not changed))
        return report

    def _send(
        self,
        folder: Path,
        record: RunRecord,
        parent: str = "",
        won: bool = False,
        unknown: bool = False,
    ) -> tuple[str, bool, bool]:
        """Sends one run folder unless it is as it was.

        Args:
            folder: of the run.
            record: in it.
            parent: id of the method's run, which is sent before its children.
            won: whether it is the trial that won the search.
            unknown: whether the store cannot have the run, since it had not even the parent.

        Returns:
            The run's id, whether it went, and whether it was new to the store.
        """
        winner = registry.is_model(record)
        if winner:
            registry.write_model(folder, record)
        now = sync_state.fingerprint(folder, redacted(self.uri), parent, won)
        before = sync_state.read_note(folder)
        if before is not None and all(before.get(name) == value for name, value in now.items()):
            return before["run_id"], False, False
        experiment = self._experiment(record.task)
        tags = tags_of(record, sync_state.identity(folder, record), parent, won)
        if names.SETTINGS in now["files"]:
            tags |= settings_table.TAG
        known = None if unknown else self._known(before, experiment, tags["dipa.key"])
        if known is not None:
            self._update(known, record, tags)
        run = known or self._create(experiment, record, tags)
        run_id = run.info.run_id
        for name in now["files"]:
            self._client.log_artifact(run_id, str(folder / name))
        self._close(run_id, record)
        if winner:
            registry.register(self._client, run, record)
        sync_state.write_note(folder, {**now, "run_id": run_id})
        return run_id, True, known is None

    def _experiment(self, task: str) -> str:
        """The id of the task's experiment, which is made if there is none."""
        if task in self._experiments:
            return self._experiments[task]
        name = experiment_name(task)
        found = self._client.get_experiment_by_name(name)
        if found is None:
            path = sqlite_path(self.uri)
            slug = re.sub(r"[^\w.-]", "-", name)
            place = str(path.parent / "mlruns" / slug) if path else None
            identifier = self._client.create_experiment(name, artifact_location=place)
        elif found.lifecycle_stage != "active":
            raise StoreUnavailable(
                f"the experiment {name!r} was deleted in {redacted(self.uri)}: bring it back with "
                f"`mlflow experiments restore -x {found.experiment_id}`, then `dipa-bench sync`"
            )
        else:
            identifier = found.experiment_id
        self._experiments[task] = identifier
        return identifier

    def _known(self, before: dict[str, Any] | None, experiment: str, key: str) -> Run | None:
        """The run that already stands for a folder, also after a crash before it was noted."""
        from mlflow.exceptions import MlflowException

        if before is not None and before["uri"] == redacted(self.uri):
            try:
                run = self._client.get_run(before["run_id"])
                if run.info.lifecycle_stage == "active":
                    return run
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        found = self._client.search_runs([experiment], f"tags.`dipa.key` = '{key}'", max_results=1)
        return found[0] if found else None

    def _create(self, experiment: str, record: RunRecord, tags: dict[str, str]) -> Run:
        first = dict(list(tags.items())[:MAX_TAGS])
        run = self._client.create_run(
            experiment,
            start_time=int(record.started * 1000) or None,
            tags=first,
            run_name=run_name(record),
        )
        stamp = int(record.finished * 1000) or int(time.time() * 1000)
        late = {name: value for name, value in tags.items() if name not in first}
        metrics = points_of(record, stamp) + figures_of(record, stamp)
        self._log(run.info.run_id, metrics, params_of(record), late)
        return run

    def _update(self, run: Run, record: RunRecord, tags: dict[str, str]) -> None:
        """Brings a run up to date: params cannot change, metrics only by a later value."""
        run_id, data = run.info.run_id, run.data
        params = params_of(record)
        if any(data.params.get(key, value) != value for key, value in params.items()):
            text = json.dumps(record.params)
            tags["dipa.params"] = text if len(text) <= MAX_TAG else "see record.json"
        for name in data.tags:
            if name.startswith("dipa.") and name not in tags:
                self._client.delete_tag(run_id, name)
        changed = {name: value for name, value in tags.items() if data.tags.get(name) != value}
        fresh = {key: value for key, value in params.items() if key not in data.params}
        self._log(run_id, self._news(run, record), fresh, changed)

    def _news(self, run: Run, record: RunRecord) -> list[Metric]:
        """The points and figures of a record that its run does not show yet."""
        latest, stamp = run.data.metrics, int(time.time() * 1000) + 2
        shown = {
            (key, point.step, point.value)
            for key in map(clean_key, record.series)
            if key in latest
            for point in self._client.get_metric_history(run.info.run_id, key)
        }
        points = [
            point
            for point in points_of(record, stamp)
            if (point.key, point.step, point.value) not in shown
        ]
        moved = {point.key for point in points}
        figures = [
            figure
            for figure in figures_of(record, stamp)
            if figure.key in moved or latest.get(figure.key) != figure.value
        ]
        return points + figures

    def _log(
        self, run_id: str, metrics: list[Metric], params: dict[str, str], tags: dict[str, str]
    ) -> None:
        """Logs all in one batch, or in as many as the limits ask for."""
        from mlflow.entities import Param, RunTag

        all_params = [Param(key, value) for key, value in params.items()]
        all_tags = [RunTag(key, value) for key, value in tags.items()]
        while metrics or all_params or all_tags:
            self._client.log_batch(
                run_id, metrics[:MAX_METRICS], all_params[:MAX_PARAMS], all_tags[:MAX_TAGS]
            )
            metrics = metrics[MAX_METRICS:]
            all_params, all_tags = all_params[MAX_PARAMS:], all_tags[MAX_TAGS:]

    def _close(self, run_id: str, record: RunRecord) -> None:
        status = STATUS[record.state]
        if status == "RUNNING":
            self._client.update_run(run_id, status=status)
        else:
            end = int((record.finished or record.started) * 1000) or None
            self._client.set_terminated(run_id, status=status, end_time=end)


def _children(folder: Path) -> tuple[dict[Path, RunRecord], tuple[str, ...]]:
    """The records below an entry's folder, and a line for each that is damaged."""
    found, failed = {}, []
    for place in records.children(folder):
        try:
            found[place] = records.read(place)
        except UserError as error:
            failed.append(str(error))
    return found, tuple(failed)


def sync(root: Path, uri: str, rebuild: bool = False) -> SyncReport:
    """Sends every run below a results folder that the store does not have as it is now.

    Args:
        root: the results folder (``mlruns/``).
        uri: a resolved address.
        rebuild: send all, whatever was noted as sent; runs that the store has are recognised.

    Returns:
        What was sent, was there already, or failed; damaged records do not stop the others.

    Raises:
        StoreUnavailable: nothing answers there.
    """
    store, report = Store(uri), SyncReport()
    for folder in records.method_folders(root):
        if rebuild:
            sync_state.forget(folder)
        try:
            report += store.send_method(folder)
        except UserError as error:
            report += SyncReport(failed=(str(error),))
        except StoreUnavailable as error:
            connect(uri)  # refused this one, or gone altogether?
            report += SyncReport(failed=(f"{folder}: {error}",))
    return report
