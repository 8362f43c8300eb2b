"""Racing: settings are given up on the first images that show that another is better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dipa_bench import devices, digests
from dipa_bench.data.images import ImageSet
from dipa_bench.errors import Diverged
from dipa_bench.evaluation.evaluate import BATCH, in_range
from dipa_bench.methods import Reconstructor, as_batch
from dipa_bench.metrics import psnr_of_mse, psnr_pooled, squared_error
from dipa_bench.solvers import Trajectory
from dipa_bench.tasks.base import Task

FIRST = 5  # images before the first comparison; every next one comes after twice as many
LEVEL = 0.05  # p below which a difference counts
LARGEST = 512  # images in one batch of several candidates


@dataclass(frozen=True)
class Raced:
    """What a race saw of one candidate.

    Attributes:
        mse: of the images that it was run on, in racing order.
        total: N, images of the race.
        estimate: mean PSNR over these N images; of a candidate that was given up, the best one's
            mean plus the mean difference to it as far as it got. NaN of one that diverged.
        seconds: per image; a batch's are shared by its candidates alike.
        operator_calls, denoiser_calls: per image.
        error: what ended it, if it went wrong.
    """

    mse: Tensor
    total: int
    estimate: float
    seconds: float
    operator_calls: int
    denoiser_calls: int
    error: Exception | None = None

    @property
    def psnr(self) -> Tensor:
        """Of the images that it was run on, in racing order: an incumbent for later races."""
        return psnr_of_mse(self.mse)

    @property
    def complete(self) -> bool:
        """Whether it was run on all images, and well."""
        return self.error is None and len(self.mse) == self.total

    @property
    def in_order(self) -> Tensor:
        """The PSNRs of a complete one in the images' own order."""
        return self.psnr[torch.argsort(torch.tensor(racing_order(self.total)))]

    def check(self) -> Raced:
        """Itself.

        Raises:
            Diverged: an image's PSNR is outside the range (`in_range`), or infinite.
            Exception: what the reconstructor raised.
        """
        if self.error is not None:
            raise self.error
        return self

    @property
    def costs(self) -> dict[str, float]:
        """Flat figures of what one image costs."""
        return {
            "cost/operator_calls": float(self.operator_calls),
            "cost/denoiser_calls": float(self.denoiser_calls),
            "cost/seconds": self.seconds,
        }

    def metrics(self, split: str) -> dict[str, float]:
        """Flat figures as `Evaluation.metrics` has them; of an incomplete one its costs alone."""
        if not self.complete:
            return self.costs
        return {
            f"{split}/psnr": self.psnr.mean().item(),
            f"{split}/psnr_pooled": psnr_pooled(self.mse),
        } | self.costs


@dataclass
class _Runner:
    """A candidate on its way."""

    reconstructor: Reconstructor
    parts: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0
    operator_calls: int = 0
    denoiser_calls: int = 0
    running: bool = True
    error: Exception | None = None

    @property
    def mse(self) -> Tensor:
        return torch.cat(self.parts) if self.parts else torch.empty(0)

    @property
    def psnr(self) -> np.ndarray:
        return psnr_of_mse(self.mse).double().numpy()

    def take(self, run: Trajectory, truth: Tensor, seconds: float) -> None:
        """Scores a batch and notes what it cost."""
        self.parts.append(squared_error(run.estimate, truth).cpu())
        self.seconds += seconds
        self.operator_calls, self.denoiser_calls = run.operator_calls, run.denoiser_calls

    def fail(self, error: Exception) -> None:
        self.running, self.error = False, error

    def result(self, total: int, estimate: float) -> Raced:
        seconds = self.seconds / max(len(self.mse), 1)
        calls = self.operator_calls, self.denoiser_calls
        return Raced(self.mse, total, estimate, seconds, *calls, self.error)


def racing_order(count: int) -> list[int]:
    """The order in which a race runs through `count` images: random, always the same."""
    generator = torch.Generator().manual_seed(digests.seed("race", count))
    return torch.randperm(count, generator=generator).tolist()


def chunk_ends(count: int) -> list[int]:
    """Numbers of images after which candidates are compared, 5, 10, 20, ...; the last is all."""
    ends = []
    while (end := FIRST << len(ends)) < count:
        ends.append(end)
    return [*ends, count]


def significantly_below(values: np.ndarray, incumbent: np.ndarray) -> bool:
    """Whether a candidate is to be given up: its paired differences lie below zero.

    One-sided signed-rank test (F. Wilcoxon, Individual comparisons by ranking methods, Biometrics
    Bulletin 1, 1945), p < `LEVEL`, as in Optuna's `WilcoxonPruner`; like there a candidate
    whose mean is not below stays whatever the ranks say.

    Args:
        values, incumbent: PSNRs of the same images, finite.
    """
    from scipy.stats import wilcoxon

    difference = values - incumbent
    if difference.mean() >= 0:
        return False
    found = wilcoxon(difference, alternative="less", zero_method="zsplit")
    return bool(found.pvalue < LEVEL)


