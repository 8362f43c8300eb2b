"""Three ways to take Hadamard coefficients: one dense matrix, two products, butterflies.

Milliseconds of one A and one A^T of the `cs` task at a ratio of 0.2 (exact-m zig-zag sampling),
float32; the constants `DENSE_UP_TO` and `PRODUCTS_UP_TO` of `dipa_bench.tasks.cs` come from it.
"""

from __future__ import annotations

import time

import torch

from dipa_bench.tasks import cs
from dipa_bench.tasks.base import Geometry

WAYS = {"dense": (2**30, 2**30), "products": (0, 2**30), "butterflies": (0, 0)}
BATCHES = {16: 64, 32: 64, 64: 64, 128: 16, 256: 16, 512: 4, 1024: 2, 2048: 1}
LARGEST_DENSE = 64  # pixels on a side; beyond, the matrix alone is over 200 MB
TURNS = 7


@torch.no_grad()
def milliseconds(side: int, way: str) -> float:
    """Best of some turns of one A and one A^T."""
    cs.DENSE_UP_TO, cs.PRODUCTS_UP_TO = WAYS[way]
    geometry = Geometry((1, side, side))
    physics = cs.SinglePixel(cs.sampling_mask("zig-zag", geometry.shape, 0.2), geometry)
    images = torch.rand(BATCHES[side], 1, side, side)
    seconds = []
    for _ in range(TURNS):
        started = time.perf_counter()
        physics.A_adjoint(physics.A(images))
        seconds.append(time.perf_counter() - started)
    return 1e3 * min(seconds)


def main() -> None:
    print("side  batch  " + "  ".join(f"{way:>11s}" for way in WAYS))
    for side, batch in BATCHES.items():
        ways = [way for way in WAYS if way != "dense" or side <= LARGEST_DENSE]
        found = {way: f"{milliseconds(side, way):11.3f}" for way in ways}
        print(f"{side:4d}  {batch:5d}  " + "  ".join(found.get(way, " " * 11) for way in WAYS))


if __name__ == "__main__":
    main()
