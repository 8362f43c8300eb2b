"""One run under way: fitted, measured, written down, whatever happens to it."""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from traceback import format_exception
from typing import Any

from safetensors import SafetensorError

from dipa_bench import devices, digests, names, parameters
from dipa_bench.config.entry import Entry
from dipa_bench.config.study_file import BudgetSpec
from dipa_bench.data.images import ImageSet
from dipa_bench.errors import Diverged, Pruned, UserError, brief
from dipa_bench.evaluation.evaluate import BATCH, Evaluation, evaluate
from dipa_bench.evaluation.race import Raced, racing_order
from dipa_bench.execution import shifts
from dipa_bench.execution.artifacts import count_parameters, curves_of, keep_run, notes_of, state_of
from dipa_bench.execution.context import StudyContext
from dipa_bench.methods import Budget, FitContext, Iterative, Progress, Reconstructor
from dipa_bench.parameters import Value
from dipa_bench.preconditioners import Identity
from dipa_bench.reuse import KeptFits, fit_or_reuse
from dipa_bench.search.jobs import Job
from dipa_bench.search.stages import FITS
from dipa_bench.tasks.base import Task
from dipa_bench.tracking import records
from dipa_bench.tracking.records import RunRecord

CHECKPOINTS = ".checkpoints"  # below an entry's folder: a trial that is run again has a new number
BATCH_NOTE = "batch_size"  # of a fit for whose batches the memory did not suffice
MEASURED_NOTE = "images_in_batch"  # that were measured at once in such a run
STORAGE = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EROFS", "EIO", "EACCES", "EPERM")}
Report = Callable[[int, float], str | None]
"""(step, validation PSNR) -> why the search gives the trial up, or None."""
OS_ERROR = re.compile(r"\(os error (\d+)\)")  # in the words of safetensors, which is Rust


