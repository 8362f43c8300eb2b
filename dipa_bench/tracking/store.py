"""MLflow: run folders are sent to the store that a plain ``mlflow ui`` would open.

A record is on disk before anything is sent (see `dipa_bench.tracking.records`), so a store that is
down loses nothing. Beside each record that was sent lies a ``mlflow.json`` that says where it went
and what it was; `sync` sends what is new or has changed since, and nothing twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import html
import importlib.metadata
import json
import logging
import math
import os
import re
import socket
import sqlite3
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from dipa_bench.errors import UserError
from dipa_bench.tracking import records
from dipa_bench.tracking.records import RECORD, RunRecord, Scalar

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

SENT = "mlflow.json"
IDENTITY = ".identity"
EXPERIMENT = "dipa-bench/"
STATUS = {
    "running": "RUNNING",
    "finished": "FINISHED",
    "skipped": "FINISHED",
    "pruned": "KILLED",
    "interrupted": "KILLED",
    "failed": "FAILED",
    "diverged": "FAILED",
}
SERIES_POINTS = 100
MAX_METRICS, MAX_PARAMS, MAX_TAGS = 800, 100, 100  # a batch of MLflow takes 1000 entries in all
MAX_KEY, MAX_PARAM, MAX_TAG = 250, 6000, 5000  # characters

_FAMILIES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
_PLUGINS = "mlflow.tracking_store"  # entry points of further kinds of store
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_QUIET = ("mlflow", "alembic", "urllib3.connectionpool")
_PROBE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "4"}
_SEND = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
_ALWAYS = {
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_environment_lock = threading.RLock()


class StoreUnavailable(Exception):
    """The tracking store did not answer or refused; the records are on disk and can go later."""


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


# ---------------------------------------------------------------------------- which store


def resolve_uri(explicit: str | None, root_cwd: Path) -> str:
    """The tracking store's address: `explicit`, else ``MLFLOW_TRACKING_URI``, else MLflow's own.

    MLflow's own is the file ``mlflow.db`` in the working directory, which ``mlflow ui`` opens too.
    Relative SQLite paths are made absolute, so that the address means the same everywhere.

    Args:
        explicit: what the user gave as ``--tracking-uri``, if anything.
        root_cwd: the working directory.

    Raises:
        UserError: the address is a folder (the old file store), or of a kind MLflow does not know.
    """
    uri = explicit or os.environ.get("MLFLOW_TRACKING_URI") or ""
    if not uri:
        _refuse_old_runs(root_cwd)
        return sqlite_uri(root_cwd.absolute() / "mlflow.db")
    if uri in {"databricks", "databricks-uc", "uc"}:
        return uri
    family = _family(uri)
    if family in {"", "file"} or len(family) == 1:
        raise UserError(
            f"tracking address {uri!r} is a folder, and MLflow 3 has closed its file store: give a "
            f"database such as --tracking-uri sqlite:///mlflow.db (MLFLOW_TRACKING_URI is read too)"
        )
    if family == "sqlite":
        return _absolute_sqlite(uri, root_cwd)
    plugins = {entry.name for entry in importlib.metadata.entry_points(group=_PLUGINS)}
    if family not in {*_FAMILIES, *plugins}:
        raise UserError(
            f"tracking address {redacted(uri)!r} is of no kind that MLflow knows: give "
            "sqlite:///mlflow.db, an http(s):// server or a postgresql:// or mysql:// database"
        )
    return uri


def sqlite_uri(path: Path) -> str:
    """The address of an SQLite file; only what would end a path in an address is quoted."""
    text = path.as_posix()
    for character in "%?#":
        text = text.replace(character, f"%{ord(character):02X}")
    return "sqlite:///" + text


def redacted(uri: str) -> str:
    """`uri` without what may be secret: user, password, query and fragment."""
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return uri
    if _family(uri) != "sqlite" and "@" in rest:
        rest = "***@" + rest.rpartition("@")[2]
    if match := re.search("[?#]", rest):
        rest = rest[: match.start() + 1] + "***"
    return f"{scheme}://{rest}"


def ui_command(uri: str, port: int) -> list[str]:
    """The command that shows a store in the browser, reachable from this machine only.

    Args:
        uri: a resolved address of a database.
        port: the TCP port to listen at.

    Raises:
        UserError: the address is a server already.
    """
    if _family(uri) in {"http", "https"}:
        raise UserError(f"{redacted(uri)} is a server already: open it in a browser")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri]
    if path := sqlite_path(uri):
        command += ["--artifacts-destination", str(path.parent / "mlruns")]
    return [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]


def sqlite_path(uri: str) -> Path | None:
    """The file behind an SQLite address, or None for another kind of store."""
    if _family(uri) != "sqlite":
        return None
    return Path(unquote(uri.partition(":///")[2].partition("?")[0]))


def _family(uri: str) -> str:
    """``postgresql`` for ``postgresql+psycopg2://...``; ``""`` for a plain path."""
    match = re.match(r"([A-Za-z][\w.+-]*):", uri)
    return match.group(1).lower().partition("+")[0] if match else ""


