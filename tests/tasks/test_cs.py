"""The single-pixel camera against Hadamard matrices, deepinv's own operator and its old mask."""

import numpy as np
import pytest
import scipy.linalg
import torch
from deepinv.physics import SinglePixelCamera

from dipa_bench.errors import UserError
from dipa_bench.tasks import cs
from dipa_bench.tasks.base import Geometry
from dipa_bench.tasks.cs import SPEC, SinglePixel, SinglePixelOptions, sampling_mask
from dipa_bench.tasks.spectrum import matrix

SAMPLINGS = ["sequency-rectangle", "sequency", "cake-cutting", "zig-zag", "xy"]


def made(shape, **options):
    return SPEC.operators(SinglePixelOptions(**options), Geometry(shape, dtype=torch.float64))


def images(shape, count=3):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, *shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("side", [16, 32])
class TestOperator:
    def test_rows_are_of_the_hadamard_matrix(self, sampling, side):
        """Orthonormal rows of kron(H, H), those that the mask names, with the dense route too."""
        physics = made((1, side, side), sampling=sampling).student
        hadamard = scipy.linalg.hadamard(side) / np.sqrt(side)
        kept = physics.mask.flatten().numpy() > 0
        expected = np.kron(hadamard, hadamard)[kept]
        found = matrix(physics, (1, side, side), torch.zeros(1, dtype=torch.float64))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)
        np.testing.assert_allclose(found @ found.T, np.eye(kept.sum()), rtol=0, atol=1e-13)

    def test_adjoint(self, sampling, side):
        """<A x, y> = <x, A^T y>, and A A^T = I."""
        physics = made((2, side, side), sampling=sampling).student
        x = images((2, side, side))
        y = torch.randn_like(physics.A(x))
        torch.testing.assert_close((physics.A(x) * y).sum(), (x * physics.A_adjoint(y)).sum())
        torch.testing.assert_close(physics.A(physics.A_adjoint(y)), y)


@pytest.mark.parametrize("sampling", SAMPLINGS[1:])
@pytest.mark.parametrize("ratio", [0.2, 0.7])
def test_orderings_are_deepinvs(sampling, ratio):
    """Exactly floor(ratio n) coefficients, and the same projection as deepinv's camera."""
    side = 32
    count = int(ratio * side * side)
    mine = made((1, side, side), sampling=sampling, ratio=ratio).student
    ordering = sampling.replace("-", "_")
    theirs = SinglePixelCamera(m=count, img_size=(1, side, side), ordering=ordering)
    x = images((1, side, side))
    assert mine.A(x).shape == (3, 1, count)
    expected = theirs.A_adjoint(theirs.A(x.float())).double()
    torch.testing.assert_close(mine.A_adjoint(mine.A(x)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("ratio", "kept"), [(0.2, 448), (0.5, 704), (0.7, 832), (0.9, 960)])
def test_the_published_rectangle_keeps_more_than_its_ratio(ratio, kept):
    """floor(sqrt(m)) whole rows of 32: 14, 22, 26, 30; the record has the true share."""
    facts = made((1, 32, 32), ratio=ratio).facts
    assert facts["measurements"] == kept
    assert facts["measured share"] == pytest.approx(kept / 1024)
    assert facts["nominal share"] == ratio


def test_the_published_rectangle_by_hand():
    """8 x 8, m = 16: four rows of the old order, whose Gray code is decoded instead of encoded."""

    def decode(code):
        found = 0
        while code:
            found, code = found ^ code, code >> 1
        return found

    def mirrored(number):
        return int(f"{number:03b}"[::-1], 2)

    rows = {mirrored(decode(k)) for k in range(4)}
    columns = {mirrored(decode(k)) for k in range(8)}
    mask = sampling_mask("sequency-rectangle", (1, 8, 8), 16 / 64)[0, 0]
    assert {(r, c) for r, c in mask.nonzero().tolist()} == {(r, c) for r in rows for c in columns}


def test_all_routes_are_one_transform(monkeypatch):
    """Dense matrix, matrix products and butterflies give the same measurements."""
    geometry = Geometry((1, 16, 16), dtype=torch.float64)
    mask = sampling_mask("zig-zag", geometry.shape, 0.3)
    x = images((1, 16, 16))
    results = []
    for dense, products in ((256, 256), (0, 256), (0, 0)):
        monkeypatch.setattr(cs, "DENSE_UP_TO", dense)
        monkeypatch.setattr(cs, "PRODUCTS_UP_TO", products)
        physics = SinglePixel(mask, geometry)
        y = physics.A(x)
        results.append((y, physics.A_adjoint(y), physics.A_adjoint_A(x)))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-13)


def test_closed_form_proximal_step():
    """deepinv's closed form solves (A^T A + I / gamma) x = A^T y + z / gamma."""
    physics = made((1, 32, 32)).student
    x, z = images((1, 32, 32)), images((1, 32, 32)).flip(-1)
    y, gamma = physics.A(x), 3.0
    found = physics.prox_l2(z, y, gamma)
    left = physics.A_adjoint(physics.A(found)) + found / gamma
    torch.testing.assert_close(left, physics.A_adjoint(y) + z / gamma)


def test_oblong_images():
    """Powers of two need not be equal."""
    physics = made((1, 8, 32), sampling="sequency", ratio=0.5).student
    x = images((1, 8, 32))
    assert physics.A(x).shape == (3, 1, 128)
    assert physics.A_adjoint(physics.A(x)).shape == x.shape


def test_teachers_of_any_ratio():
    """The published three and 1; any other above the student's; a ratio of 1 loses nothing."""
    operators = made((1, 16, 16))
    assert [teacher.label for teacher in operators.teachers] == [0.5, 0.7, 0.9, 1.0]
    x = images((1, 16, 16))
    full = operators.teachers[-1].build()
    torch.testing.assert_close(full.A_adjoint(full.A(x)), x)
    some = operators.other(0.33).build()
    assert operators.student.kept.numel() < some.kept.numel() < 256
    for ratio in (0.2, 0.1, 1.2, 0.21):  # the rectangle of 0.21 is that of 0.2
        with pytest.raises(UserError, match=rf"teacher ratio {ratio}.*0.2"):
            operators.other(ratio)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 20, 16), {}, "20 x 16.*powers of two.*problem.size=32"),
        ((1, 8, 16), {"sampling": "cake-cutting"}, "square.*8 x 16"),
        ((1, 4, 4), {"ratio": 0.01}, "0.01 of 4 x 4.*nothing.*ratio"),
    ],
)
def test_what_cannot_be_built_is_refused(shape, options, message):
    """One line with the value and the cure."""
    with pytest.raises(UserError, match=message):
        made(shape, **options)
