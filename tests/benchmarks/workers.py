"""Wall time of one study with one worker of one thread, two of them, and one worker of two threads.

    python tests/benchmarks/workers.py [--methods ldipa] [--trials 8] [--images 140]

Every variant runs in a folder of its own, with no teacher computed before; its time is that of the
whole command, start of the workers included.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VARIANTS = {  # name to threads of the parent and further options
    "1 worker, 1 thread": ("1", ()),
    "2 workers, 1 thread each": ("1", ("--workers", "2")),
    "1 worker, 2 threads": ("2", ()),
}


def seconds(threads: str, options: tuple[str, ...], chosen: argparse.Namespace) -> float:
    """Wall time of the study."""
    settings = {
        "search.pruner": "none",
        "budget.train_images": chosen.images,
        "budget.final_epochs": 4,
    }
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command = ["study", "--task", "sr", "--device", "cpu", "--methods", chosen.methods, *sets]
    command += ["--trials", str(chosen.trials), "--name", "timed", *options]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "dipa_bench", *command],
            cwd=Path(folder),
            env={**os.environ, "OMP_NUM_THREADS": threads},
            check=True,
            capture_output=True,
        )
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default="ldipa")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--images", type=int, default=140, help="to train on")
    parser.add_argument("--repeats", type=int, default=1)
    chosen = parser.parse_args()
    best = dict.fromkeys(VARIANTS, float("inf"))
    for _ in range(chosen.repeats):
        for name, (threads, options) in VARIANTS.items():
            took = seconds(threads, options, chosen)
            best[name] = min(best[name], took)
            print(f"{name}: {took:.1f} s", flush=True)
    one, two, wide = best.values()
    print(f"2 one-thread workers are {one / two:.2f} times as fast as 1 one-thread worker,")
    print(f"and {wide / two:.2f} times as fast as 1 two-thread worker")


if __name__ == "__main__":
    main()
