"""The iterates are the recursions of the paper, computed here with dense matrices in numpy."""

import numpy as np
import pytest
import torch

from dipa_bench.preconditioners import Dense, Identity, Preconditioner
from dipa_bench.priors.base import SIGMA, Prior
from dipa_bench.solvers import REDFISTA, PnPFISTA
from dipa_bench.solvers.momentum import RULES
from dipa_bench.testing.problems import small_task, smoothing_prior

SIZE, SIGMA_USED, STEP, WEIGHT = 12, 0.07, 3.0, 0.15

# m_k of the paper's page, written down as fractions
MOMENTUM = {
    "textbook": [0, 1 / 5, 2 / 6, 3 / 7, 4 / 8, 5 / 9, 6 / 10, 7 / 11],
    "published": [2 / 3, 3 / 4, 4 / 5, 5 / 6, 6 / 7, 7 / 8, 8 / 9, 9 / 10],
    "none": [0] * 8,
}


def solve(name, **options):
    options = {"step": STEP, "strength": SIGMA_USED, "iterations": 6} | options
    if name == "red":
        return REDFISTA(smoothing_prior(), **({"weight": WEIGHT} | options))
    return PnPFISTA(smoothing_prior(), **options)


def recursion(name, a, w, p, y, start, momentum, iterations=6, step=STEP, weight=WEIGHT):
    """All iterates x_0 ... x_K for one image, as rows."""
    x = z = start
    path = [x]
    for k in range(iterations):
        direction = p @ (a.T @ (a @ z - y))
        if name == "red":
            new = z - step * (direction + weight * (z - w @ z))
        else:
            new = w @ (z - step * direction)
        z, x = new + momentum[k] * (new - x), new
        path.append(x)
    return np.array(path)


@pytest.fixture(scope="module")
def problem(dense_sr, smoother):
    """Two images, their measurements, A, W and an unsymmetric P near the identity."""
    task = small_task(shape=(1, SIZE, SIZE), dtype=torch.float64, noise=0.0, count=2)
    rng = np.random.default_rng(0)
    a = dense_sr(SIZE, SIZE, 4)
    w = smoother(SIZE, SIZE, SIGMA_USED)
    p = np.eye(SIZE**2) + 0.02 * rng.standard_normal((SIZE**2, SIZE**2))
    operator = Dense((1, SIZE, SIZE)).double()
    operator.load_state_dict({"matrix": torch.from_numpy(p)[None]})
    operator.requires_grad_(False)
    measured = task.measure(task.images.train)
    return task, a, w, p, operator, measured


@pytest.mark.parametrize("rule", sorted(MOMENTUM))
def test_momentum_rules_are_the_papers_fractions(rule):
    """m_0 ... m_7 of each rule."""
    np.testing.assert_allclose([RULES[rule](k) for k in range(8)], MOMENTUM[rule], rtol=1e-14)


