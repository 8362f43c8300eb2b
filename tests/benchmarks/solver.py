"""The bare iteration, with and without curves, against deepinv's FISTA with metrics.

Batch 8 of 64 x 64 pixels, K = 50, super-resolution x4, a prior that returns its input, so that what
is timed is the loop itself. Runs alternate; medians and their ratios are printed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from deepinv.models import Denoiser
from deepinv.optim import FISTA, L2, PnP
from torch import Tensor

from dipa_bench.preconditioners import Identity
from dipa_bench.priors.base import SIGMA, Prior
from dipa_bench.solvers import PnPFISTA
from dipa_bench.tasks.base import Geometry
from dipa_bench.tasks.sr import SeparableDownsampling

BATCH, SIZE, ITERATIONS, RUNS = 8, 64, 50, 15


class Trivial(Denoiser):
    """deepinv's view of the prior that returns its input."""

    def forward(self, noisy: Tensor, sigma: float | None = None, **options: object) -> Tensor:
        return noisy


def median_seconds(candidates: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each candidate, run in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(RUNS + 1):
        for name, run in candidates.items():
            started = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    torch.manual_seed(0)
    operator = SeparableDownsampling(Geometry((1, SIZE, SIZE)), 4, 1.0)
    truth = torch.rand(BATCH, 1, SIZE, SIZE)
    measured = operator.A(truth)
    prior = Prior("trivial", SIGMA, lambda noisy, sigma: noisy)
    ours = PnPFISTA(prior, step=1.0, strength=0.05, iterations=ITERATIONS, momentum="published")
    theirs = FISTA(
        data_fidelity=L2(),
        prior=PnP(denoiser=Trivial()),
        stepsize=1.0,
        sigma_denoiser=0.05,
        a=3,
        max_iter=ITERATIONS,
        early_stop=False,
    )
    identity = Identity()
    with torch.no_grad():
        seconds = median_seconds(
            {
                "ours, PSNR": lambda: ours.run(
                    measured, operator, identity, record=("mse",), reference=truth
                ),
                "ours, all curves": lambda: ours.run(
                    measured, operator, identity, record=True, reference=truth
                ),
                "ours": lambda: ours.run(measured, operator, identity),
                "deepinv, metrics": lambda: theirs(
                    measured, operator, x_gt=truth, compute_metrics=True
                ),
                "deepinv": lambda: theirs(measured, operator),
            }
        )
    for name, value in seconds.items():
        print(f"{name:18s} {1e3 * value:8.1f} ms")
    ratios = {
        "deepinv with metrics / ours with PSNR": ("deepinv, metrics", "ours, PSNR"),
        "deepinv with metrics / ours with all curves": ("deepinv, metrics", "ours, all curves"),
        "deepinv / ours, neither recording": ("deepinv", "ours"),
        "ours with PSNR / ours without": ("ours, PSNR", "ours"),
        "ours with all curves / ours without": ("ours, all curves", "ours"),
    }
    for name, (above, below) in ratios.items():
        print(f"{name}: {seconds[above] / seconds[below]:.2f}")


if __name__ == "__main__":
    main()
