"""From a reconstructor and a split to numbers, pictures and curves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dipa_bench import devices
from dipa_bench.data.images import ImageSet
from dipa_bench.errors import Diverged
from dipa_bench.methods import Reconstructor
from dipa_bench.metrics import (
    error_by_range,
    lpips,
    nmse,
    psnr_of_mse,
    psnr_pooled,
    squared_error,
    ssim,
)
from dipa_bench.solvers import Curves, Trajectory
from dipa_bench.tasks.base import Task

BATCH = 64
STILL = 0.01  # of an image's norm: an iteration that moves it less ends a run that may stop early
LOWEST = -20.0  # dB; a reconstruction worse than this has left the range of images altogether


@dataclass(frozen=True)
class Evaluation:
    """What a reconstructor did on a set of images.

    Attributes:
        images: N test cases, in order.
        estimates: N x C x H x W, on the CPU.
        psnr: N values.
        quality: those of `dipa_bench.names.QUALITY` that were asked for and are known, N values
            each.
        pooled: PSNR of the mean squared error over all images.
        curves: per-image curves, (K + 1) x N, on the CPU; None for methods without iterations.
        seconds: per image, the scoring's own time left out.
        operator_calls, denoiser_calls: per image.
    """

    images: ImageSet
    estimates: Tensor
    psnr: Tensor
    quality: dict[str, Tensor]
    pooled: float
    curves: Curves | None
    seconds: float
    operator_calls: int
    denoiser_calls: int

    def metrics(self, split: str) -> dict[str, float]:
        """Flat figures; `split` is ``val`` or ``test``."""
        figures = {
            f"{split}/psnr": self.psnr.mean().item(),
            f"{split}/psnr_pooled": self.pooled,
            "cost/operator_calls": float(self.operator_calls),
            "cost/denoiser_calls": float(self.denoiser_calls),
            "cost/seconds": self.seconds,
        }
        return figures | {f"{split}/{name}": v.mean().item() for name, v in self.quality.items()}

    def check(self) -> Evaluation:
        """Itself.

        Raises:
            Diverged: an image's PSNR is NaN or below `LOWEST`.
        """
        in_range(self.psnr.numpy())
        return self

    def image_table(self, seed: int) -> pd.DataFrame:
        """One row per image: seed, image, subject, psnr and `quality`."""
        return pd.DataFrame(
            {
                "seed": seed,
                "image": list(self.images.names),
                "subject": list(self.images.subjects),
                "psnr": self.psnr.double().numpy(),
                **{name: values.double().numpy() for name, values in self.quality.items()},
            }
        )

    def curve_table(self, seed: int) -> pd.DataFrame:
        """One row per image and iteration: seed, image, iteration, psnr, residual, step_norm."""
        if self.curves is None:
            return pd.DataFrame(
                {
                    "seed": seed,
                    "image": list(self.images.names),
                    "iteration": 0,
                    "psnr": self.psnr.double().numpy(),
                    "residual": math.nan,
                    "step_norm": math.nan,
                }
            )
        rows, count = self.curves.mse.shape
        return pd.DataFrame(
            {
                "seed": seed,
                "image": [name for name in self.images.names for _ in range(rows)],
                "iteration": list(range(rows)) * count,
                "psnr": psnr_of_mse(self.curves.mse).T.reshape(-1).numpy(),
                "residual": self.curves.residual.T.reshape(-1).numpy(),
                "step_norm": self.curves.step_norm.T.reshape(-1).numpy(),
            }
        )


def in_range(psnr: np.ndarray) -> None:
    """Checks that reconstructions are images at all.

    Args:
        psnr: theirs [dB], at least one.

    Raises:
        Diverged: one is NaN or below `LOWEST`.
    """
    lost = int((~(psnr >= LOWEST)).sum())
    if lost:
        raise Diverged(
            f"{lost} of {len(psnr)} reconstructions left the image range "
            f"(worst PSNR {psnr.min():.1f} dB)"
        )


@torch.no_grad()
def evaluate(
    reconstructor: Reconstructor,
    task: Task,
    images: ImageSet,
    *,
    record: bool = False,
    with_quality: bool = False,
    batch: int = BATCH,
) -> Evaluation:
    """Runs `reconstructor` on the student's measurements of `images`.

    Args:
        record: keep per-image curves, and time a run of the first batch without them, after one to
            warm up.
        with_quality: score more than PSNR (milliseconds per image); scores of other iterations
            than the last need the curves.
        batch: images in one run.
    """
    truth, measured = task.pixels(images), task.measure(images)
    batches = measured.split(batch)
    if record:  # curves and first calls take time that reconstructing does not
        reconstructor.run(batches[0], task.student)
        _, elapsed = devices.timed(lambda: reconstructor.run(batches[0], task.student), task.device)
        seconds = elapsed / len(batches[0])
    runs: list[Trajectory] = []

    def run_all() -> None:
        for y, x in zip(batches, truth.split(batch), strict=True):
            reference = x if record else None
            runs.append(reconstructor.run(y, task.student, record=record, reference=reference))

    _, elapsed = devices.timed(run_all, task.device)
    if not record:
        seconds = elapsed / len(images)
    estimates = torch.cat([run.estimate for run in runs])
    mse = squared_error(estimates, truth).cpu()
    curves = _joined([run.curves for run in runs])
    quality = _quality(task, estimates, truth, batch) if with_quality else {}
    if with_quality and record:
        quality |= _on_the_way(mse, curves, estimates.cpu())
    return Evaluation(
        images=images,
        estimates=estimates.cpu(),
        psnr=psnr_of_mse(mse),
        quality=quality,
        pooled=psnr_pooled(mse),
        curves=curves,
        seconds=seconds,
        operator_calls=runs[0].operator_calls,
        denoiser_calls=runs[0].denoiser_calls,
    )


def _quality(task: Task, estimates: Tensor, truth: Tensor, batch: int) -> dict[str, Tensor]:
    """Scores beside PSNR of reconstructions, on the CPU."""
    found = {"ssim": ssim(estimates, truth), "nmse": nmse(estimates, truth)}
    if (onto_range := task.onto_range) is not None:
        pairs = zip(estimates.split(batch), truth.split(batch), strict=True)
        parts = [error_by_range(*pair, onto_range) for pair in pairs]
        found["range_error"], found["null_error"] = map(torch.cat, zip(*parts, strict=True))
    if (distance := lpips(estimates, truth)) is not None:
        found["lpips"] = distance
    return {name: values.cpu() for name, values in found.items()}


def _on_the_way(mse: Tensor, curves: Curves | None, estimates: Tensor) -> dict[str, Tensor]:
    """Scores of the best iteration and of the one that a stopping rule ends at.

    The rule needs no truth: it ends at the first iteration that moves an image by at most `STILL`
    of its norm, and at the last if none does.
    """
    if curves is None:
        quality = psnr_of_mse(mse)
        return {
            "psnr_best": quality,
            "psnr_stopped": quality,
            "stopped_at": torch.zeros_like(quality),
        }
    still = curves.step_norm[1:] <= STILL * estimates.flatten(1).norm(dim=1)
    still[-1] = True
    stop = 1 + still.to(torch.uint8).argmax(0)
    return {
        "psnr_best": psnr_of_mse(curves.mse.amin(0)),
        "psnr_stopped": psnr_of_mse(curves.mse.gather(0, stop[None])[0]),
        "stopped_at": stop.to(mse.dtype),
    }


def _joined(parts: list[Curves | None]) -> Curves | None:
    """Curves of all batches side by side, moved off the device once."""
    if parts[0] is None:
        return None
    return Curves(
        *(
            torch.cat([getattr(part, name) for part in parts], dim=1).cpu()
            for name in ("mse", "residual", "step_norm")
        )
    )
