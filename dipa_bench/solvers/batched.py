"""Solvers that differ in their settings alone, run as one batch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dipa_bench.priors.base import Prior
from dipa_bench.solvers.base import Solver
from dipa_bench.solvers.momentum import side_by_side
from dipa_bench.solvers.number import per_image

OWN = ("momentum", "_start")  # what may differ beside a solver's `settings`
KEPT = ("run", "follow", "start", "with_gradient", "step", "operator_calls", "start_calls")
LEVELS = (0.5, 1.0)  # times a prior's default: strengths with which it is tried
CLOSE = {"rtol": 1e-3, "atol": 1e-4}

_taking: WeakKeyDictionary[Prior, bool] = WeakKeyDictionary()


def batchable(solvers: Sequence[Solver]) -> bool:
    """Whether solvers can run as one batch.

    They are of one class, whose iteration is `Solver`'s, and alike in everything but the class's
    `settings`, momentum and start; and a prior whose strengths differ takes one for each image.
    """
    first = solvers[0]
    kind = type(first)
    if any(getattr(kind, name) is not getattr(Solver, name) for name in KEPT):
        return False
    free = {*kind.settings, *OWN}
    for solver in solvers:
        values = vars(solver)
        if type(solver) is not kind or values.keys() != vars(first).keys():
            return False
        if not all(isinstance(values[name], int | float) for name in kind.settings):
            return False
        rest = values.keys() - free
        if not all(_alike(values[name], vars(first)[name]) for name in rest):
            return False
    same = all(
        (solver.strength, solver.decay) == (first.strength, first.decay) for solver in solvers
    )
    return same or takes_each(first.prior)


def batched_solver(solvers: Sequence[Solver], like: Tensor) -> Solver:
    """Joinable solvers as one, for a batch of as many parts; its `start` is none of theirs.

    Args:
        solvers: G of them.
        like: G B x C x H x W images of the dtype and device at hand.
    """
    count = len(like) // len(solvers)
    found = copy.copy(solvers[0])
    for name in found.settings:
        setattr(found, name, per_image([getattr(each, name) for each in solvers], count, like))
    found.momentum = side_by_side([each.momentum for each in solvers], like)
    return found


def takes_each(prior: Prior) -> bool:
    """Whether a prior takes a strength for each image, tried once on two images of 16 x 16 pixels.

    The registered ones do; a user's own function may know plain numbers alone.
    """
    if prior not in _taking:
        _taking[prior] = _tried(prior)
    return _taking[prior]


@torch.no_grad()
def _tried(prior: Prior) -> bool:
    channels = prior.channels or 1
    like = next(prior.parameters(), torch.zeros(()))
    batch = torch.linspace(0, 1, 2 * channels * 256).reshape(2, channels, 16, 16).to(like)
    levels = [prior.strength.default * level for level in LEVELS]
    try:
        found = prior(batch, per_image(levels, 1, batch))
        alone = [prior(image, level) for image, level in zip(batch.split(1), levels, strict=True)]
        return torch.allclose(found, torch.cat(alone), **CLOSE)
    except Exception:  # a user's function may fail in any way
        return False


def _alike(value: Any, other: Any) -> bool:
    """Whether two attributes are the same object, or equal plain values."""
    plain = isinstance(value, bool | int | float | str) and type(value) is type(other)
    return value is other or (plain and value == other)