@pytest.mark.parametrize("rule", sorted(MOMENTUM))
@pytest.mark.parametrize("name", ["pnp", "red"])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_estimate_is_the_recursion(problem, name, rule, preconditioned):
    """x_K to 1e-12 of the numpy recursion, with P = I and with an unsymmetric P."""
    task, a, w, p, operator, measured = problem
    matrix = p if preconditioned else np.eye(SIZE**2)
    solver = solve(name, momentum=rule)
    estimate = solver.run(measured, task.student, operator if preconditioned else Identity())
    for y, found in zip(measured.flatten(1).numpy(), estimate.estimate, strict=True):
        path = recursion(name, a, w, matrix, y, a.T @ y, MOMENTUM[rule])
        np.testing.assert_allclose(found.ravel().numpy(), path[-1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", sorted(MOMENTUM))
@pytest.mark.parametrize("name", ["pnp", "red"])
def test_curves_are_those_of_every_iterate(problem, name, rule):
    """mse, ||A x_k - y|| and ||x_k - x_(k-1)|| of each x_k; the recorder never applies A itself."""
    task, a, w, p, operator, measured = problem
    truth = task.pixels(task.images.train)
    solver = solve(name, momentum=rule)
    run = solver.run(measured, task.student, operator, record=True, reference=truth)
    assert run.curves.mse.shape == (7, 2)
    for image in range(2):
        y, x = measured[image].ravel().numpy(), truth[image].ravel().numpy()
        path = recursion(name, a, w, p, y, a.T @ y, MOMENTUM[rule])
        expected = {
            "mse": ((path - x) ** 2).mean(1),
            "residual": np.linalg.norm(path @ a.T - y, axis=1),
            "step_norm": np.r_[0, np.linalg.norm(np.diff(path, axis=0), axis=1)],
        }
        for curve, values in expected.items():
            found = getattr(run.curves, curve)[:, image].numpy()
            np.testing.assert_allclose(found, values, rtol=1e-9, atol=1e-12, err_msg=curve)


def test_recording_changes_nothing(problem):
    """Bit-identical estimate and the same reported costs with and without curves."""
    task, *_, operator, measured = problem
    solver = solve("pnp")
    plain = solver.run(measured, task.student, operator)
    truth = task.pixels(task.images.train)
    followed = solver.run(measured, task.student, operator, record=True, reference=truth)
    assert torch.equal(plain.estimate, followed.estimate)
    assert plain.operator_calls == followed.operator_calls
    assert plain.curves is None


def test_curves_without_a_reference_have_no_error(problem):
    """mse is NaN throughout, the other curves are finite."""
    task, *_, measured = problem
    curves = solve("pnp").run(measured, task.student, Identity(), record=True).curves
    assert curves.mse.isnan().all()
    assert curves.residual.isfinite().all()
    assert curves.step_norm.isfinite().all()


@pytest.mark.parametrize("name", ["pnp", "red"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_is_its_images_one_by_one(name, dtype):
    """Estimates and all three curves."""
    task = small_task(shape=(1, 16, 24), dtype=dtype)
    measured, truth = task.measure(task.images.test("batch")), task.pixels(task.images._test)
    solver = solve(name, iterations=5)
    whole = solver.run(measured, task.student, Identity(), record=True, reference=truth)
    for index in range(len(measured)):
        part = slice(index, index + 1)
        alone = solver.run(
            measured[part], task.student, Identity(), record=True, reference=truth[part]
        )
        torch.testing.assert_close(alone.estimate, whole.estimate[part])
        for curve in ("mse", "residual", "step_norm"):
            expected = getattr(whole.curves, curve)[:, part]
            torch.testing.assert_close(getattr(alone.curves, curve), expected)


@pytest.mark.parametrize("name", ["pnp", "red"])
def test_settings_per_image_are_separate_runs(problem, name):
    """Step, strength, its decay and RED's weight as B x 1 x 1 x 1 tensors."""
    task, *_, operator, measured = problem
    steps, strengths, weights = (0.5, 4.0), (0.01, 0.2), (0.05, 0.3)
    decays = (1.0, 0.2)

    def column(values):
        return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)

    extra = {"weight": column(weights)} if name == "red" else {}
    batched = solve(
        name,
        step=column(steps),
        strength=column(strengths),
        decay=column(decays),
        start="preconditioned",
        **extra,
    ).run(measured, task.student, operator)
    for index in range(2):
        extra = {"weight": weights[index]} if name == "red" else {}
        alone = solve(
            name,
            step=steps[index],
            strength=strengths[index],
            decay=decays[index],
            start="preconditioned",
            **extra,
        ).run(measured[index : index + 1], task.student, operator)
        torch.testing.assert_close(batched.estimate[index], alone.estimate[0])
    assert not torch.allclose(batched.estimate[0], batched.estimate[1])


class Averaging(Preconditioner):
    """d_k = (g_k + d_(k-1)) / 2: needs the last direction, so a memory; it also logs its states."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, gradient, state):
        self.seen.append(state)
        return gradient if state.memory is None else (gradient + state.memory) / 2

    def remember(self, gradient, state):
        return gradient if state.memory is None else (gradient + state.memory) / 2


def test_memory_is_handed_from_step_to_step(problem):
    """The recursion with remembered directions, and every field of the states on the way."""
    task, a, w, _, _, measured = problem
    operator = Averaging()
    estimate = solve("pnp", iterations=5).run(measured[:1], task.student, operator).estimate
    y = measured[0].ravel().numpy()
    x = z = a.T @ y
    memory, points, gradients, iterates = None, [], [], [x]
    for k in range(5):
        gradient = a.T @ (a @ z - y)
        memory = gradient if memory is None else (gradient + memory) / 2
        points.append(z)
        gradients.append(gradient)
        new = w @ (z - STEP * memory)
        z, x = new + MOMENTUM["textbook"][k] * (new - x), new
        iterates.append(x)
    np.testing.assert_allclose(estimate.ravel().numpy(), x, rtol=0, atol=1e-12)
    assert [state.iteration for state in operator.seen] == list(range(5))
    first, *later = operator.seen
    assert first.memory is first.previous_point is first.previous_gradient is None
    for k, state in enumerate(operator.seen):
        np.testing.assert_allclose(state.point.ravel(), points[k], atol=1e-12)
        np.testing.assert_allclose(state.iterate.ravel(), iterates[k], atol=1e-12)
        np.testing.assert_allclose(state.gradient.ravel(), gradients[k], atol=1e-12)
        np.testing.assert_allclose(state.residual.ravel(), a @ points[k] - y, atol=1e-12)
    for k, state in enumerate(later, start=1):
        np.testing.assert_allclose(state.previous_point.ravel(), points[k - 1], atol=1e-12)
        np.testing.assert_allclose(state.previous_gradient.ravel(), gradients[k - 1], atol=1e-12)


def test_a_second_run_starts_without_memory(problem):
    """Two runs of one operator give the same bits."""
    task, *_, measured = problem
    solver, operator = solve("pnp"), Averaging()
    first = solver.run(measured, task.student, operator).estimate
    assert torch.equal(first, solver.run(measured, task.student, operator).estimate)


@pytest.mark.parametrize(
    ("decay", "expected"),
    [(1.0, [0.123] * 4), (1 / 64, [0.984, 0.246, 0.0615, 0.015375])],
)
def test_the_prior_gets_the_strength(decay, expected):
    """D is called once per iteration, on z - step g; the given strength is the geometric mean."""
    calls = []

    def denoise(noisy, sigma):
        calls.append(sigma)
        return noisy

    task = small_task(noise=0.0)
    prior = Prior("spy", SIGMA, denoise)
    solver = PnPFISTA(prior, step=1.0, strength=0.123, iterations=4, decay=decay)
    run = solver.run(task.measure(task.images.train), task.student, Identity())
    assert calls == pytest.approx(expected)
    assert run.denoiser_calls == 4
