"""DIPA's losses by hand."""

import math

import pytest
import torch

from dipa_bench.learning import losses


def image(*values):
    return torch.tensor(values, dtype=torch.float64).view(1, 1, 1, -1)


def test_gradient_alignment_by_hand():
    """1 - cos: 0 for parallel, 1 for orthogonal, 2 for opposite, 1 - 1/sqrt 2 for 45 degrees."""
    a = torch.cat([image(1, 0), image(1, 0), image(1, 0), image(2, 0)])
    b = torch.cat([image(3, 0), image(0, 5), image(-1, 0), image(1, 1)])
    for index, expected in enumerate((0, 1, 2, 1 - 1 / math.sqrt(2))):
        part = slice(index, index + 1)
        found = losses.gradient_alignment(a[part], b[part]).item()
        assert found == pytest.approx(expected, abs=1e-11)
    assert losses.gradient_alignment(a, b).item() == pytest.approx((4 - 1 / math.sqrt(2)) / 4)


def test_gradient_alignment_ignores_scale_per_image():
    """Each image's own norm counts, over channels and pixels."""
    torch.manual_seed(0)
    a, b = (torch.randn(3, 2, 4, 4, dtype=torch.float64) for _ in range(2))
    scales = torch.tensor([1e-6, 1.0, 1e6], dtype=torch.float64).view(3, 1, 1, 1)
    expected = 1 - torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)).mean()
    found = losses.gradient_alignment(scales * a, b)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_gradient_alignment_of_a_zero_gradient():
    """Its term is 1 and its derivative finite."""
    a = torch.zeros(1, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    value = losses.gradient_alignment(a, torch.ones(1, 1, 2, 2, dtype=torch.float64))
    assert value.item() == 1
    (gradient,) = torch.autograd.grad(value, a)
    assert gradient.isfinite().all()


def test_imitation_by_hand():
    """The mean over pixels and batch: ((1 - 0)^2 + (2 - 5)^2 + 0 + 0) / 4."""
    estimates = torch.cat([image(1, 2), image(3, 4)])
    found = losses.imitation(estimates, torch.cat([image(0, 5), image(3, 4)]))
    assert found.item() == 10 / 4


def test_operator_mismatch_by_hand():
    """((0.5 * 4 - 2 * 3)^2 + (0.5 * 2 - 2 * 1)^2) / 2."""
    found = losses.operator_mismatch(image(4, 2), image(3, 1), 0.5, 2.0)
    assert found.item() == (16 + 1) / 2
