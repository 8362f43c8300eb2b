"""A study: search every row with the same budget, refit each winner, test it once."""

from __future__ import annotations

import fcntl
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import optuna
import pandas as pd
from optuna.pruners import BasePruner, MedianPruner, NopPruner

from dipa_bench import digests, parameters
from dipa_bench.data.images import ImageSet
from dipa_bench.errors import Pruned, UserError, brief
from dipa_bench.evaluation import statistics
from dipa_bench.learning.teachers import TeacherCache
from dipa_bench.learning.unrolling import GROWTH
from dipa_bench.parameters import Value
from dipa_bench.search import journal
from dipa_bench.search.kept import SHOWN
from dipa_bench.search.observer import Observer
from dipa_bench.search.pruning import RungPruner
from dipa_bench.search.runs import SHIFTS, Row, Workbench, run_seed, run_trial
from dipa_bench.search.sampling import NumberedSampler, ask
from dipa_bench.search.study_file import StudyFile
from dipa_bench.tasks.base import Task
from dipa_bench.tracking import records
from dipa_bench.tracking.environment import describe
from dipa_bench.tracking.files import write_json
from dipa_bench.tracking.records import RunRecord

STUDY = "study.json"
TASK = "task.json"
TEST_READS = "test-reads.log"


def study_folder(root: Path, name: str) -> Path:
    """Where the study `name` lives below the results folder."""
    return records.studies_root(root) / name


def open_bench(study: StudyFile, root: Path, task: Task) -> Workbench:
    """Claims the study's folder for these settings.

    Raises:
        UserError: the folder holds a study of that name with other settings.
    """
    folder = study_folder(root, study.name)
    folder.mkdir(parents=True, exist_ok=True)
    path, kept = folder / STUDY, study
    if path.exists():
        old = read_study(folder)
        _agree(old, study)
        kept = study.model_copy(update={"methods": old.methods | study.methods})
    _same_task(folder / TASK, task, study.name)
    write_json(path, kept.model_dump(mode="json"))
    teachers = TeacherCache(records.studies_root(root) / ".teachers")
    return Workbench(study, task, folder, teachers, describe(task.device))


def _same_task(path: Path, task: Task, name: str) -> None:
    """Keeps digests of images and prior; refuses to continue a study with others."""
    digests_now = {"images": task.images.digest, "prior": task.prior.digest()}
    before = digests_now
    if path.exists():
        with suppress(ValueError):  # damaged: nothing to compare with
            before = json.loads(path.read_text(encoding="utf-8"))
    for what, digest in digests_now.items():
        if before.get(what) != digest:
            raise UserError(
                f"study {name!r} was begun with other {what} (digest {before.get(what)}, now "
                f"{digest}): give another --name"
            )
    write_json(path, digests_now)


