"""Training an operator in variants: validation PSNR against training seconds.

    python tests/benchmarks/training.py --vary train.initial=identity,scaled,mismatch,lmmse,greedy
    python tests/benchmarks/training.py --vary gradient.strategy=full,one-step

trains ldipa (or --method) once for each value of one parameter with otherwise equal settings, and
prints the PSNR on all validation images after each epoch and the seconds since the fit began; epoch
0 is the initial operator.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import tomllib
from pathlib import Path

from dipa_bench import devices, parameters, registry
from dipa_bench.config import study_file
from dipa_bench.config.problem import build_task
from dipa_bench.learning import lmmse
from dipa_bench.learning.teachers import TeacherCache
from dipa_bench.methods import Budget, FitContext
from dipa_bench.parameters import Value
from dipa_bench.tasks.base import Task


def parsed(text: str) -> Value:
    """A TOML value, or the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def curve(
    task: Task, method: str, values: dict[str, Value], budget: Budget, teachers: TeacherCache
) -> tuple[list[tuple[float, float]], int]:
    """(seconds since the fit began, validation PSNR) after each epoch, epoch 0 first.

    Returns:
        The points, and how many numbers the operator has.
    """
    found = registry.get("methods", method)
    flat = parameters.defaults(found.parameters, task.solver, task) | values
    points: list[tuple[float, float]] = []

    def report(step: int, value: float) -> None:
        points.append((time.perf_counter() - started, value))

    context = FitContext(
        seed=0,
        budget=budget,
        teachers=teachers,
        lmmse=lmmse.cross_fitted,
        report=report,
    )
    started = time.perf_counter()
    made = found.fit(task, parameters.build(found.parameters, flat), context)
    first = context.series["val/psnr_by_epoch"][0][1]
    trained = context.series["train/seconds"][1][1]  # the first epoch, its validation included
    numbers = sum(part.numel() for part in made.preconditioner.parameters())
    return [(points[0][0] - trained, first), *points], numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="sr")
    parser.add_argument("--method", default="ldipa")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--images", type=int, help="training images; all of them by default")
    parser.add_argument("--vary", default="train.initial=identity,scaled,mismatch,lmmse,greedy")
    parser.add_argument("--problem", action="append", default=[], help="key=value of the problem")
    parser.add_argument("--set", action="append", default=[], help="key=value of the method")
    parser.add_argument("--protocol", default="tuned", choices=["tuned", "published"])
    given = parser.parse_args()
    raw = study_file.read(given.task, None)
    sets = [f"problem.{item}" for item in given.problem]
    study = study_file.resolve(raw, task=given.task, protocol=given.rules, sets=sets)
    task = build_task(study.task, study.problem, seed=study.seed, device=devices.resolve("auto"))
    values = {}
    if given.rules == "published":
        values = registry.get("methods", given.method).published(task)
    values |= {key: parsed(text) for key, text in (item.split("=", 1) for item in given.set)}
    varied, choices = given.vary.split("=", 1)
    budget = Budget(given.epochs, given.images, batch_size=study.budget.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        teachers = TeacherCache(Path(folder))
        for label in task.labels if given.rules == "tuned" else ():
            teachers.tuned(task, label)  # before any clock starts
        for choice in choices.split(","):
            chosen = values | {varied: parsed(choice)}
            points, numbers = curve(task, given.method, chosen, budget, teachers)
            shown = ", ".join(f"{psnr:.2f} dB at {seconds:.1f} s" for seconds, psnr in points)
            print(f"{choice} ({numbers:,} numbers): {shown}", flush=True)


if __name__ == "__main__":
    main()
