"""What one call of each operator costs, forwards and back, beside a dense P of the same images.

python tests/benchmarks/networks.py --size 32 --batch 20
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from dipa_bench import registry
from dipa_bench.preconditioners import Learned, State
from dipa_bench.preconditioners.networks import SPECS

TURNS = 15
PAPER = {"width": 128, "depth": 5}  # of the ConvNeXt


def seconds(operator: Learned, images: torch.Tensor) -> float:
    """Median of one call forwards and back, after two to warm up."""
    state = State(0, images, images, images, None)
    taken = []
    for _ in range(TURNS + 2):
        started = time.perf_counter()
        operator(images, state).square().mean().backward()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=20)
    given = parser.parse_args()
    torch.set_num_threads(1)
    shape = (1, given.size, given.size)
    images = torch.randn(given.batch, *shape, generator=torch.Generator().manual_seed(0))
    dense = registry.get("operators", "dense")
    made = {"dense": dense.build(shape, dense.parameters(), 1)}
    made |= {spec.name: spec.build(shape, spec.parameters(), 1) for spec in SPECS}
    convnext = registry.get("operators", "convnext")
    made["convnext of the paper"] = convnext.build(shape, convnext.parameters(**PAPER), 1)
    base = seconds(made["dense"], images)
    for name, operator in made.items():
        taken = base if name == "dense" else seconds(operator, images)
        numbers = sum(part.numel() for part in operator.parameters())
        print(f"{name:24}{numbers:>12,} numbers{1e3 * taken:10.1f} ms{taken / base:8.1f} x dense")


if __name__ == "__main__":
    main()