def read_study(folder: Path) -> StudyFile:
    """The resolved study kept in a study's folder, with every row it ever had.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / STUDY
    try:
        return StudyFile.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise UserError(
            f"damaged study file {path} ({brief(error)}): move it away to continue with the "
            "settings you give"
        ) from None


def _agree(old: StudyFile, new: StudyFile) -> None:
    """Raises `UserError` unless `new` continues `old`."""
    before, after = _flat(old.identity()), _flat(new.identity())
    for name in sorted(set(old.methods) & set(new.methods)):
        before |= _flat(old.methods[name].model_dump(mode="json"), f"methods.{name}.")
        after |= _flat(new.methods[name].model_dump(mode="json"), f"methods.{name}.")
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            raise UserError(
                f"study {new.name!r} exists with {key} = {before.get(key)!r}, not "
                f"{after.get(key)!r}: give another --name, or the old settings to continue it"
            )


def _flat(values: dict, prefix: str = "") -> dict[str, Value]:
    flat: dict[str, Value] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Holds a study's lock; the kernel drops it when the process ends, however it ends.

    Raises:
        UserError: another process runs this study.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"study {folder.name!r} is being run by another process: wait for it, or give "
                "another --name"
            ) from None
        yield


def run_row(bench: Workbench, row: Row, observer: Observer) -> RunRecord:
    """Searches one row, refits and tests its winner, and writes the method's record.

    What is on disk already is not done again.

    Returns:
        The method's record: finished, skipped, or diverged/failed where no trial finished.
    """
    folder, record = records.method_folder(bench.folder, row.name), bench.blank("method", row)
    obstacle = row.obstacle(bench.task)
    if obstacle:
        return _conclude(folder, record, observer, *obstacle)
    records.write(folder, record)
    trials = _search(bench, row, folder, observer)
    finished = [trial for trial in trials if trial.state == "finished"]
    if not finished:
        return _conclude(folder, record, observer, *_why_none(trials))
    winner = max(finished, key=lambda trial: (trial.metrics["val/psnr"], -_index(trial)))
    record = record.model_copy(
        update={
            "params": winner.params,
            "notes": record.notes | {"winner": winner.number},
            "metrics": {
                "val/psnr": winner.metrics["val/psnr"],
                "search/trials": float(len(trials)),
                "search/seconds": sum(trial.metrics.get("trial/seconds", 0) for trial in trials),
            },
        }
    )
    return _test(bench, row, folder, record, observer)


def _why_none(trials: list[RunRecord]) -> tuple[str, str]:
    """State and reason of a method of which no trial finished."""
    states = sorted({trial.state for trial in trials})
    reasons = list(dict.fromkeys(str(trial.reason) for trial in trials))
    state = "diverged" if "diverged" in states else "failed"
    if len(reasons) == 1:
        return state, f"all {len(trials)} trials {'/'.join(states)}: {reasons[0]}"
    why = f"none of {len(trials)} trials finished ({', '.join(states)}), the last: {reasons[-1]}"
    return state, why


def _conclude(
    folder: Path, record: RunRecord, observer: Observer, state: str, reason: str | None = None
) -> RunRecord:
    done = record.model_copy(update={"state": state, "reason": reason, "finished": time.time()})
    records.write(folder, done)
    observer.ended(done)
    return done


def planned_trials(row: Row, bench: Workbench) -> int:
    """How many trials a row gets: the budget, or one where nothing is searched."""
    if bench.study.rules == "published" or not row.space(bench.task):
        return 1
    return bench.study.budget.trials


def _search(bench: Workbench, row: Row, folder: Path, observer: Observer) -> list[RunRecord]:
    """Runs the trials that are still missing; returns the records of all that count, by index."""
    task, wanted = bench.task, planned_trials(row, bench)
    published = bench.study.rules == "published"
    distributions = {} if published else row.distributions(task)
    fixed = row.published(task) if published else row.defaults(task)
    seed = digests.seed(bench.study.seed, row.name, "search")
    known = row.known(task) if distributions else ()
    shared_seed = digests.seed(bench.study.seed, "solver settings")
    sampler = NumberedSampler(
        distributions,
        seed,
        known,
        row.solver_names(task),
        shared_seed,
        conditions=row.conditions(task),
        admits=partial(row.admits, task),
    )
    aims = aims_of(bench.study)
    study = journal.open_study(folder, distributions, sampler, aims)
    ended = _counted(folder)
    observer.method(row.name, wanted, len(ended))
    for index in range(wanted):
        if index in ended:
            continue
        sampler.index = index
        trial = ask(study, distributions)
        seed = digests.seed(bench.study.seed, row.name, "trial", index)
        record = bench.blank("trial", row, trial.number, seed)
        params = parameters.active(row.method.parameters, fixed | trial.params)
        record = record.model_copy(
            update={"params": params, "notes": record.notes | {"index": index}}
        )
        ended[index] = _run_trial(bench, row, study, aims, trial, record, folder, observer)
    return [ended[index] for index in range(wanted)]


def aims_of(study: StudyFile) -> journal.Aims:
    """What the search of each row is for, and when it gives a trial up.

    With rungs a trial goes on at the end of one if it is in the best third there; otherwise if it
    is no worse than the median of its epoch. With several objectives all run to their end.
    """
    rungs = study.budget.rungs
    pruner: BasePruner = MedianPruner(n_startup_trials=4, n_warmup_steps=1)
    if len(study.objectives) > 1:
        pruner = NopPruner()
    elif rungs > 1:
        length = study.budget.epochs // rungs
        pruner = RungPruner(tuple(length * rung for rung in range(1, rungs)), GROWTH)
    return journal.Aims(tuple(study.objectives), pruner)


def _run_trial(
    bench: Workbench,
    row: Row,
    study: optuna.Study,
    aims: journal.Aims,
    trial: optuna.Trial,
    record: RunRecord,
    folder: Path,
    observer: Observer,
) -> RunRecord:
    best = -math.inf

    def report(step: int, value: float) -> None:
        nonlocal best
        if len(aims.objectives) > 1:
            return
        value = best = max(best, value)  # a fit keeps its best epoch
        trial.report(value, step)
        if step < bench.study.budget.epochs and trial.should_prune():
            bar = "not in the best third" if bench.study.budget.rungs > 1 else "below the median"
            raise Pruned(f"validation PSNR {value:.2f} dB at step {step} was {bar}")

    observer.run("trial", row.name, record.number)
    place = journal.trial_folder(folder, trial.number)
    done = run_trial(bench, row, record, place, report, observer.epoch)
    journal.tell(study, trial.number, done, aims)
    observer.ended(done)
    return done


def _index(trial: RunRecord) -> int:
    """A trial's place in the search; its number differs once a trial was interrupted."""
    return int(trial.notes.get("index", trial.number))


