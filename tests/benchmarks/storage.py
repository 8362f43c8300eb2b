"""What a study's stores take: trials per second, entries and MB, as an entry grows.

    python tests/benchmarks/storage.py [--trials 100 1000 10000] [--samplers qmc tpe]
    python tests/benchmarks/storage.py --postgresql [--claimers 1 2 4 8]
    python tests/benchmarks/storage.py --mlflow

A tiny study gives one L-DIPA trial with its curves. An entry is filled with as many copies, each
with draws of its own, and then goes on through `MethodSearch` as a parent does: a claim, five
reports, the record before and after, the end; nothing is trained in between. With ``--postgresql``
the claimers are processes, and what the server alone took is told apart (Linux); it syncs its log
as usual. Times are of this machine's disk and cores, which all of them share.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
import torch
from optuna.trial import TrialState, create_trial

from dipa_bench.cli.main import app
from dipa_bench.config.entry import Entry
from dipa_bench.config.problem import build_task
from dipa_bench.config.space import uniform_point
from dipa_bench.config.study_file import StudyFile
from dipa_bench.execution.context import StudyContext
from dipa_bench.execution.study_folder import read_study
from dipa_bench.learning.teachers import TeacherCache
from dipa_bench.search import journal, storage
from dipa_bench.search.callbacks import StudyCallback
from dipa_bench.search.method_search import MethodSearch
from dipa_bench.search.queues import SharedTrialQueues, TrialQueues
from dipa_bench.search.sampling import NumberedSampler
from dipa_bench.search.trial_queue import RECORD, SharedTrialQueue, TrialQueue
from dipa_bench.tasks.base import Task
from dipa_bench.tracking import records
from dipa_bench.tracking.environment import describe
from dipa_bench.tracking.records import RunRecord
from dipa_bench.tracking.store import Store

ROW, REPORTS, MANY = "ldipa", 5, 1_000_000
CPU = torch.device("cpu")
TABLES = ("runs", "tags", "params", "metrics", "latest_metrics")  # MLflow's, of a run
spent: Counter[str] = Counter()


def with_driver(url: str) -> str:
    """A server's address for SQLAlchemy, whose own choice of a driver has changed."""
    return url.replace("postgresql://", "postgresql+psycopg2://")


def timed(owner: Any, name: str, label: str) -> None:
    """Replaces `owner.name` by one whose time is added up."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return original(*arguments, **options)
        finally:
            spent[label] += time.perf_counter() - started

    setattr(owner, name, wrapper)


def counted(owner: Any, name: str, label: str) -> None:
    """Replaces `owner.name` by one whose calls are counted."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        spent[label] += 1
        return original(*arguments, **options)

    setattr(owner, name, wrapper)


def template(folder: Path) -> tuple[StudyFile, RunRecord]:
    """A study and one of its trials, as they really are."""
    shorter = {"epochs": REPORTS, "final_epochs": 1, "train_images": 16}
    sets = [part for key, value in shorter.items() for part in ("--set", f"budget.{key}={value}")]
    command = ["study", "--task", "sr", "--methods", ROW, "--trials", "1", "--name", "model"]
    with contextlib.chdir(folder), open(os.devnull, "w") as nowhere:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            app([*command, "--device", "cpu", *sets], standalone_mode=False)
    place = folder / "mlruns" / "studies" / "model"
    return read_study(place), records.read(place / ROW / "trial-0000")


def opened(study: StudyFile, task: Task, folder: Path, sampler: str) -> StudyContext:
    """A study context whose entry goes on for as long as we like."""
    budget = study.budget.model_copy(update={"trials": MANY})
    search = study.search.model_copy(update={"sampler": sampler})
    grown = study.model_copy(update={"budget": budget, "search": search, "name": folder.name})
    return StudyContext(grown, task, folder, TeacherCache(folder), describe(task.device))


def copies(context: StudyContext, model: RunRecord, first: int, end: int) -> Iterator[RunRecord]:
    """Trials that ended, each with its own draw and PSNR."""
    entry, task = Entry.of(context.study, ROW), context.task
    space = entry.distributions(task)
    for index in range(first, end):
        draw = uniform_point(space, index, 0)
        blank = context.blank("trial", entry, index)
        yield finished(blank, model, model.params | draw, index)


