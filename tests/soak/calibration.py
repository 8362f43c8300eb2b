"""Prints our PSNRs beside the published ones, as docs/calibration.md has them.

    TORCH_HOME=WEIGHTS python tests/soak/calibration.py

The folder holds deepinv's DnCNN weights. About 10 minutes on one thread.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from published_runs import CS, SR, digits, faces, pooled


def main() -> None:
    """Runs the whole table."""
    for name, build, cases, count in (("cs", digits, CS, 100), ("sr", faces, SR, 16)):
        for solver, label, published, _ in cases:
            plain, clipped = pooled(build(solver), label, count)
            teacher = "student" if label is None else f"teacher {label:g}"
            print(
                f"{name} {solver} {teacher}: {plain:.2f}, clipped {clipped:.2f} dB, published "
                f"{published:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
