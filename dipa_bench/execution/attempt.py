"""One run under way: fitted, measured, written down, whatever happens to it."""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
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
from dipa_bench.evaluation.race import Raced
from dipa_bench.execution import shifts
from dipa_bench.execution.artifacts import count_parameters, curves_of, keep_run, notes_of, state_of
from dipa_bench.execution.context import StudyContext
from dipa_bench.methods import Budget, FitContext, Progress, Reconstructor
from dipa_bench.parameters import Value
from dipa_bench.reuse import fit_or_reuse
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
        record = record.model_copy(update={"environment": dict(context.environment)})
        self._context, self._entry, self._record, self._place = context, entry, record, place
        self._split, self._final = split, split == "test"
        records.write(place, record)
        self._checkpoints = (
            place.parent / CHECKPOINTS / digests.of(split, record.params, record.seed)
        )
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
        self._started, self._shared_before = time.perf_counter(), context.shared_seconds
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
                self.series = curves_of(self._fit_context, None)

    def stop(self) -> None:
        """Writes down that the user stopped it."""
        stopped = {"state": "interrupted", "reason": "stopped by the user"}
        stopped |= {"finished": records.end_time(self._record)}
        records.write(self._place, self._record.model_copy(update=stopped))

    def note(self, name: str, value: Value) -> None:
        """Keeps a fact for the record."""
        self._fit_context.notes[name] = value

    def aside(self, seconds: float) -> None:
        """Time that passed for other runs of the same batch, and does not count for this one."""
        self._paused += seconds

    def end(self) -> RunRecord:
        """The record as the run ended, written."""
        shutil.rmtree(self._checkpoints, ignore_errors=True)
        self.metrics["fit/peak_memory"] = float(devices.peak_memory(self._context.task.device))
        self.metrics["trial/seconds"] = time.perf_counter() - self._started - self._paused
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
        context, saved, method = self._context, self._context.saved, self._entry.method
        values = parameters.build(method.parameters, self._record.params)
        self.reconstructor, elapsed = devices.timed(
            lambda: fit_or_reuse(
                method, context.task, values, self._fit_context, context.operator_cache
            ),
            context.task.device,
        )
        self.metrics["fit/seconds"] = elapsed + context.saved - saved + self._fit_context.earlier

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
        """Takes what came of a race; one that it left early counts as pruned.

        Raises:
            Diverged: as `Raced.check`.
        """
        raced.check()
        self.metrics |= raced.metrics("val")
        self.metrics["parameters"] = float(count_parameters(self.reconstructor))
        self.series = curves_of(self._fit_context, None)
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