@torch.no_grad()
def race(
    reconstructors: Sequence[Reconstructor],
    task: Task,
    images: ImageSet,
    incumbent: Sequence[float] | None,
    *,
    enabled: bool = True,
    batched: bool = True,
    batch: int = BATCH,
    most: int | None = None,
    chunked: bool = True,
) -> list[Raced]:
    """Runs candidates on the images, as far as they may still be the best.

    All go through the images in one random order that depends on their number alone, in chunks that
    end at 5, 10, 20, ... images; batches have at most 64 measurements. At every end but the last a
    candidate that is `significantly_below` the best so far leaves off: the incumbent, or a
    candidate of this race with a better mean over these images. Candidates that can be run as one
    batch are. A single one always sees the same batches, so that on a CPU a repetition without an
    incumbent has bit for bit the PSNRs of the chunks that both ran.

    How often a good setting is dropped, simulated with normal differences of spread s and 40 (400)
    images, so 3 (7) looks: one exactly as good as the incumbent in 9% (19%) of races, one that is
    better by s / 10 in 4% (6%), by s / 4 in 1.5% (2%), by s / 2 in 0.2% (0.3%). Worse by s / 2, 73%
    (all) leave. The test is about ranks: where most differences lie slightly below zero and few far
    above (exponential ones), it drops 29% (76%) of the settings that are as good in the mean, 18%
    (33%) of those better by s / 10 and 8% (9%) of those better by s / 4; skewed the other way,
    fewer.

    Args:
        reconstructors: the candidates, at least one.
        task: the task.
        images: N of them.
        incumbent: PSNRs of the best setting so far on the same images, in racing order
            (`Raced.psnr`); None where there is none.
        enabled: whether candidates may be given up; the batches are the same without.
        chunked: whether there are chunks; without, images come in batches as large as can be
            (40 images take a tenth less time than in chunks), and nothing is given up.
        batched: whether candidates run as one batch where they can; else each is run like one that
            races alone, and only gives up sooner.
        batch: measurements in one run; fewer where memory is short.
        most: images that the race has, in their racing order; None for all.

    Returns:
        One for each candidate. What a reconstructor raises ends that one alone; see `Raced.check`.

    Raises:
        ValueError: the incumbent belongs to another number of images.
    """
    total = len(images) if most is None else min(most, len(images))
    given = None if incumbent is None else np.asarray(incumbent, dtype=np.float64)
    if given is not None and len(given) != total:
        raise ValueError(f"an incumbent of {len(given)} images for a race over {total}")
    order = racing_order(len(images))[:total]
    truth, measured = task.pixels(images)[order], task.measure(images)[order]
    runners = [_Runner(each) for each in reconstructors]
    done = 0
    for end in chunk_ends(total) if chunked else [total]:
        for start in range(done, end, batch):
            rows = slice(start, min(start + batch, end))
            _run(runners, task, measured[rows], truth[rows], batched)
        for runner in _running(runners):
            _notice_divergence(runner)
        if enabled and end < total:
            _compare(runners, given, end)
        done = end
    return _results(runners, given, total)


def _running(runners: Sequence[_Runner]) -> list[_Runner]:
    return [runner for runner in runners if runner.running]


def _run(
    runners: Sequence[_Runner], task: Task, measured: Tensor, truth: Tensor, batched: bool
) -> None:
    """One batch of measurements with all that still run, as many at once as `LARGEST` allows."""
    live = _running(runners)
    most = max(1, LARGEST // len(measured)) if batched else 1
    for start in range(0, len(live), most):
        group = live[start : start + most]
        if len(group) == 1 or not _run_together(group, task, measured, truth):
            for runner in group:
                _run_alone(runner, task, measured, truth)


def _run_together(group: Sequence[_Runner], task: Task, measured: Tensor, truth: Tensor) -> bool:
    """Whether it could be done; an error says nothing about whose it is."""
    batched = as_batch([runner.reconstructor for runner in group])
    if batched is None:
        return False
    try:
        runs, seconds = devices.timed(lambda: batched.run(measured, task.student), task.device)
    except Exception:  # one of them fails, or all are too much for the memory
        return False
    for runner, run in zip(group, runs, strict=True):
        runner.take(run, truth, seconds / len(group))
    return True


def _run_alone(runner: _Runner, task: Task, measured: Tensor, truth: Tensor) -> None:
    try:
        run, seconds = devices.timed(
            lambda: runner.reconstructor.run(measured, task.student), task.device
        )
        runner.take(run, truth, seconds)
    except Exception as error:  # a method may fail in any way; the others go on
        runner.fail(error)


def _notice_divergence(runner: _Runner) -> None:
    """Ends a candidate whose reconstructions left the image range, or are the truth itself."""
    try:
        in_range(runner.psnr)
    except Diverged as error:
        runner.fail(error)
        return
    if np.isinf(runner.psnr).any():
        runner.fail(Diverged("the mean PSNR is inf: a reconstruction is the truth"))


def _compare(runners: Sequence[_Runner], incumbent: np.ndarray | None, seen: int) -> None:
    """Gives up what is significantly worse than the best on the first `seen` images."""
    live = _running(runners)
    found = [runner.psnr for runner in live]
    rivals = found if incumbent is None else [*found, incumbent[:seen]]
    if not rivals:
        return
    best = max(rivals, key=np.mean)
    for runner, values in zip(live, found, strict=True):
        if values is not best and significantly_below(values, best):
            runner.running = False


def _results(runners: Sequence[_Runner], incumbent: np.ndarray | None, total: int) -> list[Raced]:
    """The outcomes; those given up are estimated from the best that was run on all images."""
    whole = [runner.psnr for runner in runners if runner.error is None]
    whole = [values for values in whole if len(values) == total]
    best = max(
        whole if incumbent is None else [*whole, incumbent], key=np.mean, default=np.empty(0)
    )
    return [runner.result(total, _estimate(runner, best)) for runner in runners]


def _estimate(runner: _Runner, best: np.ndarray) -> float:
    """A candidate's mean over all images, from the best's where it was not run on all."""
    values = runner.psnr
    if runner.error is not None or not len(values):
        return math.nan
    if len(values) >= len(best):  # complete, or nothing is
        return float(values.mean())
    return float(best.mean() + (values - best[: len(values)]).mean())