def _absolute_sqlite(uri: str, root_cwd: Path) -> str:
    path = sqlite_path(uri)
    if path is None or str(path) in {".", ":memory:"}:
        raise UserError(f"tracking address {uri!r} names no file: give sqlite:///mlflow.db")
    query = uri.partition("?")
    return sqlite_uri(root_cwd.absolute() / path) + "".join(query[1:])


def _refuse_old_runs(root_cwd: Path) -> None:
    """MLflow's default falls back on a file store that exists, and then refuses to open it."""
    for meta in (root_cwd / "mlruns").glob("*/meta.yaml"):
        if meta.parent.name.isdigit():
            raise UserError(
                f"{root_cwd / 'mlruns'} holds runs of MLflow's closed file store: convert them "
                "with `mlflow migrate-filestore`, or give --tracking-uri sqlite:///mlflow.db"
            )


# ---------------------------------------------------------------------------- reaching it


def connect(uri: str) -> MlflowClient:
    """A client of the store at `uri`, after having seen that it answers.

    A new SQLite database is made at once, whole: one second, in the parent, before any worker.

    Args:
        uri: a resolved address.

    Raises:
        StoreUnavailable: nothing answers there, within about ten seconds.
    """
    with guarded(uri, _PROBE):
        from mlflow import MlflowClient

        if (path := sqlite_path(uri)) is not None:
            _prepare_sqlite(path)
        elif _family(uri) in _PORTS:
            _probe_database(uri)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
        return client


@contextlib.contextmanager
def guarded(uri: str, patience: dict[str, str] | None = None) -> Iterator[None]:
    """Calls to MLflow: with little patience, quietly, and failing as `StoreUnavailable` only.

    MLflow's HTTP client would retry for minutes. Its patience is set by environment variables that
    it reads at each request; those that the user has set are left alone.
    """
    with _environment({**_ALWAYS, **(patience or _SEND)}), _quiet():
        try:
            yield
        except (UserError, StoreUnavailable):
            raise
        except Exception as error:
            # No chained exception: its text may hold the password in the address.
            raise StoreUnavailable(_unavailable(uri, error)) from None


def _unavailable(uri: str, error: Exception) -> str:
    text = (str(error).strip().splitlines() or [""])[0].replace(uri, redacted(uri))
    if _family(uri) != "sqlite":
        user = uri.partition("://")[2].rpartition("@")[0]
        for secret in (user, user.partition(":")[2], uri.partition("?")[2]):
            text = text.replace(secret, "***") if secret else text
            text = text.replace(unquote(secret), "***") if secret else text
    reason = type(error).__name__ + (f": {text[:300]}" if text else "")
    return (
        f"the tracking store {redacted(uri)} does not take or give runs ({reason}); results stay "
        "on disk: send them with `dipa-bench sync` once it answers, or to another --tracking-uri"
    )


