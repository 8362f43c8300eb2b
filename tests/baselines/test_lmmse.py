"""The closed forms from second moments: against the textbook formula and dense eigenvalues."""

import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from baselines.lmmse import MAP, METHOD, LMMSEPreconditionerParameters, covariance
from baselines.lmmse_structured import KINDS, as_images, build, moments_of
from dipa_bench.data.images import ImageSet, Splits
from dipa_bench.errors import UserError
from dipa_bench.learning import lmmse
from dipa_bench.methods import NoParameters
from dipa_bench.parameters import defaults, space
from dipa_bench.preconditioners import State
from dipa_bench.solvers import SolveParameters
from dipa_bench.tasks.spectrum import matrix
from dipa_bench.testing import PreconditionerContract, small_task

TASKS = ["sr", "cs", "mri", "deblur"]


def fitted(task, context, damping=0.01, covariance="dense", **solve):
    parameters = LMMSEPreconditionerParameters(
        solve=SolveParameters(strength=0.1, start="zero", **solve),
        damping=damping,
        covariance=covariance,
    )
    return METHOD.fit(task, parameters, context())


def at_start(task):
    """The state of iteration 0 at zero."""
    zero = torch.zeros(1, *task.shape, dtype=task.dtype)
    return State(0, zero, zero, task.student.A(zero), task.student)


def moments(task):
    """C, A and epsilon of damping 0.01 as numpy arrays."""
    images = task.pixels(task.images.train)
    c = covariance(task, images).numpy()
    a = matrix(task.student, task.shape, images).double().numpy()
    return c, a, 0.01 * task.norm_squared() * np.diag(c).mean()


@pytest.mark.parametrize("name", TASKS)
def test_is_the_lmmse_gain_on_gradients(name, context):
    """P A^T = C A^T (A C A^T + eps I)^-1, and P itself is (A^T A + eps C^-1)^-1."""
    task = small_task(name, dtype=torch.float64)
    operator = fitted(task, context).preconditioner
    c, a, epsilon = moments(task)
    p = operator.dense(task.shape, at_start(task)).numpy()
    gain = c @ a.T @ np.linalg.inv(a @ c @ a.T + epsilon * np.eye(len(a)))
    np.testing.assert_allclose(p @ a.T, gain, atol=1e-6 * np.abs(gain).max())
    np.testing.assert_allclose(
        p @ (a.T @ a + epsilon * np.linalg.inv(c)), np.eye(len(p)), atol=1e-6
    )


@pytest.mark.parametrize("name", TASKS)
def test_bound_is_the_largest_eigenvalue(name, context):
    """lambda_max(P A^T A) of the dense product."""
    task = small_task(name, dtype=torch.float64)
    operator = fitted(task, context).preconditioner
    _, a, _ = moments(task)
    true = np.linalg.eigvals(
        operator.dense(task.shape, at_start(task)).numpy() @ a.T @ a
    ).real.max()
    assert operator.spectral_bound(task.norm_squared()) == pytest.approx(true, rel=1e-6)


def test_one_step_from_the_mean_is_the_lmmse_estimate(context):
    """Without prior and at an absolute step of 1, x_1 = mean + C A^T (...)^-1 (y - A mean)."""
    task = small_task("sr", dtype=torch.float64, iterations=1)
    made = fitted(task, context, step=1.0, momentum="none", units="absolute")
    mean = task.pixels(task.images.train).mean(0, keepdim=True)
    y = task.measure(task.images.validation)
    gradient = task.student.A_adjoint(task.student.A(mean) - y)
    direction = made.preconditioner(gradient, at_start(task))
    c, a, epsilon = moments(task)
    gain = c @ a.T @ np.linalg.inv(a @ c @ a.T + epsilon * np.eye(len(a)))
    residual = (y - task.student.A(mean)).flatten(1).numpy()
    expected = mean.flatten(1).numpy() + residual @ gain.T
    np.testing.assert_allclose((mean - direction).flatten(1).numpy(), expected, atol=1e-6)


def test_the_map_is_the_start_of_the_same_name(context):
    """The control is the LMMSE map that `solve.start=lmmse` begins with."""
    task = small_task("cs")
    y = task.measure(task.images.validation)
    found = MAP.fit(task, NoParameters(), context()).run(y, task.student)
    torch.testing.assert_close(found.estimate, lmmse.fit(task)(y))
    assert (found.operator_calls, found.denoiser_calls) == (0, 0)


def test_the_map_is_skipped_where_there_is_none(monkeypatch):
    """With how many measurements there are."""
    assert MAP.unsuitable(small_task()) is None
    monkeypatch.setattr(lmmse, "LARGEST", 15)
    assert "at most 15 per image (here 16)" in MAP.unsuitable(small_task())


class TestStructured(PreconditionerContract):
    @pytest.fixture(autouse=True, params=KINDS)
    def _of_kind(self, request):
        self.kind = request.param

    def make(self, task):
        return build(task, task.pixels(task.images.train), self.kind, 0.01)


def with_training_images(task, pixels):
    names = tuple(map(str, range(len(pixels))))
    train = ImageSet(pixels, names, names)
    images = task.images
    return replace(task, images=Splits(train, images.validation, images.test("lmmse test")))


def within_range(pixels):
    """In [0, 1]; complex ones, which have no mean, with magnitudes up to 1."""
    if pixels.shape[1] == 2:
        return pixels / pixels.square().sum(1).max().sqrt()
    return (pixels - pixels.min()) / (pixels.max() - pixels.min())


