"""What each strategy for gradients costs, and how far its gradient is from the full one.

    python tests/benchmarks/gradients.py [--iterations 20 100]

Super-resolution x4 of 20 training images of 32 x 32, `dncnn-small`, PnP-FISTA, a dense P at its
initial identity, the mean squared error to the truth. A step is one forward and one backward pass.
Each case has a process of its own; memory is the process's peak after its first step (`ru_maxrss`)
less what it held before, for which one image was unrolled over one iteration to load what is loaded
once. Linux only, where `ru_maxrss` is in KiB.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import psutil

STRATEGIES = ("full", "checkpointed", "truncated", "one-step")
BATCH, SIDE, STEPS = 20, 32, 9


@dataclass(frozen=True)
class Cost:
    """Of one strategy at one K: in words, seconds a step, peak MiB, and dL/dP, n^2."""

    name: str
    seconds: float
    memory: float
    gradient: np.ndarray


def measure(strategy: str, iterations: int) -> Cost:
    """Times one strategy; meant for a fresh process."""
    import torch

    from dipa_bench.config.problem import build_task
    from dipa_bench.config.study_file import Problem
    from dipa_bench.learning.strategies import GradientParameters, describe, unroll
    from dipa_bench.preconditioners import Dense
    from dipa_bench.solvers import SolveParameters, build_solver

    task = build_task("sr", Problem(size=SIDE, prior="dncnn-small", noise=0.01))
    images = task.images.train.first(BATCH)
    measured, truth = task.measure(images), task.pixels(images)
    operator, parameters = Dense(task.shape), GradientParameters(strategy=strategy)
    solve = SolveParameters(strength=task.prior.strength.default)

    def step(count: int, total: int) -> torch.Tensor:
        solver = build_solver(
            "pnp-fista", task.prior, solve, iterations=total, largest=task.norm_squared()
        )
        made = unroll(solver, operator, measured[:count], task.student, parameters)
        loss = (made.estimate - truth[:count]).square().mean()
        return torch.autograd.grad(loss, operator.matrix)[0]

    step(1, 1)
    before = psutil.Process().memory_info().rss
    gradient = step(BATCH, iterations)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(STEPS):
        started = time.perf_counter()
        step(BATCH, iterations)
        seconds.append(time.perf_counter() - started)
    return Cost(
        describe(parameters, iterations),
        statistics.median(seconds),
        (peak - before) / 2**20,
        gradient.flatten().double().numpy(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Costs of the gradient strategies.")
    parser.add_argument("--iterations", type=int, nargs="+", default=[20, 100])
    spawn = multiprocessing.get_context("spawn")
    print(f"{'K':>4s}  {'strategy':34s}  {'s/step':>7s}  {'MiB':>6s}  {'cosine':>8s}")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as fresh:
        for iterations in parser.parse_args().iterations:
            full = None
            for strategy in STRATEGIES:
                cost = fresh.submit(measure, strategy, iterations).result()
                full = cost.gradient if full is None else full
                cosine = full @ cost.gradient / np.linalg.norm(full) / np.linalg.norm(cost.gradient)
                print(
                    f"{iterations:4d}  {cost.name:34s}  {cost.seconds:7.3f}  {cost.memory:6.0f}  "
                    f"{cosine:8.5f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
