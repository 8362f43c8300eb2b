"""Operators stay on the device they were built for: tried on torch's `meta`."""

import pytest
import torch

from dipa_bench.parameters import build
from dipa_bench.registry import get
from dipa_bench.tasks.base import Geometry

CASES = [
    ("sr", {}, 1),
    ("deblur", {}, 1),
    ("cs", {}, 1),
    ("cs", {"sampling": "zig-zag"}, 3),
    ("mri", {}, 2),
    ("mri", {"coils": 3}, 2),
]


@pytest.mark.parametrize(("name", "options", "channels"), CASES)
@pytest.mark.parametrize("size", [16, 32])
def test_no_tensor_is_left_behind(name, options, channels, size):
    """A and A^T of student and teachers run where nothing lies on the CPU."""
    spec, device = get("tasks", name), torch.device("meta")
    made = spec.operators(build(spec.options, options), Geometry((channels, size, size), device))
    x = torch.empty(2, channels, size, size, device=device)
    for physics in (made.student, *(teacher.build() for teacher in made.teachers)):
        back = physics.A_adjoint(physics.A(x))
        assert back.shape == x.shape
        assert back.device == device


@pytest.mark.parametrize(("name", "options", "channels"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_kept(name, options, channels, dtype):
    """Measurements and back-projections are of the images' type."""
    spec = get("tasks", name)
    made = spec.operators(build(spec.options, options), Geometry((channels, 16, 16), dtype=dtype))
    x = torch.rand(2, channels, 16, 16, dtype=dtype)
    for physics in (made.student, made.teachers[-1].build()):
        y = physics.A(x)
        assert y.dtype == dtype
        assert physics.A_adjoint(y).dtype == dtype
