"""A study from what was asked for to its records: resolved, checked, planned, run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from dipa_bench import devices
from dipa_bench.config import study_file
from dipa_bench.config.entry import Entry
from dipa_bench.config.schema import check_name
from dipa_bench.config.study_file import StudyFile
from dipa_bench.errors import StudyStopped, UserError
from dipa_bench.execution.context import study_task
from dipa_bench.execution.scheduler import Scheduler
from dipa_bench.execution.sending import Sender
from dipa_bench.execution.shifts import shifted
from dipa_bench.execution.study_folder import locked_context, study_folder
from dipa_bench.execution.work import work_of
from dipa_bench.execution.workers import WorkerConfig, worker_config
from dipa_bench.search import storage
from dipa_bench.search.callbacks import StudyCallback
from dipa_bench.search.queues import SharedTrialQueues, TrialQueues
from dipa_bench.tasks.base import Task
from dipa_bench.tracking.location import redacted, resolve_uri
from dipa_bench.tracking.records import RunRecord

ON_GPU = "standard"  # the preset used there unless another is asked for


@dataclass(frozen=True)
class Request:
    """What a study is asked for; see `dipa_bench.run_study` for what each means."""

    config: str | Path | Mapping[str, Any] | None = None
    task: str | None = None
    methods: str | Sequence[str] | None = None
    trials: int | None = None
    minutes: float | None = None
    preset: str | None = None
    protocol: str | None = None
    device: str = "auto"
    seed: int | None = None
    name: str | None = None
    sets: Sequence[str] = ()
    replicates: int | None = None
    workers: str | int | None = None
    cluster: str | None = None
    storage: str | None = None
    tracking_uri: str | None = None
    root: Path = Path("mlruns")


@dataclass(frozen=True)
class Outcome:
    """How a study ended.

    Attributes:
        study: resolved.
        folder: of its records.
        uri: of the tracking store.
        records: of its entries, in order.
        sent: whether the tracking store has them all.
    """

    study: StudyFile
    folder: Path
    uri: str
    records: list[RunRecord]
    sent: bool

    @property
    def measured(self) -> bool:
        """Whether any entry finished, or none was meant to."""
        return bool({record.state for record in self.records} & {"finished", "skipped"})


@dataclass(frozen=True)
class Study:
    """A study that is ready to run: resolved, its task made, all that was asked for checked.

    Args:
        request: what was asked for.

    Attributes:
        where: the device.
        resolved: the study file that came of it.
        task: made from its problem.
        worker_config: who does the jobs.
        address: of the database that is shared with others; None for files.
        uri: of the tracking store.

    Raises:
        UserError: anything of the request that cannot be had.
    """

    request: Request
    where: torch.device = field(init=False)
    resolved: StudyFile = field(init=False)
    worker_config: WorkerConfig = field(init=False)
    address: str | None = field(init=False)
    uri: str = field(init=False)

    def __post_init__(self) -> None:
        request = self.request
        where = devices.resolve(request.device)
        found = {
            "where": where,
            "resolved": _resolve(request, where),
            "worker_config": worker_config(request.workers, where, request.cluster),
            "address": storage.address(request.storage),
            "uri": resolve_uri(request.tracking_uri, Path.cwd()),
        }
        for name, value in found.items():
            object.__setattr__(self, name, value)
        self._check()

    @cached_property
    def task(self) -> Task:
        return study_task(self.resolved, self.where)

    def _check(self) -> None:
        """Words about teachers, priors and shifts now, not after the search."""
        for name in self.resolved.methods:
            Entry.of(self.resolved, name).check(self.task)
        _refuse_untrainable(self.resolved, self.task, _named(self.request.methods))
        for shift in self.resolved.shifts.values():
            shifted(self.task, shift)

    def replicates(self, callback: StudyCallback) -> Iterator[Outcome]:
        """Runs every entry; again with other draws and seeds for each further replicate.

        Args:
            callback: hears of everything.

        Yields:
            An outcome for each replicate, up to the first of which nothing finished.

        Raises:
            StudyStopped: Ctrl-C; the same request continues the study.
            OSError: a disk that is full or read-only.
            UserError: another process runs it, or it was begun with other settings.
        """
        names = self.resolved.methods
        work = {
            name: work_of(Entry.of(self.resolved, name), self.task, self.resolved) for name in names
        }
        callback.planned(work, self.resolved.budget.replicates)
        for one in replicated(self.resolved):
            try:
                outcome = self._run(one, callback)
            except (KeyboardInterrupt, OSError) as error:
                if not _by_user(error):
                    raise
                raise StudyStopped(self.resolved.name) from None
            yield outcome
            if not outcome.measured:
                return

    def _run(self, study: StudyFile, callback: StudyCallback) -> Outcome:
        with ExitStack() as stack:
            queues = stack.enter_context(self._queues(study))
            context = stack.enter_context(
                locked_context(study, self.request.root, self.task, queues)
            )
            aside = self.worker_config.parallel or queues.shared
            sender = stack.enter_context(Sender(self.uri, callback, aside))
            scheduler = Scheduler(context, callback, queues, sender.send)
            pool = stack.enter_context(self.worker_config.pool(context, scheduler.job_callback))
            callback.message(
                f"study {study.name!r}: {', '.join(study.methods)} on "
                f"{devices.describe(self.task.device)}{self._company()}, {study.protocol}, preset "
                f"{study.preset}"
            )
            done = scheduler.run([Entry.of(study, name) for name in study.methods], pool)
        folder = study_folder(self.request.root, study.name)
        return Outcome(study, folder, self.uri, done, sender.store is not None)

    @contextmanager
    def _queues(self, study: StudyFile) -> Iterator[TrialQueues]:
        """The queues of the study's trials."""
        queues = TrialQueues()
        if self.address is not None:
            file = study.model_dump(mode="json")
            queues = SharedTrialQueues(storage.connect(self.address), study.name, file)
        try:
            yield queues
        finally:
            queues.close()

    def _company(self) -> str:
        """Who works on the study beside this process, in words."""
        words = ""
        if self.worker_config.cluster is not None:
            words = ", workers of a Dask cluster"
        elif self.worker_config.count > 1:
            words = f", {self.worker_config.count} workers"
        shared = f", shared through {redacted(self.address)}" if self.address else ""
        return words + shared