@contextlib.contextmanager
def _environment(defaults: dict[str, str]) -> Iterator[None]:
    """Sets environment variables that are not set, for as long as the context lasts."""
    with _environment_lock:
        added = [name for name in defaults if name not in os.environ]
        os.environ.update({name: defaults[name] for name in added})
        try:
            yield
        finally:
            for name in added:
                os.environ.pop(name, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps notices of migrations and retries off the terminal."""
    import mlflow  # noqa: F401  its import sets the level of its logger

    before = {name: logging.getLogger(name).level for name in _QUIET}
    try:
        for name in _QUIET:
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def _prepare_sqlite(path: Path) -> None:
    """Makes the database if there is none; else sees whether it opens (MLflow tries for 100 s).

    MLflow fills a new database by many migrations. They run on a file of another name, so that
    neither an interruption nor a second process leaves or meets half a database.
    """
    if path.exists():
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return
    from mlflow import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".mlflow-") as folder:
        migrated, copy = Path(folder) / "migrated.db", Path(folder) / "copy.db"
        MlflowClient(tracking_uri=sqlite_uri(migrated))
        with (
            contextlib.closing(sqlite3.connect(migrated)) as source,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
        _first_wins(copy, path)


def _first_wins(temporary: Path, path: Path) -> None:
    """Gives `temporary` the name `path` unless another process was faster."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        os.replace(temporary, path)


def _probe_database(uri: str) -> None:
    """Sees whether a database server lets us in (MLflow would retry for minutes)."""
    import sqlalchemy

    address = sqlalchemy.make_url(uri)
    if address.host:
        port = address.port or _PORTS[_family(uri)]
        socket.create_connection((address.host, port), timeout=5).close()
    engine = sqlalchemy.create_engine(uri)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


# ---------------------------------------------------------------------------- sending


class Store:
    """A tracking store that takes run folders.

    Args:
        uri: a resolved address (`resolve_uri`).

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
        with guarded(self.uri):
            parent, changed = self._send(folder, record)
            report = SyncReport(sent=int(changed), unchanged=int(not changed))
            for child in records.children(folder):
                report += self._send_child(child, parent, winner)
        return report

    def _send_child(self, folder: Path, parent: str, winner: Scalar) -> SyncReport:
        try:
            record = records.read(folder)
        except UserError as error:
            return SyncReport(failed=(str(error),))
        won = record.kind == "trial" and winner is not None and record.number == winner
        _, changed = self._send(folder, record, parent, won)
        return SyncReport(sent=int(changed), unchanged=int(not changed))

    def _send(
        self, folder: Path, record: RunRecord, parent: str = "", won: bool = False
    ) -> tuple[str, bool]:
        """Sends one run folder unless it is as it was; returns the run's id and whether it went."""
        now = _fingerprint(folder, redacted(self.uri), parent, won)
        before = _note(folder)
        if before is not None and all(before.get(name) == value for name, value in now.items()):
            return before["run_id"], False
        experiment = self._experiment(record.task)
        tags = _tags(record, _identity(_study_folder(folder, record)), parent, won)
        run = self._known(before, experiment, tags["dipa.key"])
        if run is None:
            run_id = self._create(experiment, record, tags)
        else:
            run_id = run.info.run_id
            self._update(run, record, tags)
        for name in now["files"]:
            self._client.log_artifact(run_id, str(folder / name))
        self._close(run_id, record)
        _write_json(folder / SENT, {**now, "run_id": run_id})
        return run_id, True

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

    def _create(self, experiment: str, record: RunRecord, tags: dict[str, str]) -> str:
        first = dict(list(tags.items())[:MAX_TAGS])
        run = self._client.create_run(
            experiment,
            start_time=int(record.started * 1000) or None,
            tags=first,
            run_name=record.name[:MAX_KEY],
        )
        stamp = int(record.finished * 1000) or int(time.time() * 1000)
        late = {name: value for name, value in tags.items() if name not in first}
        metrics = _points(record, stamp) + _figures(record, stamp)
        self._log(run.info.run_id, metrics, _params(record), late)
        return run.info.run_id

    def _update(self, run: Run, record: RunRecord, tags: dict[str, str]) -> None:
        """Brings a run up to date: params cannot change, metrics only by a later value."""
        run_id, data = run.info.run_id, run.data
        params = _params(record)
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
            for key in map(_key, record.series)
            if key in latest
            for point in self._client.get_metric_history(run.info.run_id, key)
        }
        points = [
            point
            for point in _points(record, stamp)
            if (point.key, point.step, point.value) not in shown
        ]
        moved = {point.key for point in points}
        figures = [
            figure
            for figure in _figures(record, stamp)
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


def sync(root: Path, uri: str) -> SyncReport:
    """Sends every run below a results folder that the store does not have as it is now.

    Args:
        root: the results folder (``mlruns/``).
        uri: a resolved address.

    Returns:
        What was sent, was there already, or failed; damaged records do not stop the others.

    Raises:
        StoreUnavailable: nothing answers there.
    """
    store, report = Store(uri), SyncReport()
    for folder in records.method_folders(root):
        try:
            report += store.send_method(folder)
        except UserError as error:
            report += SyncReport(failed=(str(error),))
        except StoreUnavailable as error:
            connect(uri)  # refused this one, or gone altogether?
            report += SyncReport(failed=(f"{folder}: {error}",))
    return report


def experiment_name(task: str) -> str:
    """The MLflow experiment that holds a task's runs."""
    return (EXPERIMENT + task)[:500]


# ---------------------------------------------------------------------------- what was sent


def _fingerprint(folder: Path, uri: str, parent: str, won: bool) -> dict[str, Any]:
    """Everything that decides whether a run folder must be sent again."""
    return {
        "uri": uri,
        "record": hashlib.sha256((folder / RECORD).read_bytes()).hexdigest(),
        "files": {path.name: path.stat().st_size for path in _artifacts(folder)},
        "parent": parent,
        "winner": won,
    }


def _artifacts(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file()
        and not path.is_symlink()
        and not path.name.startswith(".")
        and path.name != SENT
    )


def _note(folder: Path) -> dict[str, Any] | None:
    """What ``mlflow.json`` says, or None if it is missing or damaged (the store is asked then)."""
    try:
        note = json.loads((folder / SENT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(note, dict):
        return None
    return note if all(isinstance(note.get(name), str) for name in ("uri", "run_id")) else None


def _write_json(path: Path, value: object) -> None:
    """Writes a small file so that a crash leaves either the old or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=1), encoding="utf-8")
    os.replace(temporary, path)


def _study_folder(folder: Path, record: RunRecord) -> Path:
    return folder.parent if record.kind == "method" else folder.parent.parent


def _identity(study: Path) -> str:
    """What tells this study folder from others of its name; it moves along with the folder."""
    path = study / IDENTITY
    if not path.exists():
        temporary = study / f"{IDENTITY}.{os.getpid()}.tmp"
        temporary.write_text(uuid.uuid4().hex, encoding="ascii")
        _first_wins(temporary, path)
        temporary.unlink(missing_ok=True)
    return path.read_text(encoding="ascii").strip()


# ---------------------------------------------------------------------------- in MLflow's terms


def _tags(record: RunRecord, identity: str, parent: str, won: bool) -> dict[str, str]:
    key = json.dumps([identity, record.method, record.kind, record.number])
    tags: dict[str, Scalar] = {
        "dipa.key": hashlib.sha256(key.encode()).hexdigest()[:32],
        "dipa.kind": record.kind,
        "dipa.study": record.study,
        "dipa.task": record.task,
        "dipa.method": record.method,
        "dipa.number": record.number,
        "dipa.state": record.state,
        "dipa.rules": record.rules,
        "dipa.preset": record.preset,
        "dipa.title": record.title,
        "dipa.operator": record.operator,
        "dipa.rule": record.rule,
        "dipa.learned": record.learned,
        "dipa.data_digest": record.data_digest,
        "dipa.reason": record.reason,
        "dipa.winner": True if won else None,
        "dipa.started": repr(record.started),
        "dipa.nonfinite": _nonfinite(record),
        "mlflow.parentRunId": parent or None,
        "mlflow.source.name": "dipa-bench",
        "mlflow.note.content": _description(record),
    }
    tags |= {f"dipa.note.{_key(name)}": value for name, value in record.notes.items()}
    tags |= {f"dipa.env.{_key(name)}": value for name, value in record.environment.items()}
    if "winner" in record.notes:
        tags["dipa.winner_trial"] = record.notes["winner"]
    return {name[:MAX_KEY]: _text(value) for name, value in tags.items() if value is not None}


def _text(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)[:MAX_TAG]


def _description(record: RunRecord) -> str:
    """What a stranger reads at the top of the run's page."""
    row = f"**{html.escape(record.title or record.method)}** (`{record.method}`)"
    where = f"task `{record.task}`, study `{record.study}`, {record.rules} rules"
    again = "`dipa-bench rerun` with this run's id repeats it."
    if record.kind == "trial":
        text = (
            f"Trial {record.number} of the search for the hyper-parameters of {row}: {where}. "
            "Measured on validation images; `val/psnr` in dB, more is better."
        )
    elif record.kind == "seed":
        text = (
            f"The winner of the search of {row}, fitted again with seed {record.seed} and measured "
            f"once on test images: {where}. `test/psnr` in dB, more is better."
        )
    else:
        text = (
            f"{row}, a preconditioner or competitor of iterative image reconstruction: {where}. "
            f"Operator: {record.operator or '-'}; learning rule: {record.rule or '-'}. Its child "
            "runs are the trials of the search and the winner's seeds; metrics and params are the "
            "winner's, measured on test images."
        )
    ending = f" State: {record.state}" + (
        f" ({html.escape(record.reason)})." if record.reason else "."
    )
    return text + ending + " " + again


def _params(record: RunRecord) -> dict[str, str]:
    """Hyper-parameters as MLflow's texts; `dipa_bench.tracking.load` reads the types back."""
    return {_key(name): encode(value)[:MAX_PARAM] for name, value in record.params.items()}


def encode(value: Scalar) -> str:
    """A value as text: JSON, but a word stays plain unless it would read as something else."""
    if not isinstance(value, str):
        return json.dumps(value)
    return value if value and decode(value) == value else json.dumps(value)


def decode(text: str) -> Scalar:
    """The value that `encode` wrote."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, bool | int | float | str | None) else text


def _key(name: str) -> str:
    """`name` with what MLflow does not take in names of metrics and params replaced by ``_``."""
    clean = re.sub(r"[^\w.\- :/]", "_", name)
    clean = "/".join(part if part.strip(".") else "_" for part in clean.split("/"))
    return re.sub(r"^\.\.", "__", clean)[:MAX_KEY]


def _nonfinite(record: RunRecord) -> str | None:
    """What a run's latest metrics get wrong, as a tag: name to ``"nan"``, ``"inf"``, ``"-inf"``.

    Stores keep NaN and infinity in different ways (as 0, as 1.8e308), so none is sent; and the last
    point of a series looks like a figure of that name where a record has none.
    """
    values = {name: "nan" for name in record.series if name not in record.metrics}
    values |= {name: str(v) for name, v in record.metrics.items() if not math.isfinite(v)}
    return json.dumps({_key(name): text for name, text in values.items()}) if values else None


def _points(record: RunRecord, stamp: int) -> list[Metric]:
    """The points of a record's series, all of the time `stamp` [ms]."""
    from mlflow.entities import Metric

    return [
        Metric(_key(name), value, stamp, step)
        for name, points in record.series.items()
        for step, value in _shown(points)
    ]


def _figures(record: RunRecord, stamp: int) -> list[Metric]:
    """A record's figures; one that bears a series' name comes after the series' last point."""
    from mlflow.entities import Metric

    last = {
        name: max((step for step, _ in _shown(points)), default=0)
        for name, points in record.series.items()
    }
    return [
        Metric(_key(name), float(value), stamp + 1, last.get(name, 0))
        for name, value in record.metrics.items()
        if math.isfinite(value)
    ]


def _shown(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    return thinned([(step, float(value)) for step, value in points if math.isfinite(value)])


def thinned(points: list[Any], limit: int = SERIES_POINTS) -> list[Any]:
    """At most `limit` of `points`, evenly spread, the first and the last among them."""
    if len(points) <= limit:
        return points
    return [points[round(i * (len(points) - 1) / (limit - 1))] for i in range(limit)]
