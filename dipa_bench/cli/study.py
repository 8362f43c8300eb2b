"""`dipa-bench study`: resolve, claim, run row by row, send, print."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
import typer

from dipa_bench import devices
from dipa_bench.cli.console import RESULTS, Stopped, add_row, new_table, wide_console
from dipa_bench.cli.progress import Terminal
from dipa_bench.errors import UserError
from dipa_bench.search import storage, study_file
from dipa_bench.search.conductor import Conductor
from dipa_bench.search.contest import Contest
from dipa_bench.search.crew import Crew, crew
from dipa_bench.search.desk import Desk, SharedDesk
from dipa_bench.search.observer import Observer
from dipa_bench.search.problem import build_task
from dipa_bench.search.row import Row
from dipa_bench.search.schema import check_name
from dipa_bench.search.shifts import shifted
from dipa_bench.search.study import claimed, open_bench, study_folder
from dipa_bench.search.study_file import StudyFile
from dipa_bench.tasks.base import Task
from dipa_bench.tracking.connection import StoreUnavailable
from dipa_bench.tracking.location import redacted, resolve_uri
from dipa_bench.tracking.store import Store

ON_GPU = "standard"  # the preset used there unless another is asked for


class Sender:
    """Sends finished methods to MLflow; a store that does not answer is told of once.

    A context manager; leaving it waits for what is under way.

    Args:
        uri: of the store.
        observer: hears of a store that is away.
        aside: whether to send from a thread, while other processes work.
    """

    def __init__(self, uri: str, observer: Observer, aside: bool) -> None:
        self._observer = observer
        self._line = ThreadPoolExecutor(1) if aside else None
        self._under_way: list[Future] = []
        self.store: Store | None = None
        try:
            self.store = Store(uri)
        except StoreUnavailable as error:
            self._gone(error)

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._line is not None:
            self._line.shutdown()
        for sent in self._under_way:
            sent.result()

    def send(self, contest: Contest) -> None:
        """Sends a concluded row if the store is there, then publishes it."""
        if self._line is None:
            self._send(contest)
        else:
            self._under_way.append(self._line.submit(self._send, contest))

    def _send(self, contest: Contest) -> None:
        if self.store is not None:
            self._try(contest.folder)
        contest.publish()

    def _try(self, folder: Path) -> None:
        try:
            for failure in self.store.send_method(folder).failed:
                self._observer.message(f"not sent: {failure}")
        except StoreUnavailable as error:
            self._gone(error)

    def _gone(self, error: StoreUnavailable) -> None:
        self.store = None
        self._observer.message(f"{error}; the study goes on, its records are kept")


@dataclass(frozen=True)
class Request:
    """What `dipa-bench study` was asked for; see `dipa-bench study --help`."""

    task: str | None = None
    config: str | None = None
    methods: str | None = None
    trials: int | None = None
    minutes: float | None = None
    preset: str | None = None
    rules: str | None = None
    device: str = "auto"
    seed: int | None = None
    name: str | None = None
    sets: Sequence[str] = ()
    repeats: int = 1
    workers: str | None = None
    cluster: str | None = None
    storage: str | None = None
    tracking_uri: str | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class Place:
    """Where a study runs and what it tells.

    Attributes:
        crew: who does the jobs.
        storage: address of the database that is shared with others; None for files.
        uri: of the tracking store.
    """

    crew: Crew
    storage: str | None
    uri: str


def run(request: Request) -> None:
    """The whole command."""
    if request.task is None and request.config is None:
        raise UserError("say what to study: --task sr, or --config FILE")
    where = devices.resolve(request.device)
    study = _resolve(request, where)
    place = Place(
        crew(request.workers, where, request.cluster),
        storage.address(request.storage),
        resolve_uri(request.tracking_uri, Path.cwd()),
    )
    made = build_task(study.task, study.problem, seed=study.seed, device=where)
    for row in study.methods:
        Row.of(study, row).check(made)
    _refuse_untrainable(study, made, request.methods)
    for shift in study.shifts.values():
        shifted(made, shift)  # a word about a bad option now, not after the search
    if request.dry_run:
        _print_plan(study, made, request.repeats, place.crew.count)
        return
    try:
        complete = [_run_all(one, made, place) for one in _repeats(study, request.repeats)]
    except (KeyboardInterrupt, OSError) as error:
        if not _by_user(error):
            raise
        raise Stopped(f"stopped; run the same command to continue study {study.name!r}") from None
    if all(complete):
        _print_board(study, place.uri)
    else:
        print("no leaderboard: the results were not all sent, `dipa-bench sync` sends them")


def _by_user(error: BaseException | None) -> bool:
    """Whether an error is a user's Ctrl-C, or what a library made of one when it tidied up."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _resolve(request: Request, where: torch.device) -> StudyFile:
    """The study that was asked for; on a GPU with another preset, unless one is named."""
    raw = study_file.read(request.task, request.config)
    if request.config is not None:
        raw.setdefault("name", Path(request.config).stem)
    preset, defined = request.preset, raw.get("presets", {})
    if preset is None and where.type == "cuda" and "preset" not in raw and ON_GPU in defined:
        preset = ON_GPU
    return study_file.resolve(
        raw,
        task=request.task,
        preset=preset,
        rules=request.rules,
        methods=request.methods,
        trials=request.trials,
        minutes=request.minutes,
        seed=request.seed,
        name=request.name,
        sets=request.sets,
    )