def finished(blank: RunRecord, model: RunRecord, params: dict, index: int) -> RunRecord:
    psnr = 20 + random.Random(index).random()
    update = {
        "params": params,
        "state": "finished",
        "metrics": model.metrics | {"val/psnr": psnr},
        "series": model.series,
        "notes": model.notes | {"index": index},
        "finished": blank.started + 60,
    }
    return blank.model_copy(update=update)


def one(method_search: MethodSearch, model: RunRecord) -> None:
    """A trial as its parent and its worker handle it, less the work."""
    job = method_search.ask()
    (blank,), (place,) = job.records, job.places
    records.write(place, blank)
    for step in range(1, REPORTS + 1):
        method_search.report(job, step, 20 + random.Random(f"{blank.number} {step}").random())
    ended = finished(blank, model, blank.params, blank.index)
    records.write(place, ended)
    method_search.tell(job, (ended,))


def timers() -> None:
    counted(SharedTrialQueue, "_fail", "lost")
    timed(NumberedSampler, "sample_relative", "draw")
    timed(records, "write", "records")
    timed(MethodSearch, "report", "reports")
    timed(TrialQueue, "next", "claim")
    timed(SharedTrialQueue, "next", "claim")
    timed(TrialQueue, "tell", "end")
    timed(SharedTrialQueue, "tell", "end")


def shares(count: int) -> str:
    """Milliseconds a trial of each part; a shared end includes a file's, a claim the draw."""
    found = {name: 1000 * spent[name] / count for name in ("claim", "draw", "reports", "end")}
    found["records"] = 1000 * spent["records"] / count
    found["claim"] -= found["draw"]
    return ", ".join(f"{name} {value:.1f}" for name, value in found.items()) + " ms"


def megabytes(folder: Path) -> tuple[int, float, float]:
    """Files below a folder, their MB, and the MB of blocks that they take."""
    found = [path.stat() for path in folder.rglob("*") if path.is_file()]
    sizes = sum(one.st_size for one in found), 512 * sum(one.st_blocks for one in found)
    return len(found), sizes[0] / 1e6, sizes[1] / 1e6


@contextlib.contextmanager
def unsynced() -> Iterator[None]:
    """Nothing waits for the disk meanwhile: for what is only filled."""
    sync, os.fsync = os.fsync, lambda handle: None
    try:
        yield
    finally:
        os.fsync = sync


# ----------------------------------------------------------------------- files of one machine


def on_files(study: StudyFile, model: RunRecord, root: Path, chosen: argparse.Namespace) -> None:
    task = build_task(study.task, study.problem, seed=study.seed, device=CPU)
    for size in chosen.trials:
        folder = root / f"row-{size}"
        context = opened(study, task, folder, "qmc")
        place = records.method_folder(folder, ROW)
        started = time.perf_counter()
        with unsynced() if size > 1000 else contextlib.nullcontext():
            for record in copies(context, model, 0, size):
                records.write(journal.trial_folder(place, record.number), record)
        wrote = 1000 * (time.perf_counter() - started) / size
        count, size_mb, blocks = megabytes(place)
        print(
            f"\n{size} trials: {count} files, {1000 * size_mb / size:.1f} kB each "
            f"({1000 * blocks / size:.1f} kB on disk), written in {wrote:.1f} ms each"
            f"{', unsynced' if size > 1000 else ''}"
        )
        with unsynced():
            started = time.perf_counter()
            MethodSearch(context, Entry.of(context.study, ROW), StudyCallback(), TrialQueues())
            made = time.perf_counter() - started
            print(f"  journal made again from them (unsynced): {made:.1f} s")
        for sampler in chosen.samplers:
            context = opened(study, task, folder, sampler)
            started = time.perf_counter()
            method_search = MethodSearch(
                context, Entry.of(context.study, ROW), StudyCallback(), TrialQueues()
            )
            resumed = time.perf_counter() - started
            spent.clear()
            began, cpu, count = time.perf_counter(), time.process_time(), 0
            while time.perf_counter() - began < chosen.seconds:
                one(method_search, model)
                count += 1
            rate = count / (time.perf_counter() - began)
            cpu = 1000 * (time.process_time() - cpu) / count
            print(
                f"  {sampler}: resumed in {resumed:.1f} s; {rate:.1f} trials/s, CPU {cpu:.0f} ms "
                f"each; {shares(count)}",
                flush=True,
            )
        log = place / journal.JOURNAL
        print(f"  journal {log.stat().st_size / 1e6:.1f} MB", flush=True)


