"""A study: search every row with the same budget, refit each winner, test it once."""

from __future__ import annotations

import fcntl
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pandas as pd
from optuna.trial import TrialState
from safetensors.torch import save_file

from dipa_bench import digests
from dipa_bench.errors import Pruned, UserError
from dipa_bench.evaluation import statistics
from dipa_bench.learning.teachers import TeacherCache
from dipa_bench.parameters import Value
from dipa_bench.search import journal
from dipa_bench.search.observer import Observer
from dipa_bench.search.runs import Outcome, Row, Workbench, keep_matrix, run_seed, run_trial
from dipa_bench.search.sampling import NumberedSampler, distribution
from dipa_bench.search.study_file import StudyFile
from dipa_bench.tasks.base import Task
from dipa_bench.tracking import records
from dipa_bench.tracking.environment import describe
from dipa_bench.tracking.records import RunRecord

STUDY = "study.json"
PICTURES = 4  # test images whose reconstructions are kept


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
    path = folder / STUDY
    if path.exists():
        _agree(StudyFile.model_validate_json(path.read_text(encoding="utf-8")), study)
    path.write_text(study.model_dump_json(indent=1), encoding="utf-8")
    teachers = TeacherCache(records.studies_root(root) / ".teachers")
    return Workbench(study, task, folder, teachers, describe(task.device))


def _agree(old: StudyFile, new: StudyFile) -> None:
    """Raises `UserError` unless `new` continues `old`."""
    before, after = _flat(old.identity()), _flat(new.identity())
    shared = set(old.methods) & set(new.methods)
    for name in sorted(shared):
        before[f"methods.{name}"] = old.methods[name].model_dump(mode="json")
        after[f"methods.{name}"] = new.methods[name].model_dump(mode="json")
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
    folder = bench.folder / row.name
    reason = row.method.skip(bench.task)
    if reason:
        return _conclude(folder, bench.blank("method", row), observer, "skipped", reason)
    record = bench.blank("method", row)
    records.write(folder, record)
    trials = _search(bench, row, folder, observer)
    finished = [trial for trial in trials if trial.state == "finished"]
    if not finished:
        states = ", ".join(sorted({trial.state for trial in trials}))
        reason = f"none of {len(trials)} trials finished ({states}): {trials[-1].reason}"
        ended = "diverged" if any(trial.state == "diverged" for trial in trials) else "failed"
        return _conclude(folder, record, observer, ended, reason)
    winner = max(finished, key=lambda trial: (trial.metrics["val/psnr"], -trial.number))
    record = record.model_copy(
        update={
            "params": winner.params,
            "notes": {"winner": winner.number},
            "metrics": {
                "val/psnr": winner.metrics["val/psnr"],
                "search/trials": float(len(trials)),
                "search/seconds": sum(trial.metrics.get("trial/seconds", 0) for trial in trials),
            },
        }
    )
    return _test(bench, row, folder, record, observer)


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
    """Runs the trials that are still missing; returns the records of all that count."""
    task, wanted = bench.task, planned_trials(row, bench)
    published = bench.study.rules == "published"
    space = {} if published else row.space(task)
    distributions = {name: distribution(search) for name, search in space.items()}
    sampler = NumberedSampler(distributions, digests.seed(bench.study.seed, row.name, "search"))
    study = journal.open_study(folder, distributions, sampler)
    fixed = row.published(task) if published else row.defaults(task)
    if space:
        _enqueue_known(study, row, task, fixed, space)
    ended = _counted(study, folder)
    observer.method(row.name, wanted, len(ended))
    while len(ended) < wanted:
        sampler.index = len(ended)
        trial = study.ask(distributions)
        seed = digests.seed(bench.study.seed, row.name, "trial", len(ended))
        record = bench.blank("trial", row, trial.number, seed)
        record = record.model_copy(
            update={"params": fixed | trial.params, "notes": {"index": len(ended)}}
        )
        ended.append(_run_trial(bench, row, study, trial, record, folder, observer))
    return ended[:wanted]


def _run_trial(
    bench: Workbench,
    row: Row,
    study: optuna.Study,
    trial: optuna.Trial,
    record: RunRecord,
    folder: Path,
    observer: Observer,
) -> RunRecord:
    def report(step: int, value: float) -> None:
        trial.report(value, step)
        if trial.should_prune():
            raise Pruned(f"validation PSNR {value:.2f} dB at step {step} was below the median")

    observer.run("trial", row.name, record.number)
    place = journal.trial_folder(folder, trial.number)
    outcome = run_trial(bench, row, record, place, report, observer.epoch)
    journal.tell(study, trial.number, outcome.record)
    observer.ended(outcome.record)
    return outcome.record


