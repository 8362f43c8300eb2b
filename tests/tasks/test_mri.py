"""MRI operators against an explicit Fourier matrix, and masks against their definition."""

import numpy as np
import pytest
import torch

from dipa_bench.errors import UserError
from dipa_bench.tasks.base import Geometry
from dipa_bench.tasks.mri import SPEC, MRIOptions, coil_maps, column_mask
from dipa_bench.tasks.spectrum import matrix
from dipa_bench.testing import small_task

KINDS = ["gaussian", "uniform", "random"]
SHAPE = (2, 12, 16)


def made(shape=SHAPE, seed=0, **options):
    return SPEC.operators(MRIOptions(**options), Geometry(shape, dtype=torch.float64, seed=seed))


def complex_of(channels):
    """B x 2 x ... real to B x ... complex, as numpy."""
    return (channels[:, 0] + 1j * channels[:, 1]).numpy()


def centred(side):
    """The centred orthonormal Fourier matrix: both axes count from -side // 2."""
    place = np.arange(side) - side // 2
    return np.exp(-2j * np.pi * np.outer(place, place) / side) / np.sqrt(side)


def images(shape=SHAPE, count=3):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("kind", KINDS)
def test_single_coil_is_a_masked_fourier_transform(kind):
    """y = mask F x F, with zero frequency in the middle."""
    operators = made(mask=kind)
    x = images()
    mask = column_mask(MRIOptions(mask=kind), 4.0, Geometry(SHAPE)).numpy()
    expected = mask * (centred(12) @ complex_of(x) @ centred(16))
    np.testing.assert_allclose(complex_of(operators.student.A(x)), expected, atol=1e-13)


def test_several_coils_weigh_the_image_first():
    """y_n = mask F (s_n x) F; the squared sensitivities add up to 1."""
    operators = made(coils=3)
    x, maps = images(), coil_maps(3, SHAPE[1:]).numpy()
    mask = column_mask(MRIOptions(), 4.0, Geometry(SHAPE)).numpy()
    found = complex_of(operators.student.A(x))
    for coil in range(3):
        expected = mask * (centred(12) @ (maps[coil] * complex_of(x)) @ centred(16))
        np.testing.assert_allclose(found[:, coil], expected, atol=1e-13)
    np.testing.assert_allclose((np.abs(maps) ** 2).sum(0), 1, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"coils": 4}])
@pytest.mark.parametrize("label", [None, 2.0])
def test_adjoint(options, label):
    """<A x, y> = <x, A^T y> with channels as two real numbers."""
    task = small_task("mri", (1, 12, 16), dtype=torch.float64, options=options)
    physics = task.physics(label)
    x = images()
    y = torch.randn_like(physics.A(x))
    torch.testing.assert_close((physics.A(x) * y).sum(), (x * physics.A_adjoint(y)).sum())


def test_complex_mri_is_a_projection_and_real_mri_is_not():
    """A^T A has eigenvalues 0 and 1; restricted to real images 0, 1/2 and 1."""
    physics = made((2, 8, 16)).student
    dense = matrix(physics, (2, 8, 16), torch.zeros(1, dtype=torch.float64)).numpy()
    normal = dense.T @ dense
    values = np.linalg.eigvalsh(normal)
    assert np.minimum(abs(values), abs(values - 1)).max() < 1e-12
    real = np.linalg.eigvalsh(normal[:128, :128])
    distance = np.abs(real[:, None] - [0, 0.5, 1]).min(1)
    assert distance.max() < 1e-12
    assert (abs(real - 0.5) < 1e-12).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("acceleration", [4.0, 3.0, 2.5, 1.5])
def test_mask_keeps_its_share_and_the_centre(kind, acceleration):
    """floor(W / AF) columns (equispaced ones: to rounding) of which 8% sit in the middle."""
    width = 64
    geometry = Geometry((2, 8, width))
    mask = column_mask(MRIOptions(mask=kind), acceleration, geometry)
    assert set(mask.tolist()) == {0.0, 1.0}
    kept = int(width // acceleration)
    assert abs(int(mask.sum()) - kept) <= (3 if kind == "uniform" else 0)
    centre = mask[width // 2 - 2 : width // 2 + 3]
    assert centre.all()


def test_masks_are_drawn_once_for_a_seed():
    """The same seed gives the same columns, another seed or acceleration others."""
    first, again, other = (
        column_mask(MRIOptions(), 4.0, Geometry((2, 8, 64), seed=seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    facts = made((2, 8, 64)).facts
    assert facts["mask columns"] == " ".join(map(str, first.nonzero()[:, 0].tolist()))
    assert facts["measured share"] == 0.25


def test_gaussian_masks_prefer_low_frequencies():
    """Over 300 draws the inner third of the columns is measured more often than the outer two."""
    options, width = MRIOptions(center=0.0), 60
    total = sum(
        column_mask(options, 4.0, Geometry((2, 8, width), seed=seed)) for seed in range(300)
    )
    inner = total[20:40].mean() / 300
    outer = torch.cat((total[:20], total[40:])).mean() / 300
    assert inner > 2 * outer
    flat = sum(
        column_mask(MRIOptions(center=0.0, mask="random"), 4.0, Geometry((2, 8, width), seed=seed))
        for seed in range(300)
    )
    assert flat[20:40].mean() / 300 == pytest.approx(0.25, abs=0.03)


def test_teachers_of_any_acceleration():
    """3, 2 and 1; any other in [1, 4); 1 measures everything."""
    operators = made()
    assert [teacher.label for teacher in operators.teachers] == [3.0, 2.0, 1.0]
    x = images()
    full = operators.other(1.0).build()
    torch.testing.assert_close(full.A_adjoint(full.A(x)), x)
    assert operators.other(1.7).build().mask[0, 0, 0].sum() == 16 // 1.7
    for value in (4.0, 5.0, 0.5, 3.9):  # 16 // 3.9 columns are the student's 4
        with pytest.raises(UserError, match=f"teacher acceleration {value:g}.*4"):
            operators.other(value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"acceleration": 32.0}, "acceleration 32 leaves 0 of 16"),
        ({"center": 0.5}, "acceleration 4 leaves 4 of 16 columns, of which the centre takes 8"),
    ],
)
def test_masks_without_columns_are_refused(options, message):
    """One line that says what to lower."""
    with pytest.raises(UserError, match=message + ".*lower problem.options"):
        made(**options)


@pytest.mark.parametrize("coils", [1, 4])
def test_noise_only_where_something_is_measured(coils):
    """k-space off the mask stays exactly 0; on it the level is the wanted one."""
    task = small_task("mri", (1, 32, 32), options={"coils": coils}, noise=0.1)
    clean = small_task("mri", (1, 32, 32), options={"coils": coils}, noise=0.0)
    images = task.images.train
    noise = task.measure(images) - clean.measure(images)
    mask = (task.student.mask[0, 0, 0] > 0).expand(noise.shape)
    assert not noise[~mask].any()
    assert noise[mask].std().item() == pytest.approx(0.1, rel=0.05)
