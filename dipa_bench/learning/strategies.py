"""How gradients flow through the unrolled iteration: exactly, cheaper in memory, or in part.

The images are the same bit for bit whatever the strategy; only what `backward` costs and returns
differs. With K iterations in all, m of which carry gradients:

- ``full`` keeps every iteration on the graph: memory grows with K.
- ``checkpointed`` keeps the states between segments of about sqrt(K) iterations, and computes a
  segment a second time when its gradients are due: the same gradients, memory that grows with
  sqrt(K), one more forward pass (Chen, Xu, Zhang, Guestrin 2016, "Training deep nets with sublinear
  memory cost", arXiv 1604.06174).
- ``truncated`` takes what the first K - m iterations made as given (Shaban, Cheng, Hatch, Boots
  2019, "Truncated back-propagation for bilevel optimization", arXiv 1810.10667).
- ``one-step`` is ``truncated`` with m = 1: the derivative of the last iteration at the point that
  was reached (Bolte, Pauwels, Vaiter 2023, "One-step differentiation of iterative algorithms",
  arXiv 2305.13768). It is close to the full one where the iteration contracts fast.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Annotated, Literal

import torch
from deepinv.physics import LinearPhysics
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dipa_bench.parameters import Parameters
from dipa_bench.preconditioners import Preconditioner, State
from dipa_bench.solvers import Solver


class GradientParameters(Parameters):
    """Which iterations carry gradients, and what is kept for them."""

    strategy: Annotated[
        Literal["full", "checkpointed", "truncated", "one-step"],
        Field(
            description="gradients through all iterations (full; checkpointed: less memory, more "
            "time), through the last `window` (truncated) or the last one (one-step)"
        ),
    ] = "full"
    window: Annotated[
        int,
        Field(
            ge=1,
            description="how many of the last iterations carry gradients when truncated; other "
            "strategies ignore it",
        ),
    ] = 5


@dataclass(frozen=True)
class Unrolled:
    """One reconstruction and what gradients can be taken of.

    Attributes:
        estimate: x_K, B x C x H x W.
        directions: P(grad f(z_k)), each B x C x H x W, of the iterations that carry gradients.
        iterations: their k, up to K - 1.
    """

    estimate: Tensor
    directions: tuple[Tensor, ...]
    iterations: range


def unroll(
    solver: Solver,
    preconditioner: Preconditioner,
    measurement: Tensor,
    physics: LinearPhysics,
    parameters: GradientParameters,
    first: Tensor | None = None,
) -> Unrolled:
    """Reconstructs a batch as `Solver.run` does, with gradients as `parameters` say.

    The start belongs to the iterations before the cut: where there is one, x_0 is a constant even
    if P made it.

    Args:
        solver: gives K.
        preconditioner: P.
        measurement: y, B x ...
        physics: A.
        parameters: the strategy.
        first: x_0, as of `Solver.start`.
    """
    total = solver.iterations
    cut = total - _carrying(parameters, total)
    with torch.set_grad_enabled(torch.is_grad_enabled() and cut == 0):
        state = solver.start(measurement, physics, preconditioner, first)
        for _ in range(cut):
            state = solver.advance(solver.with_gradient(state), preconditioner)
    recomputed = parameters.strategy == "checkpointed"
    length, iterate = (_segment(total), _replayed) if recomputed else (total - cut, _iterate)
    directions: list[Tensor] = []
    for first in range(cut, total, length):
        count = min(length, total - first)
        state, made = iterate(solver, preconditioner, state, count)
        directions += made
    return Unrolled(state.iterate, tuple(directions), range(cut, total))


def describe(parameters: GradientParameters, iterations: int) -> str:
    """The strategy in a few words, for the record.

    Args:
        parameters: the strategy.
        iterations: K.
    """
    if parameters.strategy == "checkpointed":
        length = _segment(iterations)
        return f"checkpointed every {f'{length} iterations' if length > 1 else 'iteration'}"
    carrying = _carrying(parameters, iterations)
    if carrying == iterations:
        return "full unrolling"
    return f"last {carrying} of {iterations} iterations" if carrying > 1 else "last iteration"


def _carrying(parameters: GradientParameters, iterations: int) -> int:
    """How many of the last iterations carry gradients."""
    if parameters.strategy == "one-step":
        return 1
    return min(parameters.window, iterations) if parameters.strategy == "truncated" else iterations


def _segment(iterations: int) -> int:
    """Iterations between two states that are kept."""
    return max(1, round(iterations**0.5))


def _iterate(
    solver: Solver, preconditioner: Preconditioner, state: State, count: int
) -> tuple[State, list[Tensor]]:
    """The state `count` iterations later, and the directions on the way."""
    directions = []
    for _ in range(count):
        state, direction = solver.proceed(solver.with_gradient(state), preconditioner)
        directions.append(direction)
    return state, directions


def _replayed(
    solver: Solver, preconditioner: Preconditioner, state: State, count: int
) -> tuple[State, list[Tensor]]:
    """As `_iterate`, computed a second time in `backward` instead of being kept.

    The state's tensors go in one by one, so that autograd guards them against being overwritten;
    the memory, of any type, goes in as it is.
    """
    names = [item.name for item in fields(state) if isinstance(getattr(state, item.name), Tensor)]

    def segment(*tensors: Tensor) -> tuple[State, list[Tensor]]:
        given = replace(state, **dict(zip(names, tensors, strict=True)))
        return _iterate(solver, preconditioner, given, count)

    tensors = [getattr(state, name) for name in names]
    return checkpoint(segment, *tensors, use_reentrant=False, preserve_rng_state=False)
