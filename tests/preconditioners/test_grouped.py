"""Operators side by side on the parts of one batch."""

from dataclasses import replace

import pytest
import torch

from baselines.barzilai_borwein import BarzilaiBorwein
from dipa_bench.preconditioners import Dense, Grouped, Identity, Preconditioner
from dipa_bench.preconditioners.base import PER_IMAGE
from dipa_bench.preconditioners.grouped import grouped
from dipa_bench.testing import PreconditionerContract
from dipa_bench.testing.contracts import linearised
from dipa_bench.testing.problems import small_task


def dense(shape, seed):
    operator = Dense(shape).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    operator.matrix += 0.1 * torch.randn(operator.matrix.shape, generator=generator)
    return operator


class TestContract(PreconditionerContract):
    """With one part it is an operator like any other."""

    def make(self, task):
        return Grouped([dense(task.shape, 0)])


class Counting(Preconditioner):
    """The memory is the sum of the gradients so far, of its own images alone."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, gradient, state):
        before = 0 if state.memory is None else state.memory
        return self.factor * (gradient + before)

    def remember(self, gradient, state):
        return gradient if state.memory is None else state.memory + gradient


def rows(state, part, memory=None):
    cut = {name: getattr(state, name)[part] for name in PER_IMAGE}
    return replace(state, memory=memory, **cut)


def test_each_part_sees_its_own_images():
    """Directions and states of G operators, those made of the run's points included."""
    task = small_task(dtype=torch.float64)
    state = linearised(task, batch=6)
    parts = [
        dense(task.shape, 0).double(),
        BarzilaiBorwein("bb1", 10.0, task.norm_squared()),
        BarzilaiBorwein("bb2", 2.0, task.norm_squared()),
    ]
    found = Grouped(parts)(state.gradient, state)
    for index, part in enumerate(parts):
        mine = slice(2 * index, 2 * index + 2)
        expected = part(state.gradient[mine], rows(state, mine))
        torch.testing.assert_close(found[mine], expected)


def test_memory_is_a_tuple_with_one_entry_for_each_part():
    """It comes back to the part that it belongs to."""
    task = small_task(dtype=torch.float64)
    state, operator = linearised(task, batch=4), Grouped([Counting(1.0), Counting(10.0)])
    memory = operator.remember(state.gradient, state)
    assert [len(entry) for entry in memory] == [2, 2]
    after = replace(state, memory=memory)
    expected = torch.cat([2 * state.gradient[:2], 20 * state.gradient[2:]])
    torch.testing.assert_close(operator(state.gradient, after), expected)
    doubled = operator.remember(state.gradient, after)
    torch.testing.assert_close(torch.cat(doubled), 2 * state.gradient)


def test_a_batch_that_does_not_divide_is_refused():
    """Instead of giving some part the wrong images."""
    state = linearised(small_task(), batch=5)
    with pytest.raises(ValueError, match="5 images are not 2 parts"):
        Grouped([Identity(), Identity()])(state.gradient, state)


def test_traits():
    """The most expensive part's calls; linear if all are; equal ones need no parts."""
    cheap, dear = Counting(1.0), Counting(2.0)
    dear.operator_calls = 6
    assert Grouped([cheap, dear]).operator_calls == 6
    assert not Grouped([Identity(), BarzilaiBorwein("bb1", 2.0, 1.0)]).linear
    assert grouped([cheap, cheap]) is cheap
    assert type(grouped([Identity(), Identity()])) is Identity
    assert type(grouped([cheap, Identity()])) is Grouped
