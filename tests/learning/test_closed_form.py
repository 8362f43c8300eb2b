"""Closed-form operators against second moments in numpy, LBFGS on R, and spectra."""

import numpy as np
import pytest
import torch

from dipa_bench import registry
from dipa_bench.learning import losses
from dipa_bench.learning.closed_form import RIDGES, RULE, best_numbers, lesson, normalise
from dipa_bench.learning.unrolling import validate
from dipa_bench.parameters import build, defaults, space
from dipa_bench.preconditioners import (
    BlockCirculant,
    Convolution,
    Dense,
    HadamardDiagonal,
    LowRank,
    Pointwise,
    Scalar,
    State,
)
from dipa_bench.testing import small_task

TINY = 1e-11
AFFINE = ["scalar", "pointwise", "convolution", "dense", "block-circulant", "hadamard"]


def matrix_of(physics, shape):
    """A, from unit images."""
    n = int(np.prod(shape))
    measured = physics.A(torch.eye(n, dtype=torch.float64).view(n, *shape))
    return measured.flatten(1).T.numpy()


def dense_of(operator, task):
    point = torch.zeros(1, *task.shape, dtype=torch.float64)
    return operator.dense(task.shape, State(0, point, point, point, None)).numpy()


def fitted(name, task, context, **values):
    method = registry.get("methods", f"{name}+closed-form")
    flat = defaults(method.parameters, task.solver, task) | values
    return method.fit(task, build(method.parameters, flat), context)


def radius(task, p):
    a = matrix_of(task.student, task.shape)
    return np.abs(np.linalg.eigvals(p @ a.T @ a)).max()


@pytest.fixture
def task():
    return small_task("sr", (1, 12, 12), dtype=torch.float64, count=40, noise=0.05)


def test_dense_to_the_truth_is_the_second_moments_map(task, context):
    """P A^T y = C_xu C_uu^+ u: uncentred, with the noise as drawn; on any measurement."""
    given = lesson(task, "truth", 2.0, "relative", context())
    operator = Dense(task.shape).double()
    numbers = best_numbers(operator, given, TINY, task).numpy() / task.norm_squared()
    x = task.images.train.pixels.double().flatten(1).numpy()
    a = matrix_of(task.student, task.shape)
    u = task.measure(task.images.train).flatten(1).numpy() @ a
    clean = x @ a.T @ a
    assert np.abs(u - clean).max() > 1e-3  # the noise matters
    expected = x.T @ u @ np.linalg.pinv(u.T @ u, rcond=1e-12, hermitian=True)
    tried = task.measure(task.images.validation).flatten(1).numpy() @ a
    range_ = np.linalg.svd(a.T, full_matrices=False)[0]  # all gradients lie in it, 9 numbers
    np.testing.assert_allclose(range_ @ range_.T @ tried.T, tried.T, atol=1e-12)
    np.testing.assert_allclose(numbers @ tried.T, expected @ tried.T, atol=1e-6)
    error = ((numbers @ u.T - x.T) ** 2).sum()
    for seed in range(3):
        other = numbers + 0.01 * np.random.default_rng(seed).standard_normal(numbers.shape)
        assert ((other @ u.T - x.T) ** 2).sum() > error


def test_the_ridge_pulls_to_the_plain_step(task, context):
    """(I + D) with D S + ridge trace(S) D = T in numpy; a huge one leaves I."""
    given = lesson(task, "truth", 2.0, "relative", context())
    x, u = (part.flatten(1).numpy() for part in (given.point, given.gradient))
    target = task.norm_squared() * x - u
    s = u.T @ u
    for ridge in (1e-3, 1.0):
        found = best_numbers(Dense(task.shape).double(), given, ridge, task).numpy()
        left = (found - np.eye(144)) @ (s + ridge * np.trace(s) * np.eye(144))
        np.testing.assert_allclose(left, target.T @ u, atol=1e-9 * np.abs(target.T @ u).max())
    found = best_numbers(Dense(task.shape).double(), given, 1e12, task).numpy()
    np.testing.assert_allclose(found, np.eye(144), atol=1e-6)