def _counted(folder: Path) -> dict[int, RunRecord]:
    """Records of the trials that count against the budget, by index: all that ended themselves."""
    return {
        _index(record): record
        for record in journal.trial_records(folder)
        if record.state not in ("interrupted", "running")
    }


def _test(
    bench: Workbench, row: Row, folder: Path, record: RunRecord, observer: Observer
) -> RunRecord:
    """Refits the winner over seeds and reads the test images once for each."""
    count = bench.study.budget.seeds if row.method.stochastic else 1
    seeds: list[RunRecord] = []
    for number in range(count):
        place = folder / f"seed-{number}"
        done = records.read(place) if (place / records.RECORD).exists() else None
        if done is None or done.state != "finished" or done.params != record.params:
            observer.run("seed", row.name, number)
            seed = digests.seed(bench.study.seed, row.name, "seed", number)
            blank = bench.blank("seed", row, number, seed)
            blank = blank.model_copy(update={"params": record.params})
            reason = f"{bench.study.name} / {row.name}: seed {number} of the winner"
            images = read_test(bench, reason)
            if number == 0:
                for name in SHOWN:  # of an earlier winner
                    (folder / name).unlink(missing_ok=True)
            done = run_seed(bench, row, blank, place, images, observer.epoch)
            observer.ended(done)
        seeds.append(done)
    ended = [seed for seed in seeds if seed.state != "finished"]
    if ended:
        reason = f"seed {ended[0].number} of the winner {ended[0].state}: {ended[0].reason}"
        return _conclude(folder, record, observer, ended[0].state, reason)
    return _conclude(folder, _summary(bench, folder, record, seeds), observer, "finished")


def read_test(bench: Workbench, reason: str) -> ImageSet:
    """The test images; that they were read goes to the study's log before anything else."""
    with (bench.folder / TEST_READS).open("a", encoding="utf-8") as log:
        log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {' '.join(reason.split())}\n")
    return bench.task.images.test(reason)


def _summary(
    bench: Workbench, folder: Path, record: RunRecord, seeds: list[RunRecord]
) -> RunRecord:
    """The method's record with the figures of all seeds, and their tables joined beside it."""
    names = ("images.parquet", "curves.parquet", *([SHIFTS] if bench.study.shifts else []))
    for name in names:
        parts = [pd.read_parquet(folder / f"seed-{seed.number}" / name) for seed in seeds]
        pd.concat(parts, ignore_index=True).to_parquet(folder / name, index=False)
    operator = folder / "seed-0" / "operator.safetensors"
    if operator.exists():
        (folder / operator.name).write_bytes(operator.read_bytes())
    for name in SHOWN:
        if (folder / "seed-0" / name).exists():
            (folder / "seed-0" / name).replace(folder / name)
    means = {
        name: sum(seed.metrics[name] for seed in seeds) / len(seeds)
        for name in seeds[0].metrics
        if all(name in seed.metrics for seed in seeds) and name != "trial/seconds"
    }
    images = pd.read_parquet(folder / "images.parquet")
    for metric in ("psnr", "ssim"):
        interval = statistics.mean_interval(images, metric)
        means |= {f"test/{metric}_low": interval.low, f"test/{metric}_high": interval.high}
    means["search/seeds"] = float(len(seeds))
    finite = {name: value for name, value in means.items() if math.isfinite(value)}
    return record.model_copy(
        update={
            "metrics": record.metrics | finite,
            "series": seeds[0].series,
            "notes": seeds[0].notes | record.notes,
        }
    )
