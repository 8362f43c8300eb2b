"""Images per second of student and teacher on every task, against deepinv's own FISTA.

    python tests/benchmarks/tasks.py [--prior dncnn] [--iterations 5] [--device cuda]

16 images of 128 x 128 with `dncnn`, 256 of 32 x 32 with `dncnn-small`, the same prior, steps and
momentum for both; deepinv gets its own operator (for `mri` that is also ours). Runs alternate;
medians. The last column is the share of our time that was not spent in the prior.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from deepinv.models import Denoiser
from deepinv.optim import FISTA, L2, PnP
from deepinv.physics import MRI, Downsampling, LinearPhysics, SinglePixelCamera
from torch import Tensor

from dipa_bench.data.complex import complex_images
from dipa_bench.devices import resolve, timed
from dipa_bench.parameters import build
from dipa_bench.preconditioners import Identity
from dipa_bench.priors import user
from dipa_bench.priors.base import Prior
from dipa_bench.priors.complex import on_complex
from dipa_bench.registry import get
from dipa_bench.solvers import PnPFISTA
from dipa_bench.tasks.base import Geometry
from dipa_bench.testing.problems import synthetic_splits

CASES = {"dncnn": (16, 128, 3), "dncnn-small": (256, 32, 9)}  # images, pixels, runs
TASKS = ("mri", "cs", "sr", "deblur")
STRENGTH = {"dncnn": 1.0, "dncnn-small": 0.05}


class Same(Denoiser):
    """deepinv's view of our prior."""

    def __init__(self, prior: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.prior = prior

    def forward(self, noisy: Tensor, sigma: float | None = None, **options: object) -> Tensor:
        return self.prior(noisy)


class Clock:
    """A prior that adds up its own time."""

    def __init__(self, prior: Prior, strength: float) -> None:
        self.prior, self.strength, self.seconds = prior, strength, 0.0

    def __call__(self, noisy: Tensor, strength: float | Tensor = 0.0) -> Tensor:
        result, seconds = timed(lambda: self.prior(noisy, self.strength), noisy.device)
        self.seconds += seconds
        return result


def theirs_of(physics: LinearPhysics, shape: tuple[int, int, int]) -> LinearPhysics:
    """deepinv's own operator of the same kind."""
    if isinstance(physics, Downsampling):
        return Downsampling(
            img_size=shape, filter=physics.filter, factor=physics.factor, padding="circular"
        )
    if isinstance(physics, MRI):
        return MRI(mask=physics.mask)
    made = SinglePixelCamera(m=physics.kept.numel(), img_size=shape, device=physics.mask.device)
    made.mask = physics.mask
    return made


@torch.no_grad()
def measure(
    physics: LinearPhysics,
    images: Tensor,
    prior: Prior,
    strength: float,
    iterations: int,
    runs: int,
) -> tuple[float, float, float]:
    """Images per second of ours and of deepinv's, and the share of ours outside the prior."""
    clock = Clock(prior, strength)
    ours = PnPFISTA(clock, step=0.7, strength=strength, iterations=iterations, momentum="published")
    other = theirs_of(physics, tuple(images.shape[1:]))
    theirs = FISTA(
        data_fidelity=L2(),
        prior=PnP(denoiser=Same(lambda noisy: prior(noisy, strength))),
        stepsize=0.7,
        a=3,
        max_iter=iterations,
        early_stop=False,
    )
    y, theirs_y, identity = physics.A(images), other.A(images), Identity()
    seconds: dict[str, list[float]] = {"ours": [], "theirs": [], "outside": []}
    for turn in range(runs + 1):
        clock.seconds = 0.0
        ran, own = timed(lambda: ours.run(y, physics, identity), images.device)
        mine = ran.estimate
        found, other_seconds = timed(lambda: theirs(theirs_y, other), images.device)
        if turn:
            seconds["ours"].append(own)
            seconds["theirs"].append(other_seconds)
            seconds["outside"].append(1 - clock.seconds / own)
    assert (mine - found).abs().mean() < 1e-3  # the same map, to rounding that iterations amplify
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return len(images) / medians["ours"], len(images) / medians["theirs"], medians["outside"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prior", choices=CASES, nargs="*", default=list(CASES))
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--tasks", choices=TASKS, nargs="*", default=list(TASKS))
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    where = resolve(chosen.device)
    for name in chosen.prior:
        count, size, runs = CASES[name]
        print(f"{name}, {count} images of {size} x {size}, K = {chosen.iterations}")
        gray = synthetic_splits((1, size, size), count)
        for task in chosen.tasks:
            spec = get("tasks", task)
            splits = complex_images(gray, "smooth") if task == "mri" else gray
            made = spec.operators(build(spec.options, {}), Geometry(splits.shape, where))
            prior = user.build(name).to(where)
            prior = on_complex(prior) if task == "mri" else prior
            teacher = made.teachers[-1]
            for label, physics in (("student", made.student), ("teacher", teacher.build())):
                ours, theirs, outside = measure(
                    physics,
                    splits.train.pixels.to(where),
                    prior,
                    STRENGTH[name],
                    chosen.iterations,
                    runs,
                )
                print(
                    f"  {task:7s} {label}: {ours:8.2f} images/s, deepinv {theirs:8.2f}, ratio "
                    f"{ours / theirs:.3f}, outside the prior {100 * outside:.1f}%",
                    flush=True,
                )


if __name__ == "__main__":
    main()