def test_the_lesson_of_the_mismatch_is_that_of_r(task, context):
    """u = A_s^T A_s x and v = alpha_t A_t^T A_t x without noise, with the tuned teacher's step."""
    found = context()
    given = lesson(task, "mismatch", 2.0, "relative", found)
    x = task.images.train.pixels.double().flatten(1).numpy()
    student = matrix_of(task.student, task.shape)
    teacher = matrix_of(task.teacher(2.0), task.shape)
    step = found.teachers.tuned(task, 2.0).step / np.linalg.norm(teacher, 2) ** 2
    np.testing.assert_allclose(
        given.gradient.flatten(1).numpy(), x @ student.T @ student, atol=1e-10
    )
    np.testing.assert_allclose(
        given.point.flatten(1).numpy(), step * x @ teacher.T @ teacher, rtol=1e-5, atol=1e-8
    )


def test_absolute_steps_go_with_the_published_teacher(task, context):
    """The teacher's published step 0.7 as it is."""
    given = lesson(task, "mismatch", 2.0, "absolute", context())
    x = task.images.train.pixels.double().flatten(1).numpy()
    teacher = matrix_of(task.teacher(2.0), task.shape)
    assert task.spec.published.teacher == 0.7
    expected = 0.7 * x @ teacher.T @ teacher
    np.testing.assert_allclose(given.point.flatten(1).numpy(), expected, rtol=1e-6, atol=1e-9)


def test_the_budget_limits_the_images(task, context):
    """The first 7 of 40."""
    for target in ("truth", "mismatch"):
        given = lesson(task, target, 2.0, "relative", context(train_images=7))
        assert len(given.point) == len(given.gradient) == 7


MAKERS = {
    "scalar": lambda shape: Scalar(1),
    "pointwise": lambda shape: Pointwise(1, shape),
    "dense": Dense,
    "block-circulant": lambda shape: BlockCirculant(shape, 2),
    "convolution": lambda shape: Convolution(1, 5),
}


@pytest.mark.exhaustive(after=3)
@pytest.mark.parametrize("name", MAKERS)
def test_the_mismatch_is_least(task, name, context):
    """R(P) of `losses`, minimised by LBFGS in float64: nothing is below the closed form."""
    given = lesson(task, "mismatch", 2.0, "relative", context())
    operator = MAKERS[name](task.shape).double()
    numbers = best_numbers(operator, given, 1e-13, task).to(torch.float64)
    student_step = 0.7

    def mismatch(values):
        direction = operator.act(given.gradient, values)
        return losses.operator_mismatch(direction, given.point / 1.9, student_step, 1.9)

    reached = mismatch(numbers.view_as(operator.numbers[0]) / task.norm_squared() / student_step)
    leaf = operator.numbers.detach()[0].clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [leaf],
        max_iter=1500,
        history_size=30,
        tolerance_grad=1e-13,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimiser.zero_grad()
        value = 1e3 * mismatch(leaf)
        value.backward()
        return value

    optimiser.step(closure)
    least = mismatch(leaf.detach())
    plain = mismatch(operator.numbers.detach()[0])
    assert reached <= least + 1e-5 * plain
    assert reached < 0.9 * plain


@pytest.mark.covering
@pytest.mark.parametrize(("target", "ridge"), [("truth", 1e-2), ("mismatch", 1e-4), ("truth", 1.0)])
@pytest.mark.parametrize("name", AFFINE)
@pytest.mark.parametrize(
    ("task_name", "shape"), [("sr", (1, 16, 16)), ("cs", (1, 8, 8)), ("mri", (1, 8, 8))]
)
def test_the_spectral_radius_is_that_of_the_identity(
    task_name, shape, name, target, ridge, context
):
    """numpy's eigenvalues of P A^T A: the largest modulus is lambda_max(A^T A)."""
    task = small_task(task_name, shape, dtype=torch.float64, count=20)
    values = {} if name == "scalar" else {"ridge": ridge}
    made = fitted(name, task, context(), target=target, **values)
    p = dense_of(made.preconditioner, task)
    assert radius(task, p) == pytest.approx(task.norm_squared(), rel=0.02)
    assert not any(part.requires_grad for part in made.preconditioner.parameters())
    assert made.preconditioner.copies == 1


def test_normalising_changes_the_size_alone(task):
    """Of an operator with several entries and parameters, too; one without A^T A stays."""
    operator = LowRank(task.shape, 3, copies=2).double()
    operator.left.data.normal_(generator=torch.Generator().manual_seed(0))
    before = dense_of(operator, task)
    normalise(operator, task)
    after = dense_of(operator, task)
    factor = np.trace(after) / np.trace(before)
    np.testing.assert_allclose(after, factor * before, rtol=1e-10, atol=1e-12)
    assert factor > 0
    zero = Pointwise(1, task.shape).double()
    zero.factors.data.zero_()
    normalise(zero, task)
    assert not zero.factors.any()