# --------------------------------------------------------------------------------- a database

_task: Any = None
_ready: Any = None


def _prepare(study: dict, ready: Any) -> None:
    global _task, _ready
    found = StudyFile.model_validate(study)
    _task = build_task(found.task, found.problem, seed=found.seed, device=CPU)
    _ready = ready
    warnings.simplefilter("ignore")  # as the command does
    timers()


def _claim(
    url: str, study: dict, model: dict, folder: Path, sampler: str, seconds: float, company: int
) -> dict[str, float]:
    """One claimer of several that start together: what it did."""
    context = opened(StudyFile.model_validate(study), _task, folder, sampler)
    context = StudyContext(context.study, _task, folder / str(os.getpid()), context.teachers, {})
    trial = RunRecord.model_validate(model)
    queues = SharedTrialQueues(
        storage.connect(url), folder.name, context.study.model_dump(mode="json")
    )
    started = time.perf_counter()
    with unsynced():
        method_search = MethodSearch(context, Entry.of(context.study, ROW), StudyCallback(), queues)
    joined = time.perf_counter() - started
    one(method_search, trial)  # reads all the others' trials once more
    with _ready.get_lock():
        _ready.value += 1
    while _ready.value < company:
        time.sleep(0.01)
    spent.clear()
    began, count, cpu = time.perf_counter(), 0, time.process_time()
    while time.perf_counter() - began < seconds:
        one(method_search, trial)
        count += 1
    wall = time.perf_counter() - began
    cpu = time.process_time() - cpu
    found = {"count": count, "rate": count / wall, "joined": joined, "cpu": cpu, "wall": wall}
    found |= {f"ms {name}": value for name, value in spent.items()}
    method_search.close()
    queues.close()
    return found


def server_seconds(port: int) -> float:
    """CPU seconds that a server on a port and its children have used."""
    tick, total, mother = os.sysconf("SC_CLK_TCK"), 0.0, None
    fields = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            rest = path.read_text().rpartition(")")[2].split()
            fields[int(path.parent.name)] = rest
            words = (path.parent / "cmdline").read_bytes().split(b"\0")
            if b"-p" in words and str(port).encode() in words and b"postgres" in words[0]:
                mother = int(path.parent.name)
    for process, rest in fields.items():
        if process == mother:
            total += sum(map(int, rest[11:15]))  # its own and of children that ended
        elif int(rest[1]) == mother:
            total += sum(map(int, rest[11:13]))
    return total / tick


def fill(
    url: str, context: StudyContext, model: RunRecord, size: int, running: int
) -> Iterator[None]:
    """Puts trials that ended into the database; then some that seem to run elsewhere."""
    queues = SharedTrialQueues(storage.connect(url), context.study.name, {})
    entry = Entry.of(context.study, ROW)
    space = entry.distributions(context.task)
    method_search = MethodSearch(
        context, entry, StudyCallback(), queues
    )  # makes the study as the first machine does
    server = storage.connect(url)
    study = optuna.load_study(study_name=f"{context.study.name}/{ROW}", storage=server)

    def add(record: RunRecord, state: TrialState, value: float | None, more: dict) -> None:
        params = {name: record.params[name] for name in space if name in record.params}
        study.add_trial(
            create_trial(
                state=state,
                value=value,
                params=params,
                distributions={name: space[name] for name in params},
                intermediate_values={step: 20.0 for step in range(1, REPORTS + 1)},
                user_attrs={"index": record.index} | more,
            )
        )

    for record in copies(context, model, 0, size):
        text = json.dumps(record.model_dump(mode="json", exclude={"study_file"}))
        add(record, TrialState.COMPLETE, record.metrics["val/psnr"], {RECORD: text})
    last = study.get_trials(deepcopy=False)[-1]._trial_id
    yield
    beats, began = 50, time.perf_counter()
    for _ in range(beats):
        server.record_heartbeat(last)
    print(f"  a sign of life: {1000 * (time.perf_counter() - began) / beats:.1f} ms")
    for record in copies(context, model, size, size + running):
        add(record, TrialState.RUNNING, None, {})
    method_search.close()
    queues.close()