def all_shifts(images):
    """Every circular shift of every image, whose covariance is circulant."""
    height, width = images.shape[2:]
    shifts = [(i, j) for i in range(height) for j in range(width)]
    return torch.cat([images.roll(shift, (2, 3)) for shift in shifts])


def separable(shape):
    """sqrt(n) times the columns of R_K (x) R_H (x) R_W and their negatives: Kronecker, mean 0."""
    random = np.random.default_rng(0)
    roots = [random.standard_normal((n, n)) for n in shape]
    whole = np.kron(np.kron(*roots[:2]), roots[2])
    columns = torch.from_numpy(whole.T.reshape(-1, *shape).copy())
    return torch.cat((columns, -columns))


@pytest.mark.exhaustive(after=1)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "channels", "side"), [("sr", 1, 12), ("deblur", 3, 9), ("mri", 1, 8)]
)
def test_true_structure_gives_the_dense_operator(kind, name, channels, side, context):
    """Gray, colour and complex images whose covariance has the structure: P to 1e-5."""
    task = small_task(name, (channels, side, side), dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    if task.shape[0] == 2 and kind == "kronecker":
        pixels = complex_separable(side, side)
    elif kind == "kronecker":
        pixels = separable(task.shape)
    else:
        drawn = torch.randn(8, 2 if task.shape[0] == 2 else 1, side, side, generator=generator)
        pixels = all_shifts(drawn.double())
        if channels > 1:
            mixing = torch.tensor([1.0, 0.6, -0.3], dtype=torch.float64).view(1, 3, 1, 1)
            apart = [torch.zeros_like(mixing) for _ in range(3)]
            for index, each in enumerate(apart):
                each[0, index] = 0.5
            pixels = torch.cat([sign * pixels * e for e in (mixing, *apart) for sign in (1, -1)])
    task = with_training_images(task, within_range(pixels))
    expected = fitted(task, context).preconditioner.dense(task.shape, at_start(task))
    operator = fitted(task, context, covariance=kind).preconditioner
    operator.iterations = 400
    found = operator.dense(task.shape, at_start(task))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    largest = fitted(task, context).preconditioner.spectral_bound(task.norm_squared())
    assert operator.spectral_bound(task.norm_squared()) == pytest.approx(largest, rel=1e-4)


def complex_separable(height, width):
    """The columns of R_H (x) R_W with complex roots, as complex images."""
    random = np.random.default_rng(0)
    rows, columns = (
        random.standard_normal((n, n)) + 1j * random.standard_normal((n, n))
        for n in (height, width)
    )
    whole = np.kron(rows, columns).T.reshape(-1, 1, height, width).copy()
    return as_images(torch.from_numpy(whole))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["sr", "mri"])
def test_variance_is_the_images_own(kind, name):
    """tr C as that of the dense covariance, complex images included."""
    task = small_task(name, dtype=torch.float64)
    images = task.pixels(task.images.train)
    dense = covariance(task, images)
    parts, channels, variance = moments_of(images, kind)
    traces = [part.sum() if kind == "stationary" else part.trace().real for part in parts]
    total = channels.trace() * np.prod([float(each) for each in traces])
    count = 2 if name == "mri" else 1  # C of complex images acts on complex numbers
    assert count * total == pytest.approx(dense.trace().item(), rel=1e-5)
    assert variance == pytest.approx(dense.diagonal().mean().item(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_what_is_applied(kind, context, monkeypatch):
    """2 for the gradient and 2 for each of the fixed number of conjugate gradients."""
    task = small_task("deblur", dtype=torch.float64, iterations=3)
    made, calls = fitted(task, context, covariance=kind), []
    for name in ("A", "A_adjoint"):
        plain = getattr(task.student, name)
        monkeypatch.setattr(
            task.student, name, lambda v, plain=plain, **kw: calls.append(0) or plain(v, **kw)
        )
    measured = task.measure(task.images.validation)
    calls.clear()
    found = made.run(measured, task.student)
    steps = made.preconditioner.iterations
    assert found.operator_calls == len(calls) == 1 + 3 * (2 + 2 * steps)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "shape", [(1, 96, 96), pytest.param((3, 96, 96), marks=pytest.mark.exhaustive)]
)
def test_large_images_take_seconds(kind, shape, context):
    """96 x 96 pixels, whose dense moments do not fit; the default there is structured."""
    task = small_task("sr", shape)
    started = time.perf_counter()
    made = fitted(task, context, covariance=kind)
    found = made.run(task.measure(task.images.validation), task.student).estimate
    assert time.perf_counter() - started < 30
    assert torch.isfinite(found).all()
    assert METHOD.unsuitable(task) is None


def test_dense_is_refused_where_it_cannot_be_had(context):
    """And not searched; the line names the cure."""
    small, large = small_task(), small_task("mri", (1, 64, 64), count=1)
    kinds = [space(METHOD.parameters, task.solver, task)["covariance"] for task in (small, large)]
    assert defaults(METHOD.parameters, "pnp-fista", small)["covariance"] == "stationary"
    assert kinds[0].choices == ("dense", "stationary", "kronecker")
    assert kinds[1].choices == ("stationary", "kronecker")
    assert defaults(METHOD.parameters, "pnp-fista", large)["covariance"] == "stationary"
    with pytest.raises(UserError, match=r"8192 numbers.*covariance=stationary"):
        fitted(large, context)


def test_structured_is_refused_at_another_size(context):
    operator = fitted(small_task(), context, covariance="stationary").preconditioner
    with pytest.raises(UserError, match="fit it again"):
        operator(torch.zeros(1, 1, 12, 16), at_start(small_task()))
