"""Greedily learned steps against their closed form and against a scan."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from baselines.scalar import METHOD
from dipa_bench.data.images import Splits
from dipa_bench.learning.least_squares.scalar import greedy_step
from dipa_bench.parameters import build
from dipa_bench.preconditioners import Scalar, State
from dipa_bench.testing.problems import small_task

K, SIGMA = 5, 0.07


def fitted(task, context, **values):
    values = {"solve.strength": SIGMA} | {f"solve.{key}": value for key, value in values.items()}
    return METHOD.fit(task, build(METHOD.parameters, values), context)


def greedy(a, w, y, start, momentum, factor=1.0):
    """The paper's steps in numpy; also f at each point and after the unregularised step."""
    z = x = start
    steps, scans = [], []
    for k in range(K):
        g = (z @ a.T - y) @ a
        alpha = (g**2).sum() / ((g @ a.T) ** 2).sum()
        steps.append(alpha)
        scans.append((z, g))
        new = (z - factor * alpha * g) @ w.T
        z, x = new + momentum(k) * (new - x), new
    return np.array(steps), scans


@pytest.fixture(scope="module")
def problem(dense_sr, smoother):
    task = small_task(shape=(1, 12, 16), dtype=torch.float64, iterations=K)
    y = task.measure(task.images.train).flatten(1).numpy()
    return task, dense_sr(12, 16, 4), smoother(12, 16, SIGMA), y


@pytest.mark.parametrize(
    ("momentum", "rule"), [("none", lambda k: 0), ("textbook", lambda k: k / (k + 4))]
)
@pytest.mark.parametrize("start", ["adjoint", "zero"])
def test_steps_are_the_closed_form(problem, context, momentum, rule, start):
    """alpha_k = sum |g|^2 / sum |A g|^2 on the iterates that the earlier steps led to."""
    task, a, w, y = problem
    made = fitted(task, context(), momentum=momentum, start=start, step=1.0)
    first = y @ a if start == "adjoint" else np.zeros_like(y @ a)
    expected, _ = greedy(a, w, y, first, rule)
    effective = made.solver.step_size * made.preconditioner.steps.detach().numpy()
    np.testing.assert_allclose(effective, expected, rtol=1e-5)


def test_the_solvers_step_multiplies_them(problem, context):
    """With solve.step = 0.5 the training images are rolled forward with half of each step."""
    task, a, w, y = problem
    made = fitted(task, context(), momentum="none", step=0.5)
    expected, _ = greedy(a, w, y, y @ a, lambda k: 0, factor=0.5)
    effective = made.solver.step_size * made.preconditioner.steps.detach().numpy()
    np.testing.assert_allclose(effective, 0.5 * expected, rtol=1e-5)


def test_each_step_minimises_the_data_term(problem, context):
    """No alpha of a fine scan gives a lower sum of 1/2 |A (z - alpha g) - y|^2."""
    task, a, w, y = problem
    made = fitted(task, context(), momentum="none", step=1.0)
    _, points = greedy(a, w, y, y @ a, lambda k: 0)
    effective = made.solver.step_size * made.preconditioner.steps.detach().numpy()

    def objective(z, g, alpha):
        return 0.5 * (((z - alpha * g) @ a.T - y) ** 2).sum()

    for alpha, (z, g) in zip(effective, points, strict=True):
        scan = [objective(z, g, other) for other in alpha * np.linspace(0, 3, 601)]
        assert objective(z, g, alpha) <= min(scan) * (1 + 1e-9)
        assert min(scan) == pytest.approx(scan[200])
        assert objective(z, g, alpha) <= objective(z, g, 0)  # its own step never raises it


def test_published_units(problem, context):
    """Relative step 1: what is taken are the learned steps, no more and no less."""
    task, a, w, y = problem
    values = METHOD.published(task) | {"solve.strength": SIGMA}
    made = METHOD.fit(task, build(METHOD.parameters, values), context())
    expected, _ = greedy(a, w, y, y @ a, lambda k: (k + 2) / (k + 3))
    effective = made.solver.step_size * made.preconditioner.steps.detach().numpy()
    np.testing.assert_allclose(effective, expected, rtol=1e-5)