def _enqueue_known(
    study: optuna.Study, row: Row, task: Task, defaults: dict[str, Value], space: dict
) -> None:
    """Queues the defaults and the published settings, once, as a search's first trials."""
    if study.get_trials(deepcopy=False):
        return
    queued = []
    for values in (defaults, relative(row.published(task), task.largest())):
        point = {
            name: values[name] for name, search in space.items() if search.admits(values[name])
        }
        if point and point not in queued:
            queued.append(point)
            study.enqueue_trial(point)


def relative(values: dict[str, Value], largest: float) -> dict[str, Value]:
    """Absolute step and weight in the units of a search: 1/lambda_max and lambda_max."""
    if values.get("solve.units") != "absolute":
        return values
    found = values | {"solve.step": values["solve.step"] * largest}
    if "solve.weight" in values:
        found["solve.weight"] = values["solve.weight"] / largest
    return found


def _counted(study: optuna.Study, folder: Path) -> list[RunRecord]:
    """Records of the trials that count against the budget: all that ended by themselves."""
    found = []
    for trial in study.get_trials(deepcopy=False):
        place = journal.trial_folder(folder, trial.number)
        if trial.state in (TrialState.WAITING, TrialState.RUNNING):
            continue
        if (place / records.RECORD).exists():
            record = records.read(place)
            if record.state not in ("interrupted", "running"):
                found.append(record)
    return found


def _test(
    bench: Workbench, row: Row, folder: Path, record: RunRecord, observer: Observer
) -> RunRecord:
    """Refits the winner over seeds and reads the test images once for each."""
    count = bench.study.budget.seeds if row.method.stochastic else 1
    outcomes: list[Outcome | None] = []
    seeds: list[RunRecord] = []
    for number in range(count):
        place = folder / f"seed-{number}"
        done = records.read(place) if (place / records.RECORD).exists() else None
        if done is not None and done.state == "finished" and done.params == record.params:
            seeds.append(done)
            outcomes.append(None)
            continue
        observer.run("seed", row.name, number)
        seed = digests.seed(bench.study.seed, row.name, "seed", number)
        blank = bench.blank("seed", row, number, seed)
        blank = blank.model_copy(update={"params": record.params})
        reason = f"{bench.study.name} / {row.name}: seed {number} of the winner"
        images = bench.task.images.test(reason)
        outcome = run_seed(bench, row, blank, place, images, observer.epoch)
        observer.ended(outcome.record)
        seeds.append(outcome.record)
        outcomes.append(outcome)
    ended = [seed for seed in seeds if seed.state != "finished"]
    if ended:
        reason = f"seed {ended[0].number} of the winner {ended[0].state}: {ended[0].reason}"
        return _conclude(folder, record, observer, ended[0].state, reason)
    if outcomes[0] is not None:
        _keep_pictures(folder, outcomes[0], bench.task)
        keep_matrix(folder, row, outcomes[0], bench.task)
    return _conclude(folder, _summary(folder, record, seeds), observer, "finished")


def _summary(folder: Path, record: RunRecord, seeds: list[RunRecord]) -> RunRecord:
    """The method's record with the figures of all seeds, and their tables joined beside it."""
    for name in ("images.parquet", "curves.parquet"):
        parts = [pd.read_parquet(folder / f"seed-{seed.number}" / name) for seed in seeds]
        pd.concat(parts, ignore_index=True).to_parquet(folder / name, index=False)
    operator = folder / "seed-0" / "operator.safetensors"
    if operator.exists():
        (folder / operator.name).write_bytes(operator.read_bytes())
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
            "notes": record.notes | seeds[0].notes | {"test_reads": len(seeds)},
        }
    )


def _keep_pictures(folder: Path, outcome: Outcome, task: Task) -> None:
    """Original, measurement and reconstruction of some test images, clipped to [0, 1]."""
    evaluation = outcome.evaluation
    shown = evaluation.images.first(PICTURES)
    measured = task.measure(shown)
    if measured.is_complex() or measured.dim() != 4 or measured.shape[1] != task.shape[0]:
        measured = task.student.A_adjoint(measured)  # measurements that are no picture
        measured = measured / measured.abs().amax((1, 2, 3), keepdim=True)
    pictures = {}
    for index, name in enumerate(shown.names):
        place = evaluation.images.names.index(name)
        pictures |= {
            f"original/{name}": shown.pixels[index],
            f"measurement/{name}": measured[index].cpu(),
            f"reconstruction/{name}": evaluation.estimates[place],
        }
    plain = {
        name: picture.float().mean(0).clamp(0, 1).contiguous() for name, picture in pictures.items()
    }
    save_file(plain, folder / "pictures.safetensors")


def read_study(folder: Path) -> StudyFile:
    """The resolved study kept in a study's folder."""
    return StudyFile.model_validate(json.loads((folder / STUDY).read_text(encoding="utf-8")))
