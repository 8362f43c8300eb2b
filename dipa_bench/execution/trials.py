"""Runs of an entry with given parameters: trials, one by one or as a race, and tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dipa_bench import devices
from dipa_bench.config.entry import Entry
from dipa_bench.data.images import ImageSet
from dipa_bench.evaluation.race import Raced, race
from dipa_bench.execution.attempt import MEASURED_NOTE, Attempt, Report
from dipa_bench.execution.context import StudyContext
from dipa_bench.methods import Progress
from dipa_bench.search.batches import runs_as_batch, untrained
from dipa_bench.search.jobs import Job
from dipa_bench.tracking.records import RunRecord

SETTINGS_NOTE = "settings_in_batch"  # of a trial that ran beside others


def run_trial(
    context: StudyContext,
    entry: Entry,
    record: RunRecord,
    place: Path,
    report: Report = lambda step, value: None,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> RunRecord:
    """Fits and validates; the record, also written at `place`, says how it ended.

    Never raises for what a method does wrong: divergence and exceptions become the record's state.

    Raises:
        OSError: a disk that is full or read-only; the record stays that of a running trial.
    """
    job = Job(entry.name, "trial", (record,), (place,), races=False)
    return run_trials(context, entry, job, report, progress)[0]


def run_trials(
    context: StudyContext,
    entry: Entry,
    job: Job,
    report: Report,
    progress: Callable[[Progress], None],
) -> tuple[RunRecord, ...]:
    """Several trials; settings that need no training race, in one batch where they can be batched.

    Once memory did not suffice, an entry's settings are run one after the other in smaller batches.

    Args:
        context, entry: as for `run_trial`.
        job: of trials of one stage and as many images.
        report, progress: as for `run_trial`.

    Raises:
        OSError: as `run_trial`.
    """
    pairs = list(zip(job.records, job.places, strict=True))
    runs = [
        Attempt(context, entry, blank, place, "val", report, progress) for blank, place in pairs
    ]
    images = context.task.images.validation
    short = entry.name in context.batches or any(
        MEASURED_NOTE in record.notes for record in job.records
    )
    settings = untrained(entry) or job.records[0].stage in ("settings", "tuned")
    try:
        if settings and not short:
            _race(context, runs, images, job)
        else:
            for run in runs:
                run.attempt(lambda run=run: run.measure(images))
    except KeyboardInterrupt:
        for run in runs:
            run.stop()
        raise
    return tuple(run.end() for run in runs)


def run_seed(
    context: StudyContext,
    entry: Entry,
    record: RunRecord,
    place: Path,
    images: ImageSet,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> RunRecord:
    """Fits with the final budget and tests on `images`, keeping curves and the operator."""
    run = Attempt(context, entry, record, place, "test", lambda step, value: None, progress)
    run.attempt(lambda: run.measure(images))
    return run.end()


def _race(context: StudyContext, runs: Sequence[Attempt], images: ImageSet, job: Job) -> None:
    """Fits all, then runs them on the images as far as they may still be the best."""
    most = min(job.records[0].images or len(images), len(images))
    for run in runs:
        run.attempt(lambda run=run: run.fit_or_measure(images))
    ready = [run for run in runs if run.alive and not run.measured]
    if not ready:
        return
    if len(ready) > 1 and runs_as_batch(context):
        for run in ready:
            run.note(SETTINGS_NOTE, len(ready))
    found, elapsed = _raced(context, ready, images, most, job)
    work = [raced.seconds * len(raced.mse) for raced in found]
    for run, raced, own in zip(ready, found, work, strict=True):
        run.charge(elapsed * own / (sum(work) or 1.0))
        if raced.error is not None and devices.out_of_memory(raced.error):
            raced.error.with_traceback(None)  # its frames hold what filled the memory
            devices.free_memory(context.task.device)
            run.attempt(lambda run=run: run.measure(images))
        else:
            run.attempt(lambda run=run, raced=raced: run.score(raced, len(images), job))


def _raced(
    context: StudyContext, runs: Sequence[Attempt], images: ImageSet, most: int, job: Job
) -> tuple[list[Raced], float]:
    """A race's results and seconds; those of an earlier one without operators that was the same."""
    incumbent = job.incumbent[:most] if len(job.incumbent) >= most else None
    chunked, settings = job.records[0].races, tuple(run.plain_settings for run in runs)
    key = (settings, incumbent, most, job.races, chunked)
    kept = context.scores.take(key) if all(settings) else None
    if kept is not None:
        return kept
    started = time.perf_counter()
    found = race(
        [run.reconstructor for run in runs],
        context.task,
        images,
        incumbent,
        enabled=job.races and context.study.search.race and len(context.study.objectives) == 1,
        batched=runs_as_batch(context),
        most=most,
        chunked=chunked,
    )
    seconds = time.perf_counter() - started
    if all(settings):
        context.scores.put(key, found, seconds)
    return found, seconds
