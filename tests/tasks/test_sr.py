"""Super-resolution operators against matrices written out from the definition."""

import numpy as np
import pytest
import torch

from dipa_bench.errors import UserError
from dipa_bench.tasks.base import Geometry
from dipa_bench.tasks.spectrum import largest_eigenvalue, matrix
from dipa_bench.tasks.sr import SPEC, SeparableDownsampling, SuperResolution

SHAPES = [(1, 16, 16), (1, 32, 32), (1, 24, 32)]
CPU = torch.device("cpu")


def operator(factor, shape, dtype, blur=1.0):
    """Student of that factor, or the teacher 1 of a factor 2 task."""
    options = SuperResolution(factor=max(factor, 2), blur=blur)
    made = SPEC.operators(options, Geometry(shape, CPU, dtype))
    return made.student if factor > 1 else made.teachers[-1].build()


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factor", [4, 3, 2, 1])
class TestDense:
    def test_forward(self, dense_sr, factor, shape, dtype, close):
        """`matrix(A)` is blur and decimation tap by tap, odd sizes and oblong images included."""
        found = matrix(operator(factor, shape, dtype), shape, torch.zeros(1, dtype=dtype))
        assert found.dtype == dtype
        np.testing.assert_allclose(found, dense_sr(*shape[1:], factor), rtol=0, atol=close)

    def test_adjoint(self, dense_sr, factor, shape, dtype, close):
        """A^T v = the transposed matrix times v, for random v."""
        physics = operator(factor, shape, dtype)
        generator = torch.Generator().manual_seed(0)
        v = torch.randn(physics.A(torch.zeros(3, *shape, dtype=dtype)).shape, generator=generator)
        found = physics.A_adjoint(v.to(dtype)).flatten(1).double().numpy()
        expected = v.flatten(1).double().numpy() @ dense_sr(*shape[1:], factor)
        np.testing.assert_allclose(found, expected, rtol=0, atol=10 * close)
        assert found.shape == (3, shape[1] * shape[2])

    def test_largest_eigenvalue(self, dense_sr, factor, shape, dtype, close):
        """lambda_max(A^T A) to 1e-4 of the dense matrix's."""
        dense = dense_sr(*shape[1:], factor)
        true = np.linalg.eigvalsh(dense @ dense.T)[-1]
        found = largest_eigenvalue(operator(factor, shape, dtype), shape, CPU, dtype)
        assert found == pytest.approx(true, rel=1e-4)


def test_measurements_keep_every_factor_th_pixel():
    """33 % 4 != 0 is no problem: ceil(size / factor) samples on each side."""
    for factor, expected in ((4, (9, 7)), (3, (11, 9)), (2, (17, 13)), (1, (33, 25))):
        physics = operator(factor, (1, 33, 25), torch.float32)
        assert physics.A(torch.rand(2, 1, 33, 25)).shape == (2, 1, *expected)


@pytest.mark.parametrize("factor", [4, 3, 2, 1])
def test_equals_deepinvs_own_operator(factor):
    """The separable products are deepinv's convolution and decimation, and so is the adjoint."""
    from deepinv.physics import Downsampling

    shape = (3, 24, 32)
    mine = operator(factor, shape, torch.float64)
    theirs = Downsampling(
        img_size=shape, filter=mine.filter, factor=factor, padding="circular", device="cpu"
    )
    x = torch.rand(2, *shape, dtype=torch.float64)
    torch.testing.assert_close(mine.A(x), theirs.A(x))
    torch.testing.assert_close(mine.A_adjoint(mine.A(x)), theirs.A_adjoint(mine.A(x)))


@pytest.mark.parametrize("blur", [0.3, 2.5])
def test_blur_option_is_the_kernels_sigma(dense_sr, blur):
    """Another sigma gives the matrix of that sigma."""
    shape = (1, 16, 16)
    physics = operator(4, shape, torch.float64, blur)
    found = matrix(physics, shape, torch.zeros(1, dtype=torch.float64))
    np.testing.assert_allclose(found, dense_sr(16, 16, 4, blur), rtol=0, atol=1e-14)


def test_teachers_have_every_smaller_factor(dense_sr):
    """Labels 3, 2, 1 for a student of 4, worst first, each with its own matrix."""
    shape = (1, 24, 32)
    made = SPEC.operators(SuperResolution(), Geometry(shape, CPU, torch.float64))
    assert [teacher.label for teacher in made.teachers] == [3.0, 2.0, 1.0]
    assert made.axis == "factor"
    for teacher in made.teachers:
        found = matrix(teacher.build(), shape, torch.zeros(1).double())
        expected = dense_sr(*shape[1:], int(teacher.label))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("shape", "factor"), [((1, 8, 32), 4), ((1, 32, 8), 4), ((1, 12, 12), 16)])
def test_images_too_small_are_refused(shape, factor):
    """One line that says how large they must be."""
    with pytest.raises(UserError, match=r"too small.*at least (9|16)"):
        SPEC.operators(SuperResolution(factor=factor), Geometry(shape))


def test_factor_one_is_deblurring():
    """Student: the blur alone; its only teacher has half of it, or what is asked for."""
    geometry = Geometry((1, 16, 16), dtype=torch.float64)
    x = torch.rand(2, 1, 16, 16, dtype=torch.float64)
    for options, expected in (({}, 0.6), ({"teacher_blur": 0.3}, 0.3)):
        made = SPEC.operators(SuperResolution(factor=1, blur=1.2, **options), geometry)
        ((label, build),) = [(teacher.label, teacher.build) for teacher in made.teachers]
        assert label == 1
        for physics, blur in ((made.student, 1.2), (build(), expected)):
            torch.testing.assert_close(physics.A(x), SeparableDownsampling(geometry, 1, blur).A(x))


def test_factor_out_of_bounds_is_refused():
    from dipa_bench.parameters import build

    with pytest.raises(UserError, match="factor"):
        build(SuperResolution, {"factor": 0})