def replicated(study: StudyFile) -> list[StudyFile]:
    """The replicates of a study, each a study of its own with its own draws and seeds."""
    count = study.budget.replicates
    others = [
        study.model_copy(update={"replicate": number, "name": f"{study.name}-replicate{number}"})
        for number in range(1, count)
    ]
    for one in others:
        check_name("study name", one.name)
    return [study, *others]


def _resolve(request: Request, where: torch.device) -> StudyFile:
    """The study that was asked for; on a GPU with another preset, unless one is named."""
    if request.task is None and request.config is None:
        raise UserError("say what to study: --task sr, or --config FILE")
    raw = study_file.read(request.task, request.config)
    if isinstance(request.config, str | Path):
        raw.setdefault("name", Path(request.config).stem)
    preset, defined = request.preset, raw.get("presets", {})
    if preset is None and where.type == "cuda" and "preset" not in raw and ON_GPU in defined:
        preset = ON_GPU
    return study_file.resolve(
        raw,
        task=request.task,
        preset=preset,
        protocol=request.protocol,
        methods=_named(request.methods),
        trials=request.trials,
        minutes=request.minutes,
        replicates=request.replicates,
        seed=request.seed,
        name=request.name,
        sets=request.sets,
    )


def _named(methods: str | Sequence[str] | None) -> str | None:
    """Entries as ``--methods`` names them."""
    return methods if methods is None or isinstance(methods, str) else ",".join(methods)


def _by_user(error: BaseException | None) -> bool:
    """Whether an error is a user's Ctrl-C, or what a library made of one when it tidied up."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _refuse_untrainable(study: StudyFile, task: Task, methods: str | None) -> None:
    """Raises `UserError` where an entry asked for by name cannot train through the prior.

    Entries that come with the study are skipped with that reason instead.
    """
    asked = {part.strip() for part in (methods or "").split(",")}
    for name in asked & set(study.methods):
        if reason := Entry.of(study, name).method.untrainable(task):
            raise UserError(f"method {name}: {reason}")
