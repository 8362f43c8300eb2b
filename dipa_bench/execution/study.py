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
from dipa_bench.errors import StudyStopped, UserError
from dipa_bench.execution.sending import Sender
from dipa_bench.search import plan, storage, study_file
from dipa_bench.search.bench import study_task
from dipa_bench.search.conductor import Conductor
from dipa_bench.search.crew import Crew, crew
from dipa_bench.search.desk import Desk, SharedDesk
from dipa_bench.search.observer import Observer
from dipa_bench.search.row import Row
from dipa_bench.search.schema import check_name
from dipa_bench.search.shifts import shifted
from dipa_bench.search.study import locked_bench, study_folder
from dipa_bench.search.study_file import StudyFile
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
    repeats: int = 1
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
        records: of its rows, in order.
        sent: whether the tracking store has them all.
    """

    study: StudyFile
    folder: Path
    uri: str
    records: list[RunRecord]
    sent: bool

    @property
    def measured(self) -> bool:
        """Whether any row finished, or none was meant to."""
        return bool({record.state for record in self.records} & {"finished", "skipped"})


@dataclass(frozen=True)
class Study:
    """A study that is ready to run: resolved, its task made, all that was asked for checked.

    Args:
        request: what was asked for.

    Attributes:
        resolved: the study file that came of it.
        task: made from its problem.
        crew: who does the jobs.
        address: of the database that is shared with others; None for files.
        uri: of the tracking store.

    Raises:
        UserError: anything of the request that cannot be had.
    """

    request: Request
    where: torch.device = field(init=False)
    resolved: StudyFile = field(init=False)
    crew: Crew = field(init=False)
    address: str | None = field(init=False)
    uri: str = field(init=False)

    def __post_init__(self) -> None:
        request = self.request
        where = devices.resolve(request.device)
        found = {
            "where": where,
            "resolved": _resolve(request, where),
            "crew": crew(request.workers, where, request.cluster),
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
            Row.of(self.resolved, name).check(self.task)
        _refuse_untrainable(self.resolved, self.task, _named(self.request.methods))
        for shift in self.resolved.shifts.values():
            shifted(self.task, shift)

    def plan(self) -> plan.Plan:
        """What it would cost; nothing is written."""
        return plan.plan(self.resolved, self.task)

    def run(self, observer: Observer) -> list[Outcome]:
        """Runs every row; again with other draws for each further repeat.

        Args:
            observer: hears of everything.

        Returns:
            One outcome for each repeat, up to the first of which nothing finished.

        Raises:
            StudyStopped: Ctrl-C; the same request continues the study.
            OSError: a disk that is full or read-only.
            UserError: another process runs it, or it was begun with other settings.
        """
        ended: list[Outcome] = []
        try:
            for one in repeated(self.resolved, self.request.repeats):
                ended.append(self._run(one, observer))
                if not ended[-1].measured:
                    break
        except (KeyboardInterrupt, OSError) as error:
            if not _by_user(error):
                raise
            raise StudyStopped(self.resolved.name) from None
        return ended

    def _run(self, study: StudyFile, observer: Observer) -> Outcome:
        with ExitStack() as stack:
            desk = stack.enter_context(self._desk(study))
            bench = stack.enter_context(locked_bench(study, self.request.root, self.task, desk))
            aside = self.crew.parallel or desk.shared
            sender = stack.enter_context(Sender(self.uri, observer, aside))
            conductor = Conductor(bench, observer, desk, sender.send)
            pool = stack.enter_context(self.crew.pool(bench, conductor.listener))
            observer.message(
                f"study {study.name!r}: {', '.join(study.methods)} on "
                f"{devices.describe(self.task.device)}{self._company()}, {study.rules}, preset "
                f"{study.preset}"
            )
            done = conductor.run([Row.of(study, name) for name in study.methods], pool)
        folder = study_folder(self.request.root, study.name)
        return Outcome(study, folder, self.uri, done, sender.store is not None)

    @contextmanager
    def _desk(self, study: StudyFile) -> Iterator[Desk]:
        """Where the study's trials are claimed."""
        desk = Desk()
        if self.address is not None:
            file = study.model_dump(mode="json")
            desk = SharedDesk(storage.connect(self.address), study.name, file)
        try:
            yield desk
        finally:
            desk.close()

    def _company(self) -> str:
        """Who works on the study beside this process, in words."""
        words = ""
        if self.crew.cluster is not None:
            words = ", workers of a Dask cluster"
        elif self.crew.count > 1:
            words = f", {self.crew.count} workers"
        shared = f", shared through {redacted(self.address)}" if self.address else ""
        return words + shared


def resolve(request: Request) -> StudyFile:
    """The study file that a request comes to; nothing is made or checked on a device."""
    return _resolve(request, devices.resolve(request.device))


def repeated(study: StudyFile, count: int) -> list[StudyFile]:
    """The study and further searches of it, each a study of its own, with other draws and seeds."""
    if count < 1:
        raise UserError(f"repeats = {count}: give 1 or more")
    others = [
        study.model_copy(update={"repeat": number, "name": f"{study.name}-repeat{number}"})
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
        rules=request.protocol,
        methods=_named(request.methods),
        trials=request.trials,
        minutes=request.minutes,
        seed=request.seed,
        name=request.name,
        sets=request.sets,
    )


def _named(methods: str | Sequence[str] | None) -> str | None:
    """Rows as ``--methods`` names them."""
    return methods if methods is None or isinstance(methods, str) else ",".join(methods)


def _by_user(error: BaseException | None) -> bool:
    """Whether an error is a user's Ctrl-C, or what a library made of one when it tidied up."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _refuse_untrainable(study: StudyFile, task: Task, methods: str | None) -> None:
    """Raises `UserError` where a row asked for by name cannot train through the prior.

    Rows that come with the study are skipped with that reason instead.
    """
    asked = {part.strip() for part in (methods or "").split(",")}
    for name in asked & set(study.methods):
        if reason := Row.of(study, name).method.untrainable(task):
            raise UserError(f"method {name}: {reason}")
