"""Conjugate gradients against dense solutions."""

import numpy as np
import pytest
import torch

from dipa_bench.linear_algebra import conjugate_gradients, inner, norm, solve


def test_a_number_of_iterations():
    """The dense solution for right-hand sides of any size, zero included, past convergence."""
    random = np.random.default_rng(0)
    root = random.standard_normal((9, 9))
    dense = torch.from_numpy(root @ root.T + np.eye(9))
    right = torch.from_numpy(random.standard_normal((4, 1, 3, 3)))
    right *= torch.tensor([1.0, 1e-12, 0.0, 1e12]).view(-1, 1, 1, 1)
    for dtype, rtol in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        matrix_, b = dense.to(dtype), right.to(dtype)
        found = conjugate_gradients(lambda v, m=matrix_: (v.flatten(1) @ m).view_as(v), b, 60)
        expected = torch.linalg.solve(dense, right.flatten(1).T).T.view_as(right)
        for one, other in zip(found.double(), expected, strict=True):
            assert (one - other).norm() <= rtol * other.norm()


def test_the_solution_of_least_norm():
    """A consistent singular system: numpy's pseudo-inverse; zero for a zero right side."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(4, 7, generator=generator, dtype=torch.float64)
    singular = root.T @ root
    b = singular @ torch.randn(7, generator=generator, dtype=torch.float64)
    found = solve(lambda d: singular @ d, b, 50, 1e-12)
    torch.testing.assert_close(found, torch.linalg.pinv(singular) @ b)
    assert not solve(lambda d: singular @ d, 0 * b, 50, 1e-12).any()


def test_each_item_stops_by_itself():
    """An item is the same to the last digit alone and beside one that takes longer."""
    easy, hard = torch.eye(6, dtype=torch.float64), torch.diag(torch.arange(1.0, 7).double() ** 4)
    b = torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    matrices, calls = torch.stack([easy, hard]), []

    def product(v):
        calls.append(len(v))
        return torch.einsum("bij,bj->bi", matrices[-len(v) :], v)

    together = conjugate_gradients(product, b, 100, 1e-8)
    needed = len(calls)
    assert torch.equal(conjugate_gradients(product, b[1:], 100, 1e-8)[0], together[1])
    assert len(calls) == 2 * needed < 20
    torch.testing.assert_close(together[0], b[0])
    left = norm(product(together) - b)
    assert (left <= 1e-8 * norm(b)).all()


def test_inner_products_of_any_shape():
    a, b = torch.randn(2, 3, 4, 5, 2, dtype=torch.float64).unbind(-1)
    assert inner(a, b).shape == norm(a).shape == (2, 1, 1, 1)
    for one, other, found in zip(a, b, inner(a, b).ravel(), strict=True):
        np.testing.assert_allclose(found, np.vdot(one.numpy(), other.numpy()))
    sizes = [np.linalg.norm(one.numpy()) for one in a]
    np.testing.assert_allclose(norm(a).ravel(), sizes)
    numbers = torch.tensor([3.0, -4.0])
    assert norm(numbers).tolist() == [3.0, 4.0]


def test_derivatives_after_convergence():
    """Of a solution that was exact long before the last iteration: those of the inverse."""

    def solution(right, weight):
        return conjugate_gradients(lambda v: weight * v, right, 6)

    right = torch.tensor([[2.0, 5.0], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    solution(right, weight).sum().backward()
    torch.testing.assert_close(right.grad[0], torch.full((2,), 0.25, dtype=torch.float64))
    assert weight.grad.item() == pytest.approx(-7 / 16)
