"""Workers of an existing Dask cluster: a scheduler's address, or a cluster that a file makes.

Jobs and records travel through Dask; no disk has to be shared. Dask runs a job again elsewhere when
its worker dies.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dipa_bench import digests, imports
from dipa_bench.config.entry import Entry
from dipa_bench.errors import UserError, brief
from dipa_bench.execution.context import StudyContext
from dipa_bench.execution.jobs import JobCallback, Setup, perform
from dipa_bench.execution.pool import Pool
from dipa_bench.methods import Progress
from dipa_bench.search.jobs import Ended, Job, Lost, Outcome
from dipa_bench.tracking import records
from dipa_bench.tracking.records import RunRecord

if TYPE_CHECKING:
    from distributed import Client, Future

PATIENCE = 30.0  # seconds for a scheduler to answer, and for its first worker to come
PAUSE = 0.1  # seconds between two looks at the jobs
ANSWER = 60.0  # seconds that a worker waits for the parent's answer before it goes on regardless
SCHEMES = {"dask": "tcp", "tcp": "tcp", "tls": "tls", "ucx": "ucx", "ws": "ws", "wss": "wss"}


@contextlib.contextmanager
def connected(name: str) -> Iterator[Client]:
    """A client of the cluster that `name` stands for; a cluster made here is closed again.

    Args:
        name: ``dask://host:port`` (or Dask's own tcp://, tls://), or ``file.py:NAME`` or
            ``module:NAME``: a Dask cluster, or a function without arguments that makes one.

    Raises:
        UserError: Dask is not installed, nothing answers, or the file gives no cluster.
    """
    try:
        from distributed import Client
    except ImportError:
        raise UserError(
            "--cluster needs Dask: pip install 'dipa-bench[cluster]' here and on the workers"
        ) from None
    scheme, separator, rest = name.partition("://")
    if separator:
        if scheme not in SCHEMES:
            raise UserError(f"--cluster {scheme}://...: give dask://host:port, or file.py:NAME")
        target, made = f"{SCHEMES[scheme]}://{rest}", None
    else:
        target = made = _made(name)
    try:
        client = Client(target, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"--cluster: no Dask scheduler answers at {name} ({brief(error)}): start one with "
            "`dask scheduler`, and workers with `dask worker`"
        ) from None
    with contextlib.ExitStack() as closing:
        if made is not None and hasattr(made, "close"):
            closing.callback(made.close)
        closing.callback(client.close)
        yield client


def _made(name: str) -> Any:
    """The cluster that a file or a module gives."""
    path, colon, attribute = name.rpartition(":")
    if colon and path.endswith(".py"):
        found = _from_file(Path(path), attribute)
    else:
        found = imports.attribute(name, "cluster")
    if hasattr(found, "scheduler_address"):
        return found
    try:
        made = found()
    except Exception as error:
        raise UserError(f"--cluster {name}: it cannot be made ({brief(error)})") from None
    if not hasattr(made, "scheduler_address"):
        raise UserError(
            f"--cluster {name} gives {type(made).__name__}, not a Dask cluster: return one, such "
            "as dask_jobqueue's SLURMCluster(...)"
        )
    return made


def _from_file(path: Path, attribute: str) -> Any:
    try:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return getattr(module, attribute)
    except (Exception, SystemExit) as error:
        raise UserError(f"--cluster {path}:{attribute} cannot be read ({brief(error)})") from None


@dataclass
class _Sent:
    """A job that the cluster has."""

    job: Job
    future: Future
    worker: str
    answers: Any


class DaskPool(Pool):
    """The workers of a Dask cluster, one job at a time each, as many as there are at the moment.

    Args:
        client: of the cluster.
        setup: of the workers, which share no disk with this process.
        job_callback: hears of epochs.

    Raises:
        UserError: the cluster has no workers, and none comes.
    """

    def __init__(self, client: Client, setup: Setup, job_callback: JobCallback) -> None:
        from distributed import Queue

        self._client, self._setup, self._job_callback = client, setup, job_callback
        self._sent: dict[str, _Sent] = {}
        self._count = itertools.count()
        self._session = f"dipa-{uuid.uuid4().hex[:12]}"
        self._reports = Queue(f"{self._session}-reports", client=client)
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError:
            raise UserError(
                f"--cluster: the scheduler has no worker, and none came within {PATIENCE:g} s"
            ) from None

    @property
    def _idle(self) -> list[str]:
        taken = {sent.worker for sent in self._sent.values()}
        return [address for address in self._client.nthreads() if address not in taken]

    @property
    def free(self) -> int:
        return len(self._idle)

    @property
    def busy(self) -> int:
        return len(self._sent)

    def start(self, entry: Entry, job: Job) -> None:
        from distributed import Queue

        key, worker = f"{self._session}-{next(self._count)}", self._idle[0]
        future = self._client.submit(
            _do,
            self._setup,
            job,
            key,
            self._reports.name,
            key=key,
            workers=[worker],
            allow_other_workers=True,  # where this one dies
            pure=False,
        )
        self._sent[key] = _Sent(job, future, worker, Queue(f"{key}-answers", client=self._client))

    def wait(self, seconds: float) -> list[Outcome]:
        end = time.monotonic() + seconds
        while True:
            self._hear()
            done = [key for key, sent in self._sent.items() if sent.future.done()]
            if done or time.monotonic() > end:
                return [self._outcome(self._sent.pop(key)) for key in done]
            time.sleep(PAUSE)

    def close(self) -> None:
        for sent in self._sent.values():
            sent.future.cancel()
        self._sent.clear()

    def _hear(self) -> None:
        """Answers the reports that have come."""
        for _ in range(self._reports.qsize()):
            key, kind, *content = self._reports.get()
            sent = self._sent.get(key)
            if sent is None:
                continue
            if kind == "epoch":
                self._job_callback.epoch(sent.job, Progress(*content))
            else:
                sent.answers.put(self._job_callback.report(sent.job, *content))

    def _outcome(self, sent: _Sent) -> Outcome:
        error = sent.future.exception()
        if isinstance(error, UserError):
            raise UserError(f"on the cluster: {error}")
        if error is not None:
            return Lost(sent.job, f"the cluster gave it up: {brief(error, kind=True)}")
        done, files = sent.future.result()
        for place, contents in zip(sent.job.places, files, strict=True):
            place.mkdir(parents=True, exist_ok=True)
            for name, content in contents.items():
                (place / name).write_bytes(content)
        for place, record in zip(sent.job.places, done, strict=True):
            records.write(place, record)
        return Ended(sent.job, done)


# ----------------------------------------------------------------------------------- on the cluster

_turn = threading.Lock()  # a worker may have several threads; a fit wants the process to itself
_contexts: dict[str, StudyContext] = {}


def _do(
    setup: Setup, job: Job, key: str, reports: str
) -> tuple[tuple[RunRecord, ...], list[dict[str, bytes]]]:
    """Does a job in a folder of its own; the records and the files beside them."""
    from distributed import Queue

    with _turn:
        up, down = Queue(reports), Queue(f"{key}-answers")

        def ask(job: Job, step: int, value: float) -> str | None:
            up.put((key, "report", step, value))
            try:
                return down.get(timeout=ANSWER)
            except TimeoutError:
                return None

        context = _context(setup)
        entry = Entry.of(context.study, job.entry)
        root = records.method_folder(
            _folder(setup), entry.name
        )  # checkpoints outlive a killed worker
        places = tuple(root / f"{job.kind}-{record.number}" for record in job.records)

        def tell(job: Job, progress: Progress) -> None:
            up.put((key, "epoch", progress.epoch, progress.epochs, progress.loss, progress.psnr))

        done = perform(context, entry, replace(job, places=places), JobCallback(ask, tell))
        return done, [_files(place) for place in places]


def _context(setup: Setup) -> StudyContext:
    key = digests.of(setup.study)
    if key not in _contexts:
        _contexts.clear()
        _contexts[key] = setup.context(_folder(setup))
    return _contexts[key]


def _folder(setup: Setup) -> Path:
    """The study's folder among this machine's temporary ones; its worker processes share it."""
    ours = Path(tempfile.gettempdir()) / f"dipa-bench-{os.getuid()}"
    ours.mkdir(mode=0o700, exist_ok=True)
    if ours.stat().st_uid != os.getuid():
        raise UserError(f"{ours} belongs to another user: remove it, or set TMPDIR")
    return ours / digests.of(setup.study)


def _files(place: Path) -> dict[str, bytes]:
    """The files of a run folder, which is emptied; the record travels by itself."""
    found = {}
    for path in sorted(place.iterdir()):
        if path.is_file():
            if path.name != records.RECORD and not path.name.startswith("."):
                found[path.name] = path.read_bytes()
            path.unlink()
    return found
