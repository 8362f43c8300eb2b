"""Seconds that `dipa-bench --help` takes, import of everything it needs included."""

from __future__ import annotations

import statistics
import subprocess
import time

RUNS = 10


def main() -> None:
    seconds = []
    for _ in range(RUNS + 1):  # the first warms the file cache
        started = time.perf_counter()
        subprocess.run(["dipa-bench", "--help"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    print(f"dipa-bench --help: median {statistics.median(seconds[1:]):.3f} s of {RUNS} runs")


if __name__ == "__main__":
    main()
