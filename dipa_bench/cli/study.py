"""`dipa-bench study`: resolve, claim, run row by row, send, print."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from dipa_bench import devices
from dipa_bench.cli.console import RESULTS, Stopped, add_row, new_table, wide_console
from dipa_bench.cli.progress import Terminal
from dipa_bench.errors import UserError
from dipa_bench.search import study_file
from dipa_bench.search.observer import Observer
from dipa_bench.search.problem import build_task
from dipa_bench.search.runs import Row
from dipa_bench.search.shifts import shifted
from dipa_bench.search.study import claimed, open_bench, run_row, study_folder
from dipa_bench.search.study_file import StudyFile
from dipa_bench.tasks.base import Task
from dipa_bench.tracking import records
from dipa_bench.tracking.connection import StoreUnavailable
from dipa_bench.tracking.location import redacted, resolve_uri
from dipa_bench.tracking.store import Store

ON_GPU = "standard"  # the preset used there unless another is asked for


class Sender:
    """Sends finished methods to MLflow; a store that does not answer is told of once.

    Args:
        uri: of the store.
        observer: hears of a store that is away.
    """

    def __init__(self, uri: str, observer: Observer) -> None:
        self._observer = observer
        self.store: Store | None = None
        try:
            self.store = Store(uri)
        except StoreUnavailable as error:
            self._gone(error)

    def send(self, folder: Path) -> None:
        """Sends one method's run folder if the store is there."""
        if self.store is None:
            return
        try:
            for failure in self.store.send_method(folder).failed:
                self._observer.message(f"not sent: {failure}")
        except StoreUnavailable as error:
            self._gone(error)

    def _gone(self, error: StoreUnavailable) -> None:
        self.store = None
        self._observer.message(f"{error}; the study goes on, its records are kept")


def run(
    *,
    task: str | None,
    config: str | None,
    methods: str | None,
    trials: int | None,
    preset: str | None,
    rules: str | None,
    device: str,
    seed: int | None,
    name: str | None,
    sets: Sequence[str],
    tracking_uri: str | None,
    dry_run: bool,
) -> None:
    """The whole command; see `dipa-bench study --help`."""
    if task is None and config is None:
        raise UserError("say what to study: --task sr, or --config FILE")
    where = devices.resolve(device)
    raw = study_file.read(task, config)
    if config is not None:
        raw.setdefault("name", Path(config).stem)
    defined = raw.get("presets", {})
    if preset is None and where.type == "cuda" and "preset" not in raw and ON_GPU in defined:
        preset = ON_GPU
    study = study_file.resolve(
        raw,
        task=task,
        preset=preset,
        rules=rules,
        methods=methods,
        trials=trials,
        seed=seed,
        name=name,
        sets=sets,
    )
    uri = resolve_uri(tracking_uri, Path.cwd())
    made = build_task(study.task, study.problem, seed=study.seed, device=where)
    for row in study.methods:
        Row.of(study, row).check(made)
    _refuse_untrainable(study, made, methods)
    for shift in study.shifts.values():
        shifted(made, shift)  # a word about a bad option now, not after the search
    if dry_run:
        _print_plan(study, made)
        return
    try:
        complete = _run_all(study, made, uri)
    except KeyboardInterrupt:
        raise Stopped(f"stopped; run the same command to continue study {study.name!r}") from None
    if complete:
        _print_board(study, uri)
    else:
        print("no leaderboard: the results were not all sent, `dipa-bench sync` sends them")


def _refuse_untrainable(study: StudyFile, task: Task, methods: str | None) -> None:
    """Raises `UserError` where a row asked for by name cannot train through the prior.

    Rows that come with the study are skipped with that reason instead.
    """
    asked = {part.strip() for part in (methods or "").split(",")}
    for name in asked & set(study.methods):
        if reason := Row.of(study, name).method.untrainable(task):
            raise UserError(f"method {name}: {reason}")


def _run_all(study: StudyFile, task: Task, uri: str) -> bool:
    """Runs every row; says whether the store is there for their leaderboard."""
    root = Path.cwd() / RESULTS
    folder = study_folder(root, study.name)
    with claimed(folder), Terminal() as terminal:
        terminal.message(
            f"study {study.name!r}: {', '.join(study.methods)} on {devices.describe(task.device)}, "
            f"{study.rules}, preset {study.preset}"
        )
        bench = open_bench(study, root, task)
        sender, states = Sender(uri, terminal), set()
        for name in study.methods:
            states.add(run_row(bench, Row.of(study, name), terminal).state)
            sender.send(records.method_folder(folder, name))
    if not states & {"finished", "skipped"}:
        print(f"no method of study {study.name!r} finished; the lines above say why")
        raise typer.Exit(1)
    return sender.store is not None


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


def _print_plan(study: StudyFile, task: Task) -> None:
    from dipa_bench.search.plan import plan

    found = plan(study, task)
    table = new_table("method", "trials", "seeds", "minutes", "note", title=f"study {study.name}")
    for row in found.rows:
        note = f"skipped: {row.skip}" if row.skip else "fitted" if row.fitted else ""
        add_row(table, row.row, row.trials, row.seeds, f"{row.minutes:.1f}", note)
    console = wide_console()
    console.print(table)
    console.print(
        f"{found.trials} trials, about {found.minutes:.1f} minutes and "
        f"{found.memory / 2**30:.1f} GiB on {devices.describe(task.device)}; nothing was started"
    )
