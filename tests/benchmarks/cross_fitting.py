"""What cross-fitting changes: learned rows trained from starts and closed forms in sample and out.

    python tests/benchmarks/cross_fitting.py --tasks sr cs deblur

For each row, everything else alike: validation PSNR of what training starts from and of the best
epoch, with nothing cross-fitted, with the start alone, and with start and closed form. Before that,
the mean PSNR of the LMMSE start on training images (in sample, out of fold) and on validation
images.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from dipa_bench import registry
from dipa_bench.config import study_file
from dipa_bench.execution.context import study_task
from dipa_bench.learning import lmmse
from dipa_bench.learning.teachers import TeacherCache
from dipa_bench.methods import Budget, FitContext
from dipa_bench.metrics import psnr
from dipa_bench.parameters import build, defaults
from dipa_bench.reuse import CachedPerTask
from dipa_bench.tasks.base import Task

LEARNING = "dipa_bench.learning"
ROWS = {
    "dense from I": ("dense+distilled-r", {"train.initial": "identity"}),
    "dense from closed form": ("dense+distilled-r", {"train.initial": "lmmse"}),
    "kronecker from closed form": ("kronecker+distilled-r", {"train.initial": "lmmse"}),
    "one step for each iteration": (
        "scalar+supervised",
        {"train.operators": "each", "train.learning_rate": 1e-2},
    ),
    "one step and strength each": ("unrolled-identity", {"train.learning_rate": 1e-1}),
    "cnn": ("ndipa/cnn", {"train.learning_rate": 1e-3}),
}


def without_starts() -> list[Any]:
    """Patches by which training images begin in sample."""
    modules = ("unrolling", "networks", "greedy")
    return [mock.patch(f"{LEARNING}.{name}.training_starts", lambda *_: None) for name in modules]


def without_closed_forms() -> list[Any]:
    """Patches by which closed forms are trained on the images that they were fitted to."""
    real = registry.get("rules", "distilled").fit.__globals__["initialise"]

    def initialise(*arguments: Any) -> None:
        real(*arguments)

    return [mock.patch(f"{LEARNING}.distillation.initialise", initialise)]


MODES: dict[str, Callable[[], list[Any]]] = {
    "in sample": lambda: without_starts() + without_closed_forms(),
    "starts": without_closed_forms,
    "starts and closed forms": list,
}


def measure(task: Task, row: str, epochs: int, maps: CachedPerTask, folder: Path) -> None:
    """Prints one row's figures."""
    name, values = ROWS[row]
    method = registry.get("methods", name)
    flat = defaults(method.parameters, task.solver, task) | {"solve.start": "lmmse"} | values
    for mode, patches in MODES.items():
        context = FitContext(0, Budget(epochs, 280), TeacherCache(folder), maps)
        given = patches()
        for patch in given:
            patch.start()
        try:
            method.fit(task, build(method.parameters, flat), context)
        finally:
            for patch in given:
                patch.stop()
        qualities = context.series["val/psnr_by_epoch"]
        best = max(quality for _, quality in qualities)
        print(
            f"{task.name:7} {row:28} {mode:24} {qualities[0][1]:6.2f} -> {best:6.2f} dB, "
            f"last {qualities[-1][1]:6.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["sr", "cs", "deblur"])
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--epochs", type=int, default=4)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    for name in given.tasks:
        task = study_task(study_file.resolve(study_file.read(name, None)), torch.device("cpu"))
        maps = CachedPerTask(lambda of: lmmse.cross_fitted(of, 280))
        images, validation = task.images.train.first(280), task.images.validation
        made = maps(task)

        def quality(starts: torch.Tensor, images: Any, task: Task = task) -> float:
            return psnr(starts, task.pixels(images)).mean().item()

        print(
            f"{name}: LMMSE start {quality(made(task.measure(images)), images):.2f} dB in sample, "
            f"{quality(made.out_of_fold(images), images):.2f} out of fold, "
            f"{quality(made(task.measure(validation)), validation):.2f} on validation images",
            flush=True,
        )
        for row in given.rows:
            measure(task, row, given.epochs, maps, folder)


if __name__ == "__main__":
    main()
