"""Deblurring: the operator that is ill-conditioned, and the teachers that are less so."""

import numpy as np
import pytest
import torch

from dipa_bench.errors import UserError
from dipa_bench.tasks.base import Geometry
from dipa_bench.tasks.deblur import SPEC, DeblurOptions
from dipa_bench.tasks.spectrum import matrix


def dense(physics, shape=(1, 16, 20)):
    return matrix(physics, shape, torch.zeros(1, dtype=torch.float64)).numpy()


def made(**options):
    return SPEC.operators(DeblurOptions(**options), Geometry((1, 16, 20), dtype=torch.float64))


def test_is_the_blur_written_out(dense_sr):
    """The matrix of a circular 9 x 9 Gaussian, without decimation."""
    expected = dense_sr(16, 20, 1, 1.6)
    np.testing.assert_allclose(dense(made().student), expected, rtol=0, atol=1e-14)


def test_teachers_blur_less_and_are_better_conditioned():
    """Condition numbers fall along the teachers, from above 1e6 to below 10."""
    operators = made(blur=1.0)
    assert [teacher.label for teacher in operators.teachers] == [0.75, 0.5, 0.25]
    numbers = [np.linalg.cond(dense(operators.student))]
    numbers += [np.linalg.cond(dense(teacher.build())) for teacher in operators.teachers]
    assert numbers == sorted(numbers, reverse=True)
    assert numbers[0] ** 2 > 1e6
    assert numbers[-1] ** 2 < 10


def test_any_smaller_blur_is_a_teacher(dense_sr):
    """0.4 with its own matrix; as much as the student's is refused."""
    found = dense(made().other(0.4).build())
    np.testing.assert_allclose(found, dense_sr(16, 20, 1, 0.4), rtol=0, atol=1e-14)
    for blur in (1.6, 0.0, 0.01):
        with pytest.raises(UserError, match=rf"teacher blur {blur:g}.*1.6"):
            made().other(blur)


def test_images_smaller_than_the_blur_are_refused():
    with pytest.raises(UserError, match="too small"):
        SPEC.operators(DeblurOptions(), Geometry((1, 8, 32)))
