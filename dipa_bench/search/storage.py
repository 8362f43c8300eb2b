"""Optuna's storage on a database server, which many machines share."""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
import warnings
from collections.abc import Callable
from typing import TypeVar

import optuna
import sqlalchemy.exc
from tenacity import (
    Retrying,
    before_sleep_log,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
)
from tenacity import wait_random_exponential as growing

from dipa_bench.errors import UserError, brief
from dipa_bench.tracking.connection import without_secrets
from dipa_bench.tracking.location import family, redacted

log = logging.getLogger(__name__)
VARIABLE = "DIPA_BENCH_STORAGE"  # an address with a password is better not on a command line
SERVERS = ("postgresql", "mysql")
DRIVERS = ("psycopg2", "psycopg")
HEARTBEAT = 15  # seconds between two signs of life of a trial
GRACE = 60  # seconds without one after which others take a trial over
OUTAGE = 600.0  # seconds that a database may be away before a study gives up
AWAY = (
    optuna.exceptions.StorageInternalError,
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.PendingRollbackError,
)
FIRST = Retrying(  # several machines may make the tables of an empty database at once
    retry=retry_if_exception_type((sqlalchemy.exc.IntegrityError, sqlalchemy.exc.ProgrammingError)),
    wait=growing(multiplier=0.2, max=2),
    stop=stop_after_attempt(6),
    reraise=True,
)

Result = TypeVar("Result")


def address(given: str | None) -> str | None:
    """The storage's address: `given`, else that of the environment; None for files.

    Raises:
        UserError: no server's address.
    """
    found = given or os.environ.get(VARIABLE) or None
    if found is None:
        return None
    kind = family(found)
    if kind == "sqlite":
        raise UserError(
            "--storage sqlite is for one process alone: leave --storage out (studies are kept in "
            "files), or give postgresql://user@host/database"
        )
    if kind not in SERVERS:
        raise UserError(
            f"--storage {redacted(found)!r}: give postgresql://user@host/database (or mysql://); "
            f"with a password better in {VARIABLE}"
        )
    return found


def connect(url: str) -> optuna.storages.RDBStorage:
    """Optuna's storage at `url`, with signs of life; its tables are made where there are none.

    Raises:
        UserError: nobody answers, we are not let in, or the driver is not installed.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return FIRST(
                optuna.storages.RDBStorage,
                _with_driver(url),
                engine_kwargs={"pool_pre_ping": True, "connect_args": {"connect_timeout": 10}},
                heartbeat_interval=HEARTBEAT,
                grace_period=GRACE,
            )
    except ImportError as error:
        raise UserError(
            f"--storage {redacted(url)} needs a driver ({_plain(url, error)}): "
            "pip install 'dipa-bench[cluster]'"
        ) from None
    except Exception as error:  # drivers raise their own kinds
        raise UserError(
            f"the storage {redacted(url)} does not answer or let us in ({_plain(url, error)})"
        ) from None


def _with_driver(url: str) -> str:
    """`url` with the PostgreSQL driver that is installed: SQLAlchemy's own choice has changed."""
    scheme, separator, rest = url.partition("://")
    if scheme != "postgresql":
        return url
    driver = next((name for name in DRIVERS if importlib.util.find_spec(name)), DRIVERS[0])
    return f"{scheme}+{driver}{separator}{rest}"


def _plain(url: str, error: Exception) -> str:
    """An error's first line without anything that may be secret."""
    return without_secrets(brief(error), url)


class StorageGone(UserError):
    """A database that did not come back; the study can be continued once it does."""


def retry(work: Callable[[], Result]) -> Result:
    """Does something with the database, again where it is away for a while.

    Once it did not come back within `OUTAGE` seconds, it is not waited for again before it answers.

    Raises:
        StorageGone: it did not come back.
    """
    again = Retrying(
        retry=retry_if_exception_type(AWAY),
        wait=growing(multiplier=0.2, max=10),
        stop=stop_after_delay(0.0 if _gone.is_set() else OUTAGE),
        before_sleep=before_sleep_log(log, logging.INFO),
        reraise=True,
    )
    try:
        found = again(work)
    except AWAY as error:
        _gone.set()
        raise StorageGone(
            f"the study's database is away ({type(error).__name__}) and did not come back within "
            f"{OUTAGE:g} s: run the same command to continue once it answers"
        ) from None
    _gone.clear()
    return found


_gone = threading.Event()


class Heartbeat:
    """Gives signs of life for the trials that this process runs, from a thread of its own.

    After a time without connection nobody may be taken for dead at once: the others' signs are
    missing as well.

    Args:
        storage: with heartbeats.
    """

    def __init__(self, storage: optuna.storages.RDBStorage) -> None:
        self._storage = storage
        self._alive: set[int] = set()
        self._lock = threading.Lock()
        self._failed = threading.Event()
        self._calm = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    @property
    def steady(self) -> bool:
        """Whether the others had time to give signs since the last failure."""
        return self._calm == 0

    def add(self, trial: int) -> None:
        """From now on the trial of that id lives."""
        with self._lock:
            self._alive.add(trial)
        retry(lambda: self._storage.record_heartbeat(trial))

    def drop(self, trial: int) -> None:
        """It has ended."""
        with self._lock:
            self._alive.discard(trial)

    def close(self) -> None:
        """Ends the thread."""
        self._end.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._end.wait(HEARTBEAT):
            with self._lock:
                alive = sorted(self._alive)
            try:
                for trial in alive:
                    self._storage.record_heartbeat(trial)
                if not alive:
                    self._storage.get_all_studies()  # whether it is there
                self._calm = max(0, self._calm - 1)
            except Exception as error:  # whatever drivers raise; the next beat tries again
                log.info("no sign of life: %s", type(error).__name__)
                self._calm = GRACE // HEARTBEAT + 1