def test_normalising_a_rotation(from_matrix):
    """Complex eigenvalues of P A^T A: the modulus is what counts."""
    from dataclasses import replace

    task = small_task("deblur", (1, 12, 12), dtype=torch.float64)
    a = np.diag(np.linspace(0.1, 1, 144))
    task = replace(task, operators=replace(task.operators, student=from_matrix(a)))
    rotation = np.eye(144)
    rotation[-2:, -2:] = [[0, -1], [1, 0]]
    operator = Dense(task.shape).double()
    operator.matrix.data.copy_(torch.from_numpy(3.0 * rotation))
    normalise(operator, task)
    values = np.abs(np.linalg.eigvals(dense_of(operator, task) @ a.T @ a)).max()
    assert values == pytest.approx(task.norm_squared(), rel=0.02)


@pytest.mark.covering
@pytest.mark.parametrize("target", ["truth", "mismatch"])
@pytest.mark.parametrize("name", AFFINE)
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_black_images_give_a_finite_operator(name, target, noise, context):
    """Nothing to learn without noise: the identity, nowhere 0 / 0."""
    task = small_task("deblur", (1, 16, 16), dtype=torch.float64, noise=noise)
    task.images.train.pixels.zero_()
    made = fitted(name, task, context(), target=target)
    p = dense_of(made.preconditioner, task)
    assert np.isfinite(p).all()
    if noise == 0 or target == "mismatch":
        np.testing.assert_allclose(p, p[0, 0] * np.eye(256), atol=1e-8)
        assert p[0, 0] == pytest.approx(1, rel=0.02)


def test_hadamard_and_dense_agree_for_single_pixels(context):
    """cs measures rows of the Hadamard matrix: a diagonal P there is as good as it is stable."""
    task = small_task("cs", (1, 8, 8), dtype=torch.float64, count=20)
    given = lesson(task, "truth", task.labels[-1], "relative", context())
    operator = HadamardDiagonal(task.shape).double()
    numbers = best_numbers(operator, given, 1e-10, task)
    basis = operator.down.double() @ given.gradient @ operator.across.double()
    wanted = operator.down.double() @ given.point @ operator.across.double()
    energy = basis.square().sum((0, 1))
    expected = task.norm_squared() * (basis * wanted).sum((0, 1)) / energy
    seen = energy > 1e-6 * energy.max()
    assert 4 < seen.sum() < 64
    torch.testing.assert_close(numbers[seen], expected[seen], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        numbers[energy < 1e-20], torch.ones(int((energy < 1e-20).sum()), dtype=torch.float64)
    )


def test_the_default_ridge_and_start_can_be_searched(task):
    """A scalar has nothing but the solver's; all start from zero unless told otherwise."""
    for name in AFFINE:
        method = registry.get("methods", f"{name}+closed-form")
        found = space(method.parameters, task.solver, task)
        assert "ridge" not in found  # by default the best on validation images
        assert ("target" in found) == ("teacher" in found) == (name != "scalar")
        if name != "scalar":
            assert found["target"].choices == ("mismatch", "truth")
        assert defaults(method.parameters, task.solver, task)["solve.start"] == "zero"
    assert RULE.published(registry.get("operators", "dense"), task)["solve.units"] == "relative"


def test_a_fit_is_deterministic_and_reads_training_images_only(task, context):
    """Twice the same bits, whatever the seed; other validation images change nothing."""
    first = fitted("dense", task, context(0))
    task.images.validation.pixels.zero_()
    second = fitted("dense", task, context(1))
    assert torch.equal(first.preconditioner.matrix, second.preconditioner.matrix)


def test_by_default_the_ridge_is_the_best_on_the_budgets_validation_images(task, context):
    """Each ridge fitted by itself and validated: the one that was taken leads."""
    found = context(validation_images=5)
    made = fitted("dense", task, found)
    images = task.images.validation.first(5)
    quality = {
        ridge: validate(fitted("dense", task, context(), ridge=ridge), task, images)
        for ridge in RIDGES
    }
    assert found.notes["ridge"] == max(quality, key=quality.get)
    assert validate(made, task, images) == pytest.approx(max(quality.values()), abs=1e-6)
    assert len({round(value, 3) for value in quality.values()}) > 1
