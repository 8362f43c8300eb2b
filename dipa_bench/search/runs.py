"""One run: fit a method with given parameters, measure it, write it down."""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from traceback import format_exception
from typing import Any

from safetensors import SafetensorError

from dipa_bench import devices, digests, parameters
from dipa_bench.data.images import ImageSet
from dipa_bench.errors import Diverged, Pruned, UserError, brief
from dipa_bench.evaluation.evaluate import BATCH, Evaluation, evaluate
from dipa_bench.evaluation.race import Raced, race
from dipa_bench.methods import Budget, FitContext, Progress, Reconstructor
from dipa_bench.parameters import Value
from dipa_bench.reuse import fit_or_reuse
from dipa_bench.search import shifts
from dipa_bench.search.bench import Workbench
from dipa_bench.search.kept import count_parameters, curves_of, keep_run, notes_of, state_of
from dipa_bench.search.row import Row
from dipa_bench.search.study_file import BudgetSpec
from dipa_bench.tasks.base import Task
from dipa_bench.tracking import records
from dipa_bench.tracking.records import RunRecord

CHECKPOINTS = ".checkpoints"  # below a row's folder: a trial that is run again has a new number
SHIFTS = "shifts.parquet"
GROUP = 8  # settings in one job; on a GPU one batch, as a few images do not fill the device
SETTINGS_NOTE = "settings_in_batch"  # of a trial that ran beside others
BATCH_NOTE = "batch_size"  # of a fit for whose batches the memory did not suffice
MEASURED_NOTE = "images_in_batch"  # that were measured at once in such a run
STORAGE = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EROFS", "EIO", "EACCES", "EPERM")}
Report = Callable[[int, float], str | None]
"""(step, validation PSNR) -> why the search gives the trial up, or None."""
OS_ERROR = re.compile(r"\(os error (\d+)\)")  # in the words of safetensors, which is Rust


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
    runs = [_Run(bench, row, blank, place, "val", report, progress) for blank, place in pairs]
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
    run = _Run(bench, row, record, place, "test", lambda step, value: None, progress)
    run.attempt(lambda: run.measure(images))
    return run.end()


