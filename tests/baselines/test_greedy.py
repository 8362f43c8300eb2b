"""The greedy operators against dense least squares, exact solutions and each other."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from baselines import convolutional, full_linear, pointwise, scalar
from dipa_bench.errors import UserError
from dipa_bench.learning.least_squares import Criterion, Lesson, energy
from dipa_bench.learning.least_squares.convolution import best_kernel, shifted
from dipa_bench.learning.least_squares.dense import Best, spectrum, thin
from dipa_bench.learning.least_squares.pointwise import best_factors
from dipa_bench.learning.least_squares.scalar import best_step
from dipa_bench.parameters import build, defaults, space
from dipa_bench.preconditioners import Convolution, Dense, Pointwise, State
from dipa_bench.preconditioners.linear import plain
from dipa_bench.tasks.spectrum import matrix
from dipa_bench.testing import small_task

MODULES = [scalar, pointwise, convolutional, full_linear]
OBJECTIVES = ["value", "distance"]
SIGMA, K = 0.07, 3
TINY = 1e-10  # a ridge that only rounding notices


def fitted(module, task, context, **values):
    method = module.METHOD
    known = defaults(method.parameters, task.solver, task) | {"solve.strength": SIGMA}
    return method.fit(task, build(method.parameters, known | values), context())


def learned(module, made):
    return made.preconditioner.numbers.detach()


def lesson_of(task, count=None, seed=0):
    """A lesson at random points near the training images, in one batch, and its criterion."""
    images = task.images.train.first(count)
    truth, y, physics = task.pixels(images), task.measure(images), task.student
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(truth.shape, generator=generator, dtype=truth.dtype)
    point = truth + 0.3 * noise
    residual = physics.A(point) - y
    lesson = Lesson(point, physics.A_adjoint(residual), residual, truth)
    size = energy([physics.A_adjoint(y)])

    def criterion(objective):
        largest = task.norm_squared()
        return Criterion(physics, largest, objective, size, largest)

    return lesson, criterion


def objective_of(lesson, criterion, direction):
    """What is minimised, at z - direction / L."""
    ahead = lesson.point - direction / criterion.largest
    if criterion.objective == "distance":
        return (ahead - lesson.truth).square().sum().item()
    return (lesson.residual - criterion.physics.A(direction) / criterion.largest).square().sum()


def system(task, lesson, criterion, images):
    """M, b of min |M d - b| for D g = sum_p d_p images_p, by dense matrices in numpy.

    Args:
        images: p x N x C x H x W, the basis images of the parametrisation.
    """
    flat = images.flatten(2)
    if criterion.objective == "distance":
        aim = task.norm_squared() * (lesson.point - lesson.truth) - lesson.gradient
        return flat.flatten(1).T.numpy(), aim.flatten().numpy()
    a = matrix(task.student, task.shape, images).double()
    rows = (flat @ a.T / task.norm_squared()).flatten(1)
    aim = lesson.residual.flatten(1) - lesson.gradient.flatten(1) @ a.T / task.norm_squared()
    return rows.T.numpy(), aim.flatten().numpy()


@pytest.fixture
def task():
    return small_task("sr", (1, 12, 16), dtype=torch.float64, iterations=K)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", ["sr", "deblur"])
def test_pointwise_is_the_least_squares_minimiser(objective, name):
    """p - 1 of numpy's lstsq on A diag(g_j), the ridge as further rows."""
    task = small_task(name, (1, 12, 12), dtype=torch.float64)
    lesson, criterion = lesson_of(task)
    criterion, ridge = criterion(objective), 1e-3
    found = best_factors([lesson], criterion, ridge)
    pixels = torch.eye(144, dtype=torch.float64).view(144, 1, 1, 12, 12)
    m, b = system(task, lesson, criterion, pixels * lesson.gradient)
    rho = ridge * lesson.gradient.square().sum(0).mean().item()
    rho /= task.norm_squared() if objective == "value" else 1
    m = np.concatenate([m, rho**0.5 * np.eye(144)])
    expected = 1 + np.linalg.lstsq(m, np.concatenate([b, np.zeros(144)]), rcond=None)[0]
    np.testing.assert_allclose(found.flatten().numpy(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", ["sr", "cs", "mri", "deblur"])
def test_convolutional_is_the_least_squares_minimiser(objective, name):
    """The kernel's objective is that of numpy's lstsq on the shifted gradients."""
    task = small_task(name, (1, 16, 16), dtype=torch.float64)
    lesson, criterion = lesson_of(task)
    criterion = criterion(objective)
    found = best_kernel([lesson], criterion, 3, TINY)
    m, b = system(task, lesson, criterion, shifted(lesson.gradient, 3))
    start = plain(3).flatten().numpy()
    best = ((m @ np.linalg.lstsq(m, b, rcond=None)[0] - b) ** 2).sum()
    reached = ((m @ (found.flatten().numpy() - start) - b) ** 2).sum()
    assert reached <= best + 1e-6 * (b**2).sum() + 1e-20


def test_distance_by_autograd(task):
    """The gradient of sum |z - G g - x*|^2 in p and in the kernel vanishes at the solutions."""
    lesson, criterion = lesson_of(task)
    criterion = criterion("distance")
    scale = lesson.gradient.square().sum()
    for operator, best in [
        (Pointwise(1, task.shape), lambda *a: best_factors(*a, TINY)),
        (Convolution(1, 3), lambda *a: best_kernel(*a, 3, TINY)),
        (Dense(task.shape), Best(1e-12, None)),
    ]:
        values = best([lesson], criterion).requires_grad_()
        ahead = operator.act(lesson.gradient, values)
        value = (task.norm_squared() * (lesson.point - lesson.truth) - ahead).square().sum()
        (slope,) = torch.autograd.grad(value, values)
        assert slope.abs().max() < 1e-6 * scale, type(operator)


def test_shifts_are_those_of_the_operator(task):
    """A kernel acts as the sum of its taps times the shifted images."""
    lesson, _ = lesson_of(task)
    operator = Convolution(1, 5).double().requires_grad_(False)
    operator.kernels.copy_(torch.rand(1, 5, 5, dtype=torch.float64))
    copies = shifted(lesson.gradient, 5)
    expected = torch.tensordot(operator.kernels.flatten(), copies, 1)
    found = operator(lesson.gradient, State(0, *[lesson.point] * 3, None))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", ["sr", "deblur"])
@pytest.mark.parametrize("shape", [(1, 10, 12), (3, 10, 10)])
def test_full_linear_solves_its_normal_equations(name, shape):
    """N D S + rho D = T with matrices formed densely, gray and colour."""
    task = small_task(
        name, shape, dtype=torch.float64, options={"factor": 2} if name == "sr" else {}
    )
    lesson, criterion = lesson_of(task)
    criterion, ridge = criterion("value"), 1e-3
    found = Best(ridge, spectrum(task.student, task.norm_squared(), lesson.gradient))(
        [lesson], criterion
    )
    pixels = shape[1] * shape[2]
    deviation = (found - torch.eye(pixels)).numpy()
    a = matrix(task.student, task.shape, lesson.gradient).numpy()
    n = (a.T @ a / task.norm_squared())[:pixels, :pixels]
    g = lesson.gradient.flatten(2).flatten(0, 1).numpy().T
    t = criterion.target(lesson).flatten(2).flatten(0, 1).numpy().T
    s = g @ g.T
    left = n @ deviation @ s + ridge * np.trace(s) * deviation
    np.testing.assert_allclose(left, t @ g.T, atol=1e-8 * np.abs(t @ g.T).max())


def test_full_linear_by_conjugate_gradients_is_the_closed_form(task):
    """The path for operators that mix channels gives what the eigenbases give."""
    lesson, criterion = lesson_of(task)
    found = spectrum(task.student, task.norm_squared(), lesson.gradient)
    closed = Best(1e-3, found)([lesson], criterion("value"))
    iterative = Best(1e-3, None)([lesson], criterion("value"))
    torch.testing.assert_close(closed, iterative, rtol=1e-6, atol=1e-7)


def test_the_spectrum_is_seen_only_where_channels_are_alike():
    """Complex Fourier sampling mixes real and imaginary part; blurring of colours does not."""
    for name, shape, alike in [("mri", (1, 12, 12), False), ("deblur", (3, 12, 12), True)]:
        task = small_task(name, shape, dtype=torch.float64)
        like = task.pixels(task.images.train)
        assert (spectrum(task.student, task.norm_squared(), like) is not None) == alike


def test_full_linear_finds_the_minimiser_where_channels_mix(mixing):
    """Complex images under a random complex operator: never above LBFGS's minimum."""
    task, lesson, criterion = mixing
    ridge = 1e-2
    found = Best(ridge, spectrum(task.student, task.norm_squared(), lesson.gradient))(
        [lesson], criterion
    )
    rho = ridge * lesson.gradient.square().sum()
    eye = torch.eye(len(found), dtype=torch.float64)

    def value(d):
        turned = (lesson.gradient.flatten(2) @ (eye + d).T).view_as(lesson.gradient)
        left = objective_of(lesson, criterion, turned) * criterion.largest
        return left + rho * d.square().sum()

    d = torch.zeros_like(eye, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [d], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
    )

    def closure():
        optimiser.zero_grad()
        now = value(d)
        now.backward()
        return now

    optimiser.step(closure)
    least, plain = value(d).item(), value(0 * eye).item()
    assert value(found - eye).item() <= least + 1e-8 * plain
    assert least < 0.9 * plain
    torch.testing.assert_close(found - eye, d.detach(), rtol=1e-3, atol=1e-4)


@pytest.fixture
def mixing():
    """A task on complex images whose operator couples real and imaginary part, ill conditioned."""
    task = small_task("mri", (1, 4, 4), dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    dense = torch.randn(20, 32, generator=generator, dtype=torch.float64)

    from deepinv.physics import LinearPhysics

    class Mixing(LinearPhysics):
        def A(self, x, **parameters):  # noqa: N802
            return x.flatten(1) @ dense.T

        def A_adjoint(self, y, **parameters):  # noqa: N802
            return (y @ dense).view(-1, 2, 4, 4)

    task = replace(task, operators=replace(task.operators, student=Mixing()), noise=0.0)
    lesson, criterion = lesson_of(task)
    return task, lesson, criterion("value")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_one_function_is_solved_pointwise_in_one_step(objective, from_matrix):
    """No g_i is 0: f(z - p g) = 0 for an invertible A, and for the distance z - p g = x*."""
    task = small_task("deblur", (1, 12, 12), dtype=torch.float64, noise=0.0)
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((144, 144)))[0] for _ in range(2))
    physics = from_matrix((left * np.linspace(0.7, 1, 144)) @ right)
    task = replace(task, operators=replace(task.operators, student=physics))
    lesson, criterion = lesson_of(task, count=1)
    criterion = criterion(objective)
    assert lesson.gradient.abs().min() > 1e-4
    direction = best_factors([lesson], criterion, TINY) * lesson.gradient
    before = objective_of(lesson, criterion, 0 * direction)
    assert objective_of(lesson, criterion, direction) < 1e-4 * before


@pytest.mark.covering
@pytest.mark.parametrize("module", MODULES[1:], ids=lambda module: module.METHOD.name)
@pytest.mark.parametrize("name", ["sr", "deblur", "cs"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_step_raises_its_objective(module, name, dtype, context):
    """Value: never above f before the step nor after the plain one. Distance: not the latter."""
    task = small_task(name, dtype=dtype, iterations=K)
    for objective in OBJECTIVES:
        made = fitted(
            module, task, context, objective=objective, **{"solve.start": "zero", "solve.step": 1.0}
        )
        solver, physics, operator = made.solver, task.student, made.preconditioner
        truth = task.pixels(task.images.train)
        state = solver.start(task.measure(task.images.train), physics, operator)
        for _ in range(K):
            state = solver.with_gradient(state)
            lesson = Lesson(state.point, state.gradient, state.residual, truth)
            criterion = Criterion(physics, task.norm_squared(), objective, 0.0, task.norm_squared())
            reached = objective_of(lesson, criterion, operator(state.gradient, state))
            slack = 1 + 1e-5
            assert reached <= slack * objective_of(lesson, criterion, state.gradient)
            if objective == "value":
                assert reached <= slack * objective_of(lesson, criterion, 0 * state.gradient)
            state = solver.advance(state, operator)


@pytest.mark.covering
@pytest.mark.parametrize("module", MODULES[1:], ids=lambda module: module.METHOD.name)
@pytest.mark.parametrize("name", ["cs", "mri"])
@pytest.mark.parametrize("start", ["adjoint", "zero", "preconditioned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_a_step_of_one_solves_all_tie_with_it(module, name, start, dtype, context):
    """A A^T = I without noise: the plain step leaves nothing to learn."""
    task = small_task(name, noise=0.0, iterations=K, dtype=dtype)
    made = fitted(module, task, context, **{"solve.start": start})
    stored = learned(module, made)
    one = {"pointwise": 1.0, "convolutional": plain(5)}.get(
        module.METHOD.name, torch.eye(stored.shape[-1])
    )
    torch.testing.assert_close(
        stored, torch.as_tensor(one).to(dtype).expand_as(stored), rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("name", ["cs", "mri"])
def test_the_scalar_ties_as_well(name, context):
    """Its steps are 1 (in units of 1 / lambda_max) for the same reason."""
    task = small_task(name, noise=0.0, iterations=K, dtype=torch.float64)
    made = fitted(scalar, task, context, **{"solve.start": "zero"})
    assert made.preconditioner.steps.tolist() == pytest.approx([1.0] * K, rel=1e-5)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.METHOD.name)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("units", ["relative", "absolute"])
def test_black_images_give_the_plain_step(module, objective, units, context):
    """Zero gradients: exactly 1 / lambda_max, in either unit, and nowhere 0 / 0."""
    task = small_task(noise=0.0, iterations=2, dtype=torch.float64)
    task.images.train.pixels.zero_()
    made = fitted(module, task, context, objective=objective, **{"solve.units": units})
    unit = (
        made.solver.step_size * task.norm_squared() if units == "relative" else task.norm_squared()
    )
    g = torch.rand(2, *task.shape, dtype=torch.float64)
    found = unit * made.preconditioner(g, State(0, g, g, g, None))
    torch.testing.assert_close(found, g, rtol=1e-6, atol=0)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_unspanned_directions_get_the_plain_step(task, objective):
    """A pixel without gradient keeps p = 1; an image across all gradients passes a dense P."""
    lesson, criterion = lesson_of(task, count=2)
    dark = lesson.gradient.clone()
    dark[..., :3] = 0
    found = best_factors([replace(lesson, gradient=dark)], criterion(objective), TINY)
    assert (found[..., :3] == 1).all() and (found[..., 3:] != 1).all()
    seen = spectrum(task.student, task.norm_squared(), lesson.gradient)
    dense = Best(1e-3, seen)([lesson], criterion(objective))
    across = torch.linalg.svd(lesson.gradient.flatten(1))[2][2:]
    torch.testing.assert_close(across @ dense.T, across, rtol=0, atol=1e-9)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.METHOD.name)
def test_objectives_differ_and_fits_are_deterministic(module, task, context):
    """Two fits of one objective are equal bit for bit, those of the two are not close."""
    once, again = (learned(module, fitted(module, task, context)) for _ in range(2))
    assert torch.equal(once, again)
    other = learned(module, fitted(module, task, context, objective="distance"))
    assert (once - other).abs().max() > 1e-2


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.METHOD.name)
def test_only_the_distance_reads_the_truth(module, task, context):
    """With the measurements kept, other true images change nothing but the distance's fit."""
    kept = {len(images): task.measure(images) for images in [task.images.train]}
    other = replace(task.images.train, pixels=1 - task.images.train.pixels)

    class Blind(type(task)):
        def measure(self, images, label=None):
            return kept[len(images)]

    fields = {
        name: getattr(task, name) for name in type(task).__dataclass_fields__ if name[0] != "_"
    }
    blind = Blind(**fields)
    changed = Blind(**fields | {"images": replace(task.images, train=other)})
    for objective in OBJECTIVES:
        pair = [
            learned(module, fitted(module, t, context, objective=objective))
            for t in (blind, changed)
        ]
        assert torch.equal(*pair) == (objective == "value")


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.METHOD.name)
def test_the_preconditioned_start_is_fitted_with_the_step_it_takes(module, task, context):
    """x_0 is the first operator's own step from zero, and iteration 0 does not refit it."""
    made = fitted(module, task, context, **{"solve.start": "preconditioned"})
    from_zero = fitted(module, task, context, **{"solve.start": "zero"})
    first, expected = learned(module, made)[0], learned(module, from_zero)[0]
    torch.testing.assert_close(first, expected, rtol=1e-5, atol=1e-7)


def test_scalar_distance_is_the_closed_form(task):
    """alpha = sum <g, z - x*> / sum |g|^2, in units of 1 / L."""
    lesson, criterion = lesson_of(task)
    found = best_step([lesson], criterion("distance"))
    g, error = lesson.gradient, lesson.point - lesson.truth
    assert found == pytest.approx((task.norm_squared() * (g * error).sum() / (g * g).sum()).item())


def test_batches_add_up(task):
    """One batch of six images or three of two: the same operators."""
    lesson, criterion = lesson_of(task)
    parts = [
        Lesson(*(getattr(lesson, name)[i : i + 2] for name in lesson.__dataclass_fields__))
        for i in (0, 2, 4)
    ]
    criterion = criterion("value")
    seen = spectrum(task.student, task.norm_squared(), lesson.gradient)
    for best in (
        lambda *a: best_factors(*a, 1e-3),
        lambda *a: best_kernel(*a, 5, 1e-3),
        Best(1e-3, seen),
    ):
        torch.testing.assert_close(
            best(parts, criterion), best([lesson], criterion), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("size", [(7, 3), (3, 7)])
def test_thin_eigenvectors(size):
    """R R^T = V diag(values) V^T from either side."""
    rows = torch.randn(*size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values, vectors = thin(rows)
    assert len(values) == 3
    torch.testing.assert_close((vectors * values) @ vectors.T, rows @ rows.T)


def test_the_last_operator_repeats():
    """Beyond the fitted iterations the last one acts."""
    g = torch.rand(2, 1, 6, 6)
    for operator in (Pointwise(2, (1, 6, 6)), Convolution(2, 3), Dense((1, 6, 6), copies=2)):
        operator.numbers.data[1] *= 2
        for iteration, factor in enumerate([1, 2, 2, 2]):
            found = operator(g, State(iteration, g, g, g, None))
            torch.testing.assert_close(found, factor * g)


def test_other_shapes_are_refused():
    """Operators of one shape say so in one line."""
    g = torch.rand(1, 1, 6, 8)
    for operator in (Pointwise(1, (1, 6, 6)), Dense((1, 6, 6))):
        with pytest.raises(UserError, match=r"\(1, 6, 6\), not \(1, 6, 8\): fit it again"):
            operator(g, State(0, g, g, g, None))


def test_kernels_have_a_middle_and_fit(context):
    """Even sizes and kernels larger than the image are refused."""
    with pytest.raises(UserError, match=r"kernel = 4.*odd"):
        build(convolutional.METHOD.parameters, {"operator.kernel": 4})
    with pytest.raises(UserError, match="kernel = 17 is larger than the images' 16 pixels"):
        fitted(convolutional, small_task(), context, **{"operator.kernel": 17})


def test_what_is_searched(task):
    """Kernel, ridges and the objective: the data term alone can tie with the identity."""
    found = {m.METHOD.name: set(space(m.METHOD.parameters, task.solver, task)) for m in MODULES}
    assert found["convolutional"] - found["scalar"] == {"operator.kernel", "ridge"}
    assert found["full-linear"] - found["scalar"] == {"ridge"}
    assert found["pointwise"] - found["scalar"] == {"ridge"}
    assert "objective" in found["scalar"]


def test_large_problems_are_skipped(context, monkeypatch):
    """More than 4096^2 numbers an operator, or more of all operators than there is memory."""
    skip = full_linear.METHOD.unsuitable
    large = small_task("deblur", (1, 64, 65), count=1)
    assert "at most 16,777,216 numbers of an operator, not 17,305,600" in skip(large)
    with pytest.raises(UserError, match="17,305,600"):
        fitted(full_linear, large, context)
    small = small_task("deblur", (1, 64, 64), count=1, iterations=4)
    monkeypatch.setattr("dipa_bench.devices.available_memory", lambda device: 2**30)
    assert skip(replace(small, iterations=8)) is None
    assert "fitting 9 x 16,777,216 numbers takes 1 GiB" in skip(replace(small, iterations=9))