def on_postgresql(
    study: StudyFile, model: RunRecord, root: Path, chosen: argparse.Namespace
) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
    from real_postgresql import postgresql

    task = build_task(study.task, study.problem, seed=study.seed, device=CPU)
    ready = multiprocessing.get_context("spawn").Value("i", 0)
    given = study.model_dump(mode="json")
    with postgresql(durable=True) as server:
        engine = sqlalchemy.create_engine(with_driver(server.url))
        settings = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        port = engine.url.port
        pool = ProcessPoolExecutor(
            max(chosen.claimers),
            multiprocessing.get_context("spawn"),
            initializer=_prepare,
            initargs=(given, ready),
        )
        with pool:
            for size, running in itertools.product(chosen.trials, chosen.running):
                folder = root / f"row-{size}-{running}"
                _grow(settings, server.url, study, task, model, folder, size, running)
                for sampler in chosen.samplers:
                    for company in chosen.claimers if sampler != "tpe" else chosen.claimers[:1]:
                        ready.value = 0
                        arguments = (server.url, given, model.model_dump(mode="json"), folder)
                        arguments += (sampler, chosen.seconds, company)
                        futures = [pool.submit(_claim, *arguments) for _ in range(company)]
                        while ready.value < company and not any(one.done() for one in futures):
                            time.sleep(0.01)
                        before = server_seconds(port)
                        found = [future.result() for future in futures]
                        _tell(found, sampler, company, server_seconds(port) - before)


def _grow(
    settings: sqlalchemy.Connection,
    url: str,
    study: StudyFile,
    task: Task,
    model: RunRecord,
    folder: Path,
    size: int,
    running: int,
) -> None:
    """An entry of a size, and what it takes."""
    before = _tables(settings)
    _commits(settings, "off")  # it is only filled
    filling = fill(url, opened(study, task, folder, "qmc"), model, size, running)
    next(filling)
    _commits(settings, "on")
    settings.execute(sqlalchemy.text("ANALYZE"))
    after = _tables(settings)
    total = sum(after[name][1] - before.get(name, (0, 0))[1] for name in after)
    print(f"\n{size} trials that ended: {total / size / 1e3:.1f} kB each; {running} seem to run")
    for name, (entries, taken) in sorted(after.items(), key=lambda item: -item[1][1]):
        fresh, more = entries - before.get(name, (0, 0))[0], taken - before.get(name, (0, 0))[1]
        if fresh >= size:
            print(f"  {name}: {fresh / size:.1f} rows, {more / size / 1e3:.2f} kB")
    list(filling)


def _commits(settings: sqlalchemy.Connection, wait: str) -> None:
    """Whether commits wait for the disk."""
    settings.execute(sqlalchemy.text(f"ALTER SYSTEM SET synchronous_commit = {wait}"))
    settings.execute(sqlalchemy.text("SELECT pg_reload_conf()"))


def _tables(settings: sqlalchemy.Connection) -> dict[str, tuple[int, int]]:
    """Entries and bytes of every table, indices and long values included."""
    names = [
        name
        for (name,) in settings.execute(
            sqlalchemy.text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        )
    ]
    found = {}
    for name in names:
        asked = f"SELECT count(*), pg_total_relation_size('{name}') FROM \"{name}\""
        found[name] = tuple(settings.execute(sqlalchemy.text(asked)).one())
    return found


def _tell(found: list[dict[str, float]], sampler: str, company: int, server: float) -> None:
    count = int(sum(one["count"] for one in found))
    rate = sum(one["rate"] for one in found)
    spent.clear()
    for one in found:
        spent.update({name[3:]: value for name, value in one.items() if name.startswith("ms ")})
    own = 1000 * sum(one["cpu"] for one in found) / count
    joined = statistics.median(one["joined"] for one in found)
    print(
        f"  {sampler}, {company} claimers: {rate:.1f} trials/s; CPU a trial {own:.0f} ms here, "
        f"{1000 * server / count:.0f} ms on the server; joined in "
        f"{joined:.1f} s; {spent['lost'] / count:.2f} claims lost a trial; {shares(count)}",
        flush=True,
    )


# ------------------------------------------------------------------------------------- MLflow


