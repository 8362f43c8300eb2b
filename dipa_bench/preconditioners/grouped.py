"""Many operators at work on one batch, each on its own part of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dipa_bench.preconditioners.base import Identity, Preconditioner, State


class Grouped(Preconditioner):
    """P_1, ..., P_G on the G parts of a batch of G B images: first the B images of P_1, and so on.

    Each part sees the state of its own images alone; the run's memory is a tuple of theirs.

    Args:
        parts: the operators, not copied.

    Attributes:
        operator_calls: the most that a part makes; they may differ.
    """

    def __init__(self, parts: Sequence[Preconditioner]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.linear = all(part.linear for part in parts)
        self.operator_calls = max(part.operator_calls for part in parts)

    def forward(self, gradient: Tensor, state: State) -> Tensor:
        """The parts' directions, G B x C x H x W.

        Raises:
            ValueError: the batch cannot be cut into G parts of one size.
        """
        return torch.cat([part(mine, at) for part, mine, at in self._split(gradient, state)])

    def remember(self, gradient: Tensor, state: State) -> tuple[Any, ...]:
        """The parts' memories."""
        split = self._split(gradient, state)
        return tuple(part.remember(mine, at) for part, mine, at in split)

    def _split(self, gradient: Tensor, state: State) -> list[tuple[Preconditioner, Tensor, State]]:
        """Each part with its gradient, B x C x H x W, and its state."""
        groups = len(self.parts)
        if len(gradient) % groups:
            raise ValueError(f"{len(gradient)} images are not {groups} parts of one size")
        count = len(gradient) // groups
        found = []
        for index, part in enumerate(self.parts):
            rows = slice(index * count, (index + 1) * count)
            memory = None if state.memory is None else state.memory[index]
            found.append((part, gradient[rows], state.of_images(rows, memory)))
        return found


def grouped(parts: Sequence[Preconditioner]) -> Preconditioner:
    """P_1, ..., P_G as one operator: if all are one and the same it needs no parts.

    Args:
        parts: the operators, in the order of their images.
    """
    first = parts[0]
    same = all(part is first for part in parts) or all(type(part) is Identity for part in parts)
    return first if same else Grouped(parts)
