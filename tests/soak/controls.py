"""A/A controls of the tuner on the embedded tasks: what is the same must come out the same.

    python tests/soak/controls.py                       # about 15 minutes on one thread
    python tests/soak/controls.py --seeds 2 --tasks cs

Validation PSNR of tuned settings, one operator against another that does the same, and one search
against itself with other seeds:

- `hessian` and `circulant` on `deblur`, where they are one operator: at most 0.05 dB apart;
- `lmmse-identity`, whose start is given, at most 0.03 dB above `identity`, which may choose it;
- `identity` with each of the seeds: the best and the worst at most 0.03 dB apart.

Ends with exit code 1 where one of them does not hold.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from search import Problem, by_tuner

SAME, ABOVE, SPREAD = 0.05, 0.03, 0.03  # dB


def tuned(name: str, seeds: Sequence[int]) -> list[float]:
    """Validation PSNR of the settings that each search ends with."""
    problem, found = Problem(name), []
    for seed in seeds:
        search = by_tuner(problem, seed, float("inf"), problem.points)
        found.append(search.best[-1][-1])
        print(f"{name}, seed {seed}: {found[-1]:.3f} dB in CPU {search.cpu:.0f} s", flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=["sr", "cs", "deblur"])
    parser.add_argument("--seeds", type=int, default=5)
    given = parser.parse_args()
    checks: list[tuple[str, float, float]] = []
    for task in given.tasks:
        ends = tuned(f"{task}/identity", range(given.seeds))
        checks.append((f"identity on {task}, spread over seeds", max(ends) - min(ends), SPREAD))
        (start,) = tuned(f"{task}/lmmse-identity", [0])
        checks.append((f"lmmse-identity above identity on {task}", start - ends[0], ABOVE))
    if "deblur" in given.tasks:
        (hessian,), (circulant,) = tuned("deblur/hessian", [0]), tuned("deblur/circulant", [0])
        checks.append(("hessian and circulant on deblur", abs(hessian - circulant), SAME))
    for name, found, limit in checks:
        verdict = "holds" if found <= limit else "DOES NOT HOLD"
        print(f"{name}: {found:+.3f} dB, at most {limit} dB: {verdict}", flush=True)
    return any(found > limit for _, found, limit in checks)


if __name__ == "__main__":
    sys.exit(main())