def on_mlflow(study: StudyFile, model: RunRecord, root: Path, chosen: argparse.Namespace) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
    from real_postgresql import Missing, postgresql

    task = build_task(study.task, study.problem, seed=study.seed, device=CPU)
    uri = f"sqlite:///{root / 'store' / 'mlflow.db'}"
    print("\nMLflow in SQLite")
    _send(uri, study, task, model, root / "in-sqlite", chosen)
    with contextlib.suppress(Missing), postgresql(durable=True) as server:
        print("\nMLflow in PostgreSQL")
        _send(with_driver(server.url), study, task, model, root / "in-postgresql", chosen)


def _send(
    uri: str,
    study: StudyFile,
    task: Task,
    model: RunRecord,
    folder: Path,
    chosen: argparse.Namespace,
) -> None:
    store, first = Store(uri), 0
    for size in (0, *chosen.trials):
        if size:
            _multiply(uri, size)
        context = opened(study, task, folder / f"beside-{size}", "qmc")
        place = records.method_folder(context.folder, ROW)
        with unsynced():
            records.write(place, context.blank("method", Entry.of(context.study, ROW)))
            for record in copies(context, model, first, first + chosen.runs):
                records.write(journal.trial_folder(place, record.number), record)
        started = time.perf_counter()
        report = store.send_method(place)
        seconds = (time.perf_counter() - started) / report.sent
        started = time.perf_counter()
        again = store.send_method(place)
        skipped = (time.perf_counter() - started) / again.unchanged
        print(
            f"  beside {size} runs: {1 / seconds:.1f} runs/s ({1000 * seconds:.0f} ms each); those "
            f"that it has {1000 * skipped:.2f} ms each",
            flush=True,
        )
        first += chosen.runs
    engine = sqlalchemy.create_engine(uri)
    with engine.connect() as line:
        count = line.execute(sqlalchemy.text("SELECT count(*) FROM runs")).scalar()
        entries = {
            name: line.execute(sqlalchemy.text(f"SELECT count(*) FROM {name}")).scalar() / count
            for name in TABLES
        }
        if engine.dialect.name == "sqlite":
            size = Path(engine.url.database).stat().st_size
        else:
            size = line.execute(
                sqlalchemy.text("SELECT pg_database_size(current_database())")
            ).scalar()
    print(f"  {count} runs: {size / count / 1e3:.1f} kB each; rows a run {entries}", flush=True)


def _multiply(uri: str, size: int) -> None:
    """Copies a run in the database until there are as many as `size`."""
    engine, tables = sqlalchemy.create_engine(uri), sqlalchemy.MetaData()
    tables.reflect(engine, only=TABLES)
    runs = tables.tables["runs"]
    with engine.begin() as line:
        count = line.execute(sqlalchemy.select(sqlalchemy.func.count()).select_from(runs)).scalar()
        identifier = line.execute(
            sqlalchemy.select(runs.c.run_uuid).where(runs.c.name.endswith("trial 3"))
        ).scalar()
        for name in TABLES:
            table = tables.tables[name]
            chosen = sqlalchemy.select(table).where(table.c.run_uuid == identifier)
            found = [dict(entry) for entry in line.execute(chosen).mappings()]
            for number in range(count, size):
                fresh = [one | {"run_uuid": f"{number:032x}"} for one in found]
                for one in fresh:
                    if one.get("key") == "dipa.key":
                        one["value"] = f"copy {number}"
                line.execute(sqlalchemy.insert(table), fresh)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--postgresql", action="store_true")
    parser.add_argument("--mlflow", action="store_true")
    parser.add_argument("--trials", type=int, nargs="*", default=[100, 1000, 10_000])
    parser.add_argument("--samplers", nargs="*", default=["qmc", "tpe"])
    parser.add_argument("--claimers", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--running", type=int, nargs="*", default=[0, 100], help="elsewhere")
    parser.add_argument("--seconds", type=float, default=8.0, help="that each is measured")
    parser.add_argument("--runs", type=int, default=100, help="that are sent to MLflow each time")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        study, model = template(root)
        size = len(json.dumps(model.model_dump(mode="json")))
        print(f"a record: {size} bytes, {len(model.params)} parameters")
        if chosen.mlflow:
            on_mlflow(study, model, root, chosen)
        elif chosen.postgresql:
            on_postgresql(study, model, root, chosen)
        else:
            timers()
            on_files(study, model, root, chosen)


if __name__ == "__main__":
    main()