class Attempt:
    """One run under way: its record, clock and context, and how it ends.

    Args:
        context, entry: as for `run_trial`.
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
        context: StudyContext,
        entry: Entry,
        record: RunRecord,
        place: Path,
        split: str,
        report: Report,
        progress: Callable[[Progress], None],
    ) -> None:
        started = time.perf_counter()
        record = record.model_copy(update={"environment": dict(context.environment)})
        self._context, self._entry, self._record, self._place = context, entry, record, place
        self._split, self._final = split, split == "test"
        records.write(place, record)
        self._checkpoints = (
            place.parent / CHECKPOINTS / digests.of(split, record.params, record.seed)
        )
        self._kept_fits = KeptFits(place.parent / FITS)
        self._fit_context = FitContext(
            seed=record.seed,
            budget=budget_of(context.study.budget, self._final),
            folder=self._checkpoints,
            teachers=context.teachers,
            lmmse=context.lmmse,
            report=_stopping(report),
            progress=progress,
        )
        self.metrics: dict[str, float] = {}
        self.series: dict = {}
        self.reconstructor: Reconstructor | None = None
        self._update: dict[str, Any] = {"state": "finished"}
        devices.reset_peak_memory(context.task.device)
        self._shared_before = context.shared_seconds
        self._seconds = time.perf_counter() - started

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
        started = time.perf_counter()
        try:
            work()
        except KeyboardInterrupt:
            self.stop()
            raise
        except (Exception, SystemExit) as error:  # a method may fail in any way; others go on
            self._update = _ending(error, self._place)
            with suppress(Exception):  # what a broken fit noted may be broken as well
                self.series = curves_of(self._fit_context, None)
        self.charge(time.perf_counter() - started)

    def stop(self) -> None:
        """Writes down that the user stopped it."""
        stopped = {"state": "interrupted", "reason": "stopped by the user"}
        stopped |= {"finished": records.end_time(self._record)}
        records.write(self._place, self._record.model_copy(update=stopped))

    @property
    def plain_settings(self) -> str | None:
        """The solver's settings, where there is no operator: all that its scores depend on."""
        method, found = self._entry.method, self.reconstructor
        if type(found) is not Iterative or type(found.preconditioner) is not Identity:
            return None
        return parameters.build(method.parameters, self._record.params).solve.model_dump_json()

    def note(self, name: str, value: Value) -> None:
        """Keeps a fact for the record."""
        self._fit_context.notes[name] = value

    def charge(self, seconds: float) -> None:
        """Counts time of a batch that this run took."""
        self._seconds += seconds

    def end(self) -> RunRecord:
        """The record as the run ended, written."""
        shutil.rmtree(self._checkpoints, ignore_errors=True)
        self.metrics["fit/peak_memory"] = float(devices.peak_memory(self._context.task.device))
        self.metrics["trial/seconds"] = self._seconds
        self.metrics["trial/shared_seconds"] = self._context.shared_seconds - self._shared_before
        finite = {name: value for name, value in self.metrics.items() if math.isfinite(value)}
        done = self._record.model_copy(
            update=self._update
            | {
                "metrics": finite,
                "series": self.series,
                "notes": notes_of(self._fit_context) | self._record.notes,
                "finished": records.end_time(self._record),
            }
        )
        records.write(self._place, done)
        return done

    def fit(self) -> None:
        """Fits, or takes an operator that was fitted before."""
        context, saved = self._context, self._context.saved
        work = self._fitted_elsewhere if self._record.fitted_at else self._fit_here
        self.reconstructor, elapsed = devices.timed(work, context.task.device)
        self.metrics["fit/seconds"] = elapsed + context.saved - saved + self._fit_context.earlier

    def _fit_here(self) -> Reconstructor:
        """The operator that its own parameters lead to."""
        context, method = self._context, self._entry.method
        values = parameters.build(method.parameters, self._record.params)
        found = fit_or_reuse(
            method, context.task, values, self._fit_context, context.operator_cache
        )
        if self._record.stage == "fit":
            self._kept_fits.put(self._fit_key, state_of(found), notes_of(self._fit_context))
        return found

    def _fitted_elsewhere(self) -> Reconstructor:
        """The operator that was fitted at other solver settings, with its own settings."""
        method, task, record = self._entry.method, self._context.task, self._record
        values = parameters.build(method.parameters, record.params)
        untrained = record.stage == "settings"
        if untrained and not method.unrolled:
            return self._fit_context.reconstructor(task, values.solve, Identity())
        kept = self._kept_fits.take(self._fit_key)
        if kept is None or record.stage not in ("settings", "tuned"):
            fit_context = self._fit_context
            if untrained:
                budget = replace(fit_context.budget, epochs=0, rungs=1)
                fit_context = replace(fit_context, budget=budget)
            if record.stage:  # the search gave up what it would, when it was fitted
                fit_context = replace(fit_context, report=lambda step, value: None)
            trained = parameters.build(method.parameters, record.params | record.fitted_at)
            found = method.fit(task, trained, fit_context)
            notes = notes_of(self._fit_context)
            plain = untrained and notes.get("initial") == "identity"  # it needs no numbers
            kept = {} if plain else state_of(found), notes
            if record.stage:
                self._kept_fits.put(self._fit_key, *kept)
        state, notes = kept
        self._fit_context.notes |= notes
        if untrained and notes.get("initial") == "identity":
            return self._fit_context.reconstructor(task, values.solve, Identity())
        state = {name: part.to(task.device) for name, part in state.items()}
        return method.restore(task, values, state, self._fit_context)

    @property
    def _fit_key(self) -> str:
        """What an operator's numbers depend on."""
        record, budget = self._record, asdict(self._fit_context.budget)
        if record.stage == "settings":
            budget["epochs"] = 0
        return digests.of(record.params | record.fitted_at, record.seed, budget)

    def fit_or_measure(self, images: ImageSet) -> None:
        """Fits; where memory does not suffice, measures as well, in smaller batches."""
        try:
            self.fit()
            return
        except Exception as error:
            if not devices.out_of_memory(error):
                raise
        self.measure(images)

    def score(self, raced: Raced, total: int, job: Job) -> None:
        """Takes what came of a race; one without all validation images counts as pruned.

        Args:
            raced: of this run.
            total: validation images that there are.
            job: gives the incumbent, from which what was run on fewer images is estimated.

        Raises:
            Diverged: as `Raced.check`.
        """
        raced.check()
        psnr, seen = raced.psnr.tolist(), f"the first {len(raced.mse)} of {total} validation images"
        self.metrics["parameters"] = float(count_parameters(self.reconstructor))
        self.series = curves_of(self._fit_context, None)
        self._update["validation"] = psnr
        initial = self._record.stage == "settings" and self._entry.fits
        if raced.complete and raced.total == total and not initial:
            self.metrics |= raced.metrics("val")
            return
        self.metrics |= raced.costs
        self.metrics["val/psnr_estimate"] = estimated(psnr, total, job, raced.estimate)
        if not raced.complete:
            reason = f"significantly worse than the best on {seen}"
        elif initial:
            reason = f"settings of what is not fitted yet, on {seen}"
        else:
            reason = f"settings that were tried on {seen}"
        self._update |= {"state": "pruned", "reason": reason}

    def measure(self, images: ImageSet) -> None:
        """Fits and measures, in smaller batches where memory does not suffice.

        The size that an entry came down to is where its next run begins; records note it, so that a
        run is repeated with the same.
        """
        fit_context, entry, full = (
            self._fit_context,
            self._entry,
            self._context.study.budget.batch_size,
        )
        most = int(
            self._record.notes.get(MEASURED_NOTE, self._context.batches.get(entry.name, BATCH))
        )
        while True:
            size = max(1, full * most // BATCH)
            fit_context.budget = replace(fit_context.budget, batch_size=size)
            if most < BATCH:
                fit_context.notes |= {BATCH_NOTE: size, MEASURED_NOTE: most}
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
            fit_context.notes["memory"] = f"{size} in a batch, {most} to measure: {reason}"
            most = self._context.batches[entry.name] = most // 2
            fit_context.series.clear()
            devices.free_memory(self._context.task.device)

    def _fit_and_measure(self, images: ImageSet, batch: int) -> None:
        """Fits, measures in batches of so many images, and keeps the files of a tested seed."""
        context, final, split = self._context, self._final, self._split
        self.fit()
        task = context.task.tested if final else context.task
        found = evaluate(
            self.reconstructor, task, images, record=final, with_quality=final, batch=batch
        ).check()
        self.metrics |= found.metrics(split)
        if not final:
            order = racing_order(len(images))
            self._update["validation"] = [float(value) for value in found.psnr[order]]
        if not math.isfinite(self.metrics[f"{split}/psnr"]):
            raise Diverged(
                f"the mean PSNR is {self.metrics[f'{split}/psnr']}: a reconstruction is the truth"
            )
        self.metrics["parameters"] = float(count_parameters(self.reconstructor))
        if final:
            self._keep(images, found, task)
        self.series = curves_of(self._fit_context, found)

    def _keep(self, images: ImageSet, found: Evaluation, task: Task) -> None:
        """Writes a tested seed's files, and its scores at the study's further settings."""
        number, fit_context, method = self._record.number, self._fit_context, self._entry.method
        fit_context.notes |= keep_run(self._place, number, method, self.reconstructor, found, task)
        if not self._context.study.shifts:
            return
        values = parameters.build(method.parameters, self._record.params)
        state = state_of(self.reconstructor)
        scores = shifts.score(
            method, self._context.shifted, values, state, images, found, number, fit_context
        )
        scores.to_parquet(self._place / names.SHIFTS, index=False)
        means = scores.groupby("setting", sort=False)["psnr"].mean()
        self.metrics |= {f"shift/{name}/psnr": value for name, value in means.items()}


def estimated(psnr: Sequence[float], total: int, job: Job, otherwise: float) -> float:
    """Mean PSNR [dB] over all images of what was run on the first of them.

    It is the incumbent's, plus the mean difference to it on the images that both were run on.

    Args:
        psnr: of the images that it was run on, in racing order.
        total: images that there are.
        job: its incumbent.
        otherwise: what it is without one.
    """
    if len(psnr) == total:
        return math.fsum(psnr) / total
    if len(job.incumbent) < len(psnr) or not math.isfinite(job.estimate):
        return otherwise
    pairs = zip(psnr, job.incumbent[: len(psnr)], strict=True)
    return job.estimate + math.fsum(own - best for own, best in pairs) / len(psnr)


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


def budget_of(spec: BudgetSpec, final: bool) -> Budget:
    return Budget(
        epochs=spec.final_epochs if final else spec.epochs,
        train_images=spec.train_images,
        validation_images=spec.validation_images,
        batch_size=spec.batch_size,
        rungs=1 if final else spec.rungs,
    )
