"""Trials and seeds: runs of a row with given parameters, one by one or as a race."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dipa_bench import devices
from dipa_bench.data.images import ImageSet
from dipa_bench.evaluation.race import race
from dipa_bench.methods import Progress
from dipa_bench.search.attempt import MEASURED_NOTE, Attempt, Report
from dipa_bench.search.bench import Workbench
from dipa_bench.search.row import Row
from dipa_bench.tracking.records import RunRecord

GROUP = 8  # settings in one job; on a GPU one batch, as a few images do not fill the device
SETTINGS_NOTE = "settings_in_batch"  # of a trial that ran beside others


def run_trial(
    bench: Workbench,
    row: Row,
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
    return run_trials(bench, row, [record], [place], (), report, progress)[0]


def run_trials(
    bench: Workbench,
    row: Row,
    blanks: Sequence[RunRecord],
    places: Sequence[Path],
    bar: Sequence[float],
    report: Report,
    progress: Callable[[Progress], None],
) -> tuple[RunRecord, ...]:
    """Several trials; settings that need no training race, in one batch where they can be joined.

    Once memory did not suffice, a row's settings are run one after the other in smaller batches.

    Args:
        bench, row: as for `run_trial`.
        blanks, places: of each trial.
        bar: validation PSNRs of the best setting so far, in racing order; empty for none.
        report, progress: as for `run_trial`.

    Raises:
        OSError: as `run_trial`.
    """
    pairs = list(zip(blanks, places, strict=True))
    runs = [Attempt(bench, row, blank, place, "val", report, progress) for blank, place in pairs]
    images = bench.task.images.validation
    short = row.name in bench.batches or any(MEASURED_NOTE in blank.notes for blank in blanks)
    try:
        if untrained(row) and not short:
            _race(bench, runs, images, bar)
        else:
            for run in runs:
                _measure(runs, run, images)
    except KeyboardInterrupt:
        for run in runs:
            run.stop()
        raise
    return tuple(run.end() for run in runs)


def run_seed(
    bench: Workbench,
    row: Row,
    record: RunRecord,
    place: Path,
    images: ImageSet,
    progress: Callable[[Progress], None] = lambda progress: None,
) -> RunRecord:
    """Fits with the final budget and tests on `images`, keeping curves and the operator."""
    run = Attempt(bench, row, record, place, "test", lambda step, value: None, progress)
    run.attempt(lambda: run.measure(images))
    return run.end()


def _race(
    bench: Workbench, runs: Sequence[Attempt], images: ImageSet, bar: Sequence[float]
) -> None:
    """Fits all, then runs them on the images as far as they may still be the best."""
    for run in runs:
        started = time.perf_counter()
        run.attempt(lambda run=run: run.fit_or_measure(images))
        _others(runs, run, time.perf_counter() - started)
    ready = [run for run in runs if run.alive and not run.measured]
    if not ready:
        return
    if len(ready) > 1 and joins(bench):
        for run in ready:
            run.note(SETTINGS_NOTE, len(ready))
    started = time.perf_counter()
    found = race(
        [run.reconstructor for run in ready],
        bench.task,
        images,
        bar if len(bar) == len(images) else None,
        enabled=bench.study.search.race and len(bench.study.objectives) == 1,
        joined=joins(bench),
    )
    elapsed = time.perf_counter() - started
    work = [raced.seconds * len(raced.mse) for raced in found]
    for run in runs:
        run.aside(elapsed)
    for run, raced, own in zip(ready, found, work, strict=True):
        run.aside(-elapsed * own / (sum(work) or 1.0))
        if raced.error is not None and devices.out_of_memory(raced.error):
            raced.error.with_traceback(None)  # its frames hold what filled the memory
            devices.free_memory(bench.task.device)
            _measure(runs, run, images)
        else:
            run.attempt(lambda run=run, raced=raced: run.score(raced))


def _measure(runs: Sequence[Attempt], mine: Attempt, images: ImageSet) -> None:
    """Fits and measures one run of a batch."""
    started = time.perf_counter()
    mine.attempt(lambda: mine.measure(images))
    _others(runs, mine, time.perf_counter() - started)


def _others(runs: Sequence[Attempt], mine: Attempt, seconds: float) -> None:
    """Time that one run of a batch took is none of the others'."""
    for run in runs:
        if run is not mine:
            run.aside(seconds)


def untrained(row: Row) -> bool:
    """Whether a row's settings need no training, so that trying one is running it."""
    return not row.method.stochastic


def joins(bench: Workbench) -> bool:
    """Whether several settings run as one batch; a CPU gains nothing, and rounds differently."""
    return bench.study.search.batch is not None or bench.task.device.type == "cuda"


def batch_of(bench: Workbench, row: Row, blind: bool, hands: int) -> int:
    """How many trials of a row are one job, whose settings race against each other.

    Args:
        bench, row: the workbench and the row.
        blind: whether the next draws would be the same whatever the trials before them brought.
        hands: workers that share the trials out.
    """
    study = bench.study
    if not untrained(row) or "seconds" in study.objectives:
        return 1  # a batch's seconds are shared alike, whoever took them
    if study.search.batch is not None or joins(bench):
        return study.search.batch or GROUP
    if not blind or study.budget.minutes is not None or study.search.plateau is not None:
        return 1  # whether there is a next trial depends on this one
    return max(1, GROUP // hands)
