"""Reaching a store: a client that answers soon and quietly, or `StoreUnavailable`."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote

from dipa_bench.errors import UserError
from dipa_bench.files import first_wins
from dipa_bench.tracking.location import family, redacted, sqlite_path, sqlite_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

Answer = TypeVar("Answer")
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_QUIET = ("mlflow", "alembic", "urllib3.connectionpool")
_PROBE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "4"}
_SEND = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
_ALWAYS = {
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",  # a study talks to nobody but its store
}
_environment_lock = threading.RLock()


class StoreUnavailable(Exception):
    """The tracking store did not answer or refused; the records are on disk and can go later."""


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
        elif family(uri) in _PORTS:
            _probe_database(uri)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        client.search_experiments(max_results=1)
        return client


def reader(uri: str) -> MlflowClient | None:
    """A client for reading the store at `uri`; None for a database that is not there, nor made.

    Raises:
        StoreUnavailable: nothing answers there, within about ten seconds.
    """
    path = sqlite_path(uri)
    return None if path is not None and not path.exists() else connect(uri)


def asked(uri: str, question: Callable[[MlflowClient], Answer], missing: UserError) -> Answer:
    """What a store answers to a question about one of its things.

    Args:
        uri: a resolved address.
        question: asks a client of the store.
        missing: raised where there is no store, or no such thing in it.

    Raises:
        StoreUnavailable: nothing answers there, within about ten seconds.
    """
    from mlflow.exceptions import MlflowException

    if (client := reader(uri)) is None:
        raise missing
    with guarded(uri):
        try:
            return question(client)
        except MlflowException as error:
            if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
                raise missing from None
            raise


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
    text = without_secrets((str(error).strip().splitlines() or [""])[0], uri)
    reason = type(error).__name__ + (f": {text[:300]}" if text else "")
    return (
        f"the tracking store {redacted(uri)} does not take or give runs ({reason}); results stay "
        "on disk: send them with `dipa-bench sync` once it answers, or to another --tracking-uri"
    )


def without_secrets(text: str, uri: str) -> str:
    """A message without what may be secret in the address `uri`: user, password and query."""
    text = text.replace(uri, redacted(uri))
    if family(uri) == "sqlite":
        return text
    user = uri.partition("://")[2].rpartition("@")[0]
    for secret in (user, user.partition(":")[2], uri.partition("?")[2]):
        text = text.replace(secret, "***") if secret else text
        text = text.replace(unquote(secret), "***") if secret else text
    return text


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
            logging.getLogger(name).setLevel(logging.CRITICAL)
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
        first_wins(copy, path)


def _probe_database(uri: str) -> None:
    """Sees whether a database server lets us in (MLflow would retry for minutes)."""
    import sqlalchemy

    address = sqlalchemy.make_url(uri)
    if address.host:
        port = address.port or _PORTS[family(uri)]
        socket.create_connection((address.host, port), timeout=5).close()
    engine = sqlalchemy.create_engine(uri)
    try:
        engine.connect().close()
    finally:
        engine.dispose()