class _Run:
    """One run under way: its record, clock and context, and how it ends.

    Args:
        bench, row: as for `run_trial`.
        record: blank; written at once.
        place: its run folder.
        split: ``val`` of a trial, ``test`` of a seed.
        report, progress: as for `run_trial`.

    Attributes:
        metrics, series: for the record.
        reconstructor: what was fitted.
    """

    def __init__(
        self,
        bench: Workbench,
        row: Row,
        record: RunRecord,
        place: Path,
        split: str,
        report: Report,
        progress: Callable[[Progress], None],
    ) -> None:
        record = record.model_copy(update={"environment": dict(bench.environment)})
        self._bench, self._row, self._record, self._place = bench, row, record, place
        self._split, self._final = split, split == "test"
        records.write(place, record)
        self._checkpoints = (
            place.parent / CHECKPOINTS / digests.of(split, record.params, record.seed)
        )
        self._context = FitContext(
            seed=record.seed,
            budget=budget_of(bench.study.budget, self._final),
            folder=self._checkpoints,
            teachers=bench.teachers,
            lmmse=bench.lmmse,
            report=_stopping(report),
            progress=progress,
        )
        self.metrics: dict[str, float] = {}
        self.series: dict = {}
        self.reconstructor: Reconstructor | None = None
        self._update: dict[str, Any] = {"state": "finished"}
        devices.reset_peak_memory(bench.task.device)
        self._started, self._lent = time.perf_counter(), bench.lent
        self._paused = 0.0

    @property
    def measured(self) -> bool:
        """Whether there are figures of the split."""
        return f"{self._split}/psnr" in self.metrics

    @property
    def alive(self) -> bool:
        """Whether nothing has ended it yet."""
        return self._update["state"] == "finished"

    def attempt(self, work: Callable[[], None]) -> None:
        """Does a part of the run; what it raises is how the run ends.

        Raises:
            OSError: a disk that is full or read-only.
        """
        try:
            work()
        except KeyboardInterrupt:
            self.stop()
            raise
        except (Exception, SystemExit) as error:  # a method may fail in any way; others go on
            self._update = _ending(error, self._place)
            with suppress(Exception):  # what a broken fit noted may be broken as well
                self.series = curves_of(self._context, None)

    def stop(self) -> None:
        """Writes down that the user stopped it."""
        stopped = {"state": "interrupted", "reason": "stopped by the user"}
        stopped |= {"finished": now(self._record)}
        records.write(self._place, self._record.model_copy(update=stopped))

    def note(self, name: str, value: Value) -> None:
        """Keeps a fact for the record."""
        self._context.notes[name] = value

    def aside(self, seconds: float) -> None:
        """Time that passed for other runs of the same batch, and does not count for this one."""
        self._paused += seconds

    def end(self) -> RunRecord:
        """The record as the run ended, written."""
        shutil.rmtree(self._checkpoints, ignore_errors=True)
        self.metrics["fit/peak_memory"] = float(devices.peak_memory(self._bench.task.device))
        self.metrics["trial/seconds"] = time.perf_counter() - self._started - self._paused
        self.metrics["trial/borrowed"] = self._bench.lent - self._lent
        finite = {name: value for name, value in self.metrics.items() if math.isfinite(value)}
        done = self._record.model_copy(
            update=self._update
            | {
                "metrics": finite,
                "series": self.series,
                "notes": notes_of(self._context) | self._record.notes,
                "finished": now(self._record),
            }
        )
        records.write(self._place, done)
        return done

    def fit(self) -> None:
        """Fits, or takes an operator that was fitted before."""
        bench, started, saved = self._bench, time.perf_counter(), self._bench.saved
        values = parameters.build(self._row.method.parameters, self._record.params)
        self.reconstructor = fit_or_reuse(
            self._row.method, bench.task, values, self._context, bench.shelf
        )
        devices.synchronise(bench.task.device)
        elapsed = time.perf_counter() - started
        self.metrics["fit/seconds"] = elapsed + bench.saved - saved + self._context.earlier

    def fit_or_measure(self, images: ImageSet) -> None:
        """Fits; where memory does not suffice, measures as well, in smaller batches."""
        try:
            self.fit()
            return
        except Exception as error:
            if not devices.out_of_memory(error):
                raise
        self.measure(images)

    def score(self, raced: Raced) -> None:
        """Takes what came of a race.

        Raises:
            Pruned: it was given up.
            Diverged: as `Raced.check`.
        """
        raced.check()
        self.metrics |= raced.metrics("val")
        self.metrics["parameters"] = float(count_parameters(self.reconstructor))
        self.series = curves_of(self._context, None)
        self._update["validation"] = raced.psnr.tolist()
        if not raced.complete:
            self.metrics["val/psnr_estimate"] = raced.estimate
            self._update |= {
                "state": "pruned",
                "reason": f"significantly worse than the best on the first {len(raced.mse)} of "
                f"{raced.total} validation images",
            }

    def measure(self, images: ImageSet) -> None:
        """Fits and measures, in smaller batches where memory does not suffice.

        The size that a row came down to is where its next run begins; records note it, so that a
        run is repeated with the same.
        """
        context, row, full = self._context, self._row, self._bench.study.budget.batch_size
        most = int(self._record.notes.get(MEASURED_NOTE, self._bench.batches.get(row.name, BATCH)))
        while True:
            size = max(1, full * most // BATCH)
            context.budget = replace(context.budget, batch_size=size)
            if most < BATCH:
                context.notes |= {BATCH_NOTE: size, MEASURED_NOTE: most}
            self.reconstructor = None
            try:
                self._fit_and_measure(images, most)
                return
            except Exception as error:
                smallest = size if self.reconstructor is None else most
                if smallest == 1 or not devices.out_of_memory(error):
                    raise
                reason = brief(error)
            self.reconstructor = None
            context.notes["memory"] = f"{size} in a batch, {most} to measure: {reason}"
            most = self._bench.batches[row.name] = most // 2
            context.series.clear()
            devices.free_memory(self._bench.task.device)

    def _fit_and_measure(self, images: ImageSet, batch: int) -> None:
        """Fits, measures in batches of so many images, and keeps the files of a tested seed."""
        bench, final, split = self._bench, self._final, self._split
        self.fit()
        task = bench.task.tested if final else bench.task
        found = evaluate(
            self.reconstructor, task, images, record=final, with_ssim=final, batch=batch
        ).check()
        self.metrics |= found.metrics(split)
        if not math.isfinite(self.metrics[f"{split}/psnr"]):
            raise Diverged(
                f"the mean PSNR is {self.metrics[f'{split}/psnr']}: a reconstruction is the truth"
            )
        self.metrics["parameters"] = float(count_parameters(self.reconstructor))
        if final:
            self._keep(images, found, task)
        self.series = curves_of(self._context, found)

    def _keep(self, images: ImageSet, found: Evaluation, task: Task) -> None:
        """Writes a tested seed's files, and its scores at the study's further settings."""
        number, context, method = self._record.number, self._context, self._row.method
        context.notes |= keep_run(self._place, number, method, self.reconstructor, found, task)
        if not self._bench.study.shifts:
            return
        values = parameters.build(method.parameters, self._record.params)
        state = state_of(self.reconstructor)
        scores = shifts.score(
            method, self._bench.shifted, values, state, images, found, number, context
        )
        scores.to_parquet(self._place / SHIFTS, index=False)
        means = scores.groupby("setting", sort=False)["psnr"].mean()
        self.metrics |= {f"shift/{name}/psnr": value for name, value in means.items()}


def _race(bench: Workbench, runs: Sequence[_Run], images: ImageSet, bar: Sequence[float]) -> None:
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


def _measure(runs: Sequence[_Run], mine: _Run, images: ImageSet) -> None:
    """Fits and measures one run of a batch."""
    started = time.perf_counter()
    mine.attempt(lambda: mine.measure(images))
    _others(runs, mine, time.perf_counter() - started)


def _others(runs: Sequence[_Run], mine: _Run, seconds: float) -> None:
    """Time that one run of a batch took is none of the others'."""
    for run in runs:
        if run is not mine:
            run.aside(seconds)


def _stopping(report: Report) -> Callable[[int, float], None]:
    """A report as a fit knows it: it raises where the search gives the trial up."""

    def tell(step: int, value: float) -> None:
        if reason := report(step, value):
            raise Pruned(reason)

    return tell


def _ending(error: BaseException, place: Path) -> dict[str, str]:
    """State and reason of a run that `error` ended.

    Raises:
        OSError: a disk that is full or read-only is no fault of the method: the study stops.
    """
    if isinstance(error, Pruned):
        return {"state": "pruned", "reason": brief(error, kind=False)}
    if isinstance(error, Diverged):
        return {"state": "diverged", "reason": brief(error, kind=False)}
    if isinstance(error, OSError) and error.errno in STORAGE:
        raise error
    if isinstance(error, SafetensorError) and (found := OS_ERROR.search(str(error))):
        code = int(found.group(1))
        raise OSError(code, os.strerror(code), str(place)) from error
    (place / "traceback.txt").write_text("".join(format_exception(error)), encoding="utf-8")
    return {"state": "failed", "reason": brief(error, kind=not isinstance(error, UserError))}


def now(record: RunRecord) -> float:
    """The time at which a run ends: never before it began, wherever the clock was set to."""
    return max(record.started, time.time())


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


def budget_of(spec: BudgetSpec, final: bool) -> Budget:
    return Budget(
        epochs=spec.final_epochs if final else spec.epochs,
        train_images=spec.train_images,
        validation_images=spec.validation_images,
        batch_size=spec.batch_size,
        rungs=1 if final else spec.rungs,
    )