def test_the_preconditioned_start_is_fitted_with_the_step_that_it_takes(problem, context):
    """x_0 = alpha_0 A^T y with the greedy alpha_0 at zero, at fit and at run."""
    task, a, _, y = problem
    made = fitted(task, context(), start="preconditioned", step=1.0)
    g = y @ a
    alpha = (g**2).sum() / ((g @ a.T) ** 2).sum()
    measured = task.measure(task.images.train)
    state = made.solver.start(measured, task.student, made.preconditioner)
    np.testing.assert_allclose(state.iterate.flatten(1).numpy(), alpha * g, rtol=1e-5)


def test_only_the_budgets_images_are_used(problem, context):
    """Two training images of the six, in one chunk or not."""
    task, a, w, _ = problem
    y = task.measure(task.images.train.first(2)).flatten(1).numpy()
    made = fitted(task, context(train_images=2), momentum="none")
    expected, _ = greedy(a, w, y, y @ a, lambda k: 0)
    effective = made.solver.step_size * made.preconditioner.steps.detach().numpy()
    np.testing.assert_allclose(effective, expected, rtol=1e-5)


@pytest.mark.parametrize("units", ["relative", "absolute"])
def test_zero_gradients_have_the_default_step(context, units):
    """Black images: nothing can be learned, so the step is 1 / lambda_max, whatever the units."""
    task = small_task(noise=0.0, iterations=2, dtype=torch.float64)
    task.images.train.pixels.zero_()
    made = fitted(task, context(), units=units, step=1.0, momentum="none")
    unit = made.solver.step_size if units == "relative" else 1.0
    steps = unit * made.preconditioner.steps.detach()
    assert steps.tolist() == pytest.approx([1 / task.norm_squared()] * 2, rel=1e-5)


def test_negligible_gradients_have_the_default_step(from_matrix, context):
    """A A^T = 4 I, x_0 = A^T y / 4: the first gradient is rounding noise, no step's teacher."""
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((256, 40)))[0].T
    task = small_task(noise=0.0, iterations=1, dtype=torch.float64)
    task = replace(task, operators=replace(task.operators, student=from_matrix(2 * q)))
    made = fitted(task, context(), start="preconditioned", step=1.0)
    effective = made.solver.step_size * made.preconditioner.steps.detach()
    assert effective.tolist() == pytest.approx([1 / 4], rel=1e-5)


def test_greedy_step():
    """energy / curvature; the fall-back for gradients or curvatures that vanish."""
    assert greedy_step(6.0, 2.0, 1.0, 0.7) == 3.0
    assert greedy_step(0.0, 0.0, 1.0, 0.7) == 0.7
    assert greedy_step(1e-14, 1e-14, 1.0, 0.7) == 0.7
    assert greedy_step(1.0, 0.0, 1.0, 0.7) == 0.7


def test_the_last_step_repeats():
    """P_k g = s_k g, beyond the fitted iterations s_(K-1) g."""
    operator = Scalar(3)
    operator.steps.data.copy_(torch.tensor([2.0, 3.0, 5.0]))
    g = torch.rand(2, 1, 4, 4)
    for k, step in enumerate([2.0, 3.0, 5.0, 5.0, 5.0]):
        assert torch.equal(operator(g, State(k, g, g, g, None)), step * g)


def test_state_dict_round_trip():
    """The steps are in the state."""
    operator, fresh = Scalar(3), Scalar(3)
    operator.steps.data.copy_(torch.tensor([2.0, 3.0, 5.0]))
    fresh.load_state_dict(operator.state_dict())
    assert fresh.steps.tolist() == [2.0, 3.0, 5.0]


def test_validation_and_test_images_are_not_read(problem, context):
    """Other validation and test images give the same steps; the test split is never opened."""
    task, *_ = problem
    images = task.images
    other = Splits(
        images.train,
        replace(images.validation, pixels=1 - images.validation.pixels),
        replace(images._test, pixels=1 - images._test.pixels),
    )
    first = fitted(task, context()).preconditioner.steps.detach()
    second = fitted(replace(task, images=other), context()).preconditioner.steps.detach()
    assert torch.equal(first, second)
    assert other.reads == []