def _repeats(study: StudyFile, count: int) -> list[StudyFile]:
    """The study and further searches of it, each a study of its own, with other draws and seeds."""
    others = [
        study.model_copy(update={"repeat": number, "name": f"{study.name}-repeat{number}"})
        for number in range(1, count)
    ]
    for one in others:
        check_name("study name", one.name)
    return [study, *others]


def _refuse_untrainable(study: StudyFile, task: Task, methods: str | None) -> None:
    """Raises `UserError` where a row asked for by name cannot train through the prior.

    Rows that come with the study are skipped with that reason instead.
    """
    asked = {part.strip() for part in (methods or "").split(",")}
    for name in asked & set(study.methods):
        if reason := Row.of(study, name).method.untrainable(task):
            raise UserError(f"method {name}: {reason}")


def _run_all(study: StudyFile, task: Task, place: Place) -> bool:
    """Runs every row; says whether the store is there for their leaderboard."""
    root = Path.cwd() / RESULTS
    folder = study_folder(root, study.name)
    with ExitStack() as stack:
        desk = _desk(study, place.storage)
        stack.callback(desk.close)
        if not desk.shared:
            stack.enter_context(claimed(folder))
        terminal = stack.enter_context(Terminal())
        bench = open_bench(study, root, task, desk)
        aside = place.crew.parallel or desk.shared
        sender = stack.enter_context(Sender(place.uri, terminal, aside))
        conductor = Conductor(bench, terminal, desk, sender.send)
        pool = stack.enter_context(place.crew.pool(bench, conductor.listener))
        terminal.message(
            f"study {study.name!r}: {', '.join(study.methods)} on {devices.describe(task.device)}"
            f"{_company(place)}, {study.rules}, preset {study.preset}"
        )
        done = conductor.run([Row.of(study, name) for name in study.methods], pool)
    if not {record.state for record in done} & {"finished", "skipped"}:
        print(f"no method of study {study.name!r} finished; the lines above say why")
        raise typer.Exit(1)
    return sender.store is not None


def _desk(study: StudyFile, address: str | None) -> Desk:
    """Where the study's trials are claimed."""
    if address is None:
        return Desk()
    return SharedDesk(storage.connect(address), study.name, study.model_dump(mode="json"))


def _company(place: Place) -> str:
    """Who works on the study beside this process, in words."""
    words = ""
    if place.crew.cluster is not None:
        words = ", workers of a Dask cluster"
    elif place.crew.count > 1:
        words = f", {place.crew.count} workers"
    return words if place.storage is None else f"{words}, shared through {redacted(place.storage)}"


def _print_board(study: StudyFile, uri: str) -> None:
    """The leaderboard of this study, as tracking stored it."""
    from dipa_bench.evaluation.leaderboard import leaderboard, verdict
    from dipa_bench.evaluation.rendering import render
    from dipa_bench.tracking.load import load_results

    try:
        results = load_results(uri, study.task, study=study.name)
    except StoreUnavailable as error:
        print(f"no leaderboard yet: {error}", file=sys.stderr)
        return
    board = leaderboard(results)
    print(render(board))
    print(verdict(board, results))
    print(
        f"\nsee it: dipa-bench dashboard --task {study.task}, or dipa-bench ui "
        f"(results in {redacted(uri)})"
    )


def _print_plan(study: StudyFile, task: Task, repeats: int, workers: int) -> None:
    from dipa_bench.search.plan import plan

    found = plan(study, task)
    table = new_table("method", "trials", "seeds", "minutes", "note", title=f"study {study.name}")
    for row in found.rows:
        note = f"skipped: {row.skip}" if row.skip else "fitted" if row.fitted else ""
        add_row(table, row.row, row.trials, row.seeds, f"{row.minutes:.1f}", note)
    console = wide_console()
    console.print(table)
    minutes, memory = repeats * found.minutes / workers, workers * found.memory / 2**30
    console.print(
        f"{repeats * found.trials} trials, about {minutes:.1f} minutes and {memory:.1f} GiB on "
        f"{devices.describe(task.device)}; nothing was started"
    )
