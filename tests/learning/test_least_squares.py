"""Conjugate gradients for any linear operator, against closed forms and LBFGS."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import linalg

from dipa_bench.learning.least_squares import Criterion, Lesson, energy, general, minimiser
from dipa_bench.learning.least_squares.dense import Best
from dipa_bench.learning.least_squares.general import best_numbers
from dipa_bench.preconditioners import (
    BlockCirculant,
    Convolution,
    Dense,
    HadamardDiagonal,
    LinearOperator,
    Pointwise,
    Scalar,
)
from dipa_bench.testing import small_task

DTYPES = (torch.float64, torch.float32)
OBJECTIVES = ["value", "distance"]
CASES = [  # where A A^T = I (cs, mri) a plain step leaves nothing of the value to learn
    ("sr", (1, 10, 12), "value"),
    ("sr", (1, 10, 12), "distance"),
    ("deblur", (1, 10, 12), "value"),
    ("deblur", (3, 10, 9), "value"),
    ("deblur", (3, 10, 9), "distance"),
    ("mri", (1, 8, 8), "distance"),
]
TRANSFORMED = [
    ("sr", (1, 16, 16), "value"),
    ("sr", (1, 16, 16), "distance"),
    ("deblur", (1, 16, 16), "value"),
    ("cs", (1, 8, 8), "distance"),
    ("mri", (1, 8, 8), "distance"),
]
RIDGE = 1e-3


def lesson_of(task, seed=0):
    """A lesson at random points near the training images, in one batch."""
    truth, y = task.pixels(task.images.train), task.measure(task.images.train)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(truth.shape, generator=generator, dtype=torch.float64).to(truth.dtype)
    point = truth + 0.3 * noise
    residual = task.student.A(point) - y
    return Lesson(point, task.student.A_adjoint(residual), residual, truth)


def criterion_of(task, objective, lesson, unit=None):
    size = energy([lesson.gradient])
    largest = task.norm_squared()
    return Criterion(task.student, largest, objective, size, unit or largest)


def small(name, shape, **settings):
    options = {"factor": 2} if name == "sr" else {}
    return small_task(name, shape, dtype=torch.float64, options=options, **settings)


def value_of(lesson, criterion, operator, numbers, rho):
    """What is minimised, in units of L: |A(z - G g) - y|^2 L or |L(z - x*) - L G g|^2, and rho."""
    deviation = numbers - operator.numbers.detach()[0]
    direction = operator.act(lesson.gradient, numbers)
    if criterion.objective == "distance":
        left = criterion.largest * (lesson.point - lesson.truth) - direction
        total = left.square().sum()
    else:
        left = lesson.residual - criterion.physics.A(direction) / criterion.largest
        total = criterion.largest * left.abs().square().sum()
    return total + rho * deviation.square().sum()


def rho_of(operator, lesson, ridge):
    """The documented ridge, with its one random direction."""
    start = operator.numbers.detach()[0]
    probe = torch.randn(start.shape, generator=torch.Generator().manual_seed(0)).to(start)
    probe = probe / probe.norm()
    return ridge * operator.act(lesson.gradient, probe).square().sum().item()


def lbfgs(value, start):
    """The minimiser in float64."""
    found = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [found],
        max_iter=3000,
        history_size=50,
        tolerance_grad=1e-11,
        tolerance_change=1e-18,
        line_search_fn="strong_wolfe",
    )

    def closure():
        optimiser.zero_grad()
        now = value(found)
        now.backward()
        return now

    optimiser.step(closure)
    return found.detach()


@pytest.fixture
def patient(monkeypatch):
    """Conjugate gradients that go on to the end."""
    monkeypatch.setattr(general, "MOST", 5000)


OPERATORS = {
    "scalar": lambda shape: Scalar(1),
    "pointwise": lambda shape: Pointwise(1, shape),
    "convolution": lambda shape: Convolution(1, 3),
    "dense": Dense,
    "joint": lambda shape: Dense(shape, joint=True),
    "block-circulant": lambda shape: BlockCirculant(shape, 2),
    "fourier": lambda shape: BlockCirculant(shape, 1),
    "hadamard": HadamardDiagonal,
}


def specialised_ridge(name, lesson, criterion, operator):
    """The ridge of the closed form that is the same rho as that of `RIDGE` in the general one."""
    rho = rho_of(operator, lesson, RIDGE)
    g = lesson.gradient
    if name == "pointwise":
        return rho / g.square().sum(0).mean().item()
    if name == "dense":
        return rho / g.square().sum().item()
    taps = [(i, j) for i in (1, 0, -1) for j in (1, 0, -1)]
    copies = torch.stack([g.roll(shift, (-2, -1)) for shift in taps])
    if criterion.objective == "distance":
        return rho / copies.square().sum().item()
    seen = torch.stack([criterion.physics.A(copy).abs().square().sum() for copy in copies])
    return rho / (seen.sum().item() / criterion.largest)


@pytest.mark.covering
@pytest.mark.parametrize(("task", "shape", "objective"), CASES, ids=str)
@pytest.mark.parametrize("name", ["scalar", "pointwise", "convolution", "dense"])
def test_the_general_way_is_the_closed_form(name, task, shape, objective, patient):
    """The same numbers with the same ridge, converted; a scalar has none."""
    task = small(task, shape)
    lesson = lesson_of(task)
    criterion = criterion_of(task, objective, lesson)
    operator = OPERATORS[name](task.shape).double()
    if name == "scalar":
        ridge, given = 0.0, 0.0
    else:
        ridge, given = specialised_ridge(name, lesson, criterion, operator), RIDGE
    expected = torch.as_tensor(minimiser(operator, ridge, objective, task)([lesson], criterion))
    found = best_numbers([lesson], criterion, operator, given)
    scale = (expected.double() - operator.numbers.detach()[0]).abs().max()
    assert scale > 1e-5
    torch.testing.assert_close(found, expected.double(), rtol=0, atol=1e-5 * scale.item() + 1e-7)


@pytest.mark.exhaustive(after=2)
@pytest.mark.parametrize(
    ("name", "task", "shape", "objective"),
    [
        (name, *case)
        for first, name in enumerate(["block-circulant", "fourier", "hadamard"])
        for case in TRANSFORMED[first::3]
    ],
    ids=str,
)
def test_transform_operators_are_the_minimisers_of_lbfgs(name, task, shape, objective, patient):
    """The same numbers and a vanishing slope, by autograd in float64."""
    task = small(task, shape)
    lesson = lesson_of(task)
    criterion = criterion_of(task, objective, lesson)
    operator = OPERATORS[name](task.shape).double()
    ridge = 100 * RIDGE  # LBFGS takes 10 s at `RIDGE`
    found = best_numbers([lesson], criterion, operator, ridge)
    rho = rho_of(operator, lesson, ridge)

    def value(numbers):
        return value_of(lesson, criterion, operator, numbers, rho)

    start = operator.numbers.detach()[0].clone()
    expected = lbfgs(value, start)
    assert value(found) <= value(expected) * (1 + 1e-9)
    assert value(found) < (1 - 1e-6) * value(start)
    change = (expected - start).abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3 * change)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_hadamard_gains_are_least_squares_in_numpy(objective, patient):
    """lstsq of the system assembled with scipy's matrix, the ridge as further rows."""
    task = small("deblur", (1, 16, 16))
    lesson = lesson_of(task)
    criterion = criterion_of(task, objective, lesson)
    operator = HadamardDiagonal(task.shape).double()
    found = best_numbers([lesson], criterion, operator, 1.0).flatten().numpy()
    w = np.kron(linalg.hadamard(16), linalg.hadamard(16)) / 16
    shown = lesson.gradient.flatten(1).numpy() @ w
    largest = task.norm_squared()
    rho = rho_of(operator, lesson, 1.0)
    if objective == "distance":
        m = np.concatenate([np.diag(row) for row in shown])
        aim = largest * (lesson.point - lesson.truth).flatten(1).numpy() @ w
        b = aim.ravel() - m.sum(1)
    else:
        eye = torch.eye(256, dtype=torch.float64).view(256, 1, 16, 16)
        a = task.student.A(eye).flatten(1).T.numpy() / largest**0.5
        m = np.concatenate([a @ w @ np.diag(row) for row in shown])
        b = largest**0.5 * lesson.residual.flatten(1).numpy().ravel() - m.sum(1)
    m = np.concatenate([m, rho**0.5 * np.eye(256)])
    expected = 1 + np.linalg.lstsq(m, np.concatenate([b, np.zeros(256)]), rcond=None)[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected - 1).max())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_joint_matrix_is_least_squares_over_all_channels(objective, patient):
    """N D S + rho D = T with matrices in numpy: one matrix for all colours."""
    task = small("deblur", (3, 9, 9))
    lesson = lesson_of(task)
    criterion = criterion_of(task, objective, lesson)
    operator = OPERATORS["joint"](task.shape).double()
    d = best_numbers([lesson], criterion, operator, RIDGE).numpy() - np.eye(243)
    g = lesson.gradient.flatten(1).numpy().T
    t = criterion.target(lesson).flatten(1).numpy().T
    eye = torch.eye(243, dtype=torch.float64).view(243, *task.shape)
    normal = criterion.normal(eye).flatten(1).numpy().T
    rho = rho_of(operator, lesson, RIDGE)
    left = normal @ d @ g @ g.T + rho * d
    np.testing.assert_allclose(left, t @ g.T, atol=1e-8 * np.abs(t @ g.T).max())


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", ["block-circulant", "hadamard", "joint"])
def test_batches_add_up(name, objective, patient):
    """Lessons of four and two images are one of six."""
    task = small("deblur", (1, 16, 16))
    whole = lesson_of(task)
    criterion = criterion_of(task, objective, whole)
    operator = OPERATORS[name](task.shape).double()
    fields = (whole.point, whole.gradient, whole.residual, whole.truth)
    parts = [Lesson(*part) for part in zip(*(f.split(4) for f in fields), strict=True)]
    assert [len(part.point) for part in parts] == [4, 2]
    found = [best_numbers(given, criterion, operator, 1.0) for given in ([whole], parts)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)
    assert (found[0] - operator.numbers.detach()[0]).abs().max() > 1e-2


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", ["block-circulant", "hadamard", "joint"])
def test_single_precision_finds_the_same(name, objective):
    """A task in float32 is as good as one in float64; what comes back is float64."""
    task, rough = (small_task("deblur", (1, 16, 16), dtype=d) for d in DTYPES)
    lesson = lesson_of(task)
    casted = [part.float() for part in vars(lesson).values()]
    criterion = criterion_of(task, objective, lesson)
    operator = OPERATORS[name](task.shape)
    fine = best_numbers([lesson], criterion, operator.double(), 1.0)
    rho = rho_of(operator, lesson, 1.0)
    coarse = best_numbers(
        [Lesson(*casted)], criterion_of(rough, objective, Lesson(*casted)), operator.float(), 1.0
    )
    assert coarse.dtype == fine.dtype == torch.float64
    operator = operator.double()
    start = operator.numbers.detach()[0]
    least, reached, before = (
        value_of(lesson, criterion, operator, numbers, rho) for numbers in (fine, coarse, start)
    )
    assert reached - least < 1e-3 * (before - least)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", ["block-circulant", "hadamard", "joint"])
def test_stopping_early_never_raises_the_objective(name, objective, monkeypatch):
    """After any number of iterations the criterion is below the identity's, ever lower."""
    task = small("deblur", (1, 16, 16))
    lesson = lesson_of(task)
    criterion = criterion_of(task, objective, lesson)
    operator = OPERATORS[name](task.shape).double()
    rho = rho_of(operator, lesson, 1e-6)
    reached = [value_of(lesson, criterion, operator, operator.numbers.detach()[0], rho).item()]
    for most in (1, 2, 5, 20, 60):
        monkeypatch.setattr(general, "MOST", most)
        numbers = best_numbers([lesson], criterion, operator, 1e-6)
        reached.append(value_of(lesson, criterion, operator, numbers, rho).item())
    assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(reached))
    assert reached[-1] < 0.99 * reached[0]


@pytest.mark.parametrize("name", ["block-circulant", "hadamard", "joint"])
@pytest.mark.parametrize("unit", [None, 1.0])
def test_nothing_to_learn_gives_the_plain_step(name, unit):
    """Zero gradients: the identity, divided by L for absolute steps; a large ridge: nearly so."""
    task = small("deblur", (1, 16, 16))
    lesson = lesson_of(task)
    zero = torch.zeros_like(lesson.gradient)
    criterion = criterion_of(task, "value", lesson, unit)
    operator = OPERATORS[name](task.shape).double()
    plain = criterion.plain * operator.numbers.detach()[0]
    assert criterion.plain == pytest.approx(1 / task.norm_squared() if unit else 1)
    empty = Lesson(lesson.point, zero, 0 * lesson.residual, lesson.truth)
    assert torch.equal(best_numbers([empty], criterion, operator, 0.1), plain)
    damped = best_numbers([lesson], criterion, operator, 1e9)
    torch.testing.assert_close(damped, plain, rtol=0, atol=1e-6)


def test_the_operator_is_left_alone(patient):
    """Its numbers and their gradients stay as they were."""
    task = small("deblur", (1, 16, 16))
    lesson = lesson_of(task)
    operator = BlockCirculant(task.shape, 2).double()
    before = operator.numbers.detach().clone()
    with torch.no_grad():
        best_numbers([lesson], criterion_of(task, "value", lesson), operator, 0.1)
    assert torch.equal(operator.numbers, before)
    assert operator.numbers.grad is None


def test_each_operator_has_its_algorithm():
    """A stranger's linear operator gets conjugate gradients, a matrix its own equations."""
    task = small("mri", (1, 8, 8))

    class Rows(LinearOperator):
        affine = "factors"

        def __init__(self, shape):
            super().__init__(1, shape)
            self.factors = torch.nn.Parameter(torch.ones(1, shape[1], 1))

        def act(self, gradient, factors):
            return factors * gradient

    lesson = lesson_of(task)
    criterion = criterion_of(task, "distance", lesson)
    operator = Rows(task.shape).double()
    found = minimiser(operator, 1e-12, "distance", task)([lesson], criterion)
    g, aim = lesson.gradient, task.norm_squared() * (lesson.point - lesson.truth)
    expected = (g * aim).sum((0, 1, 3)) / g.square().sum((0, 1, 3))
    torch.testing.assert_close(found.flatten(), expected, rtol=1e-6, atol=1e-6)
    for joint in (False, True):
        made = minimiser(Dense(task.shape, joint=joint), 0.1, "distance", task)
        assert isinstance(made, Best)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("name", ["deblur", "mri"])
def test_a_joint_matrix_by_its_own_equations(name, objective):
    """N D S + ridge trace(S) D = T over all channels, in numpy."""
    shape = (3, 9, 9) if name == "deblur" else (1, 6, 6)
    task = small(name, shape)
    lesson = lesson_of(task)
    criterion = criterion_of(task, objective, lesson)
    n = math.prod(task.shape)
    operator = OPERATORS["joint"](task.shape).double()
    d = minimiser(operator, 1e-2, objective, task)([lesson], criterion).numpy() - np.eye(n)
    g = lesson.gradient.flatten(1).numpy().T
    t = criterion.target(lesson).flatten(1).numpy().T
    eye = torch.eye(n, dtype=torch.float64).view(n, *task.shape)
    normal = criterion.normal(eye).flatten(1).numpy().T
    left = normal @ d @ g @ g.T + 1e-2 * (g**2).sum() * d
    size = np.linalg.norm(g) ** 2
    np.testing.assert_allclose(left, t @ g.T, atol=1e-7 * max(np.abs(t @ g.T).max(), 1e-2 * size))


@pytest.mark.parametrize("name", ["dense", "joint"])
def test_the_same_ridge_pulls_a_matrix_alike(name, patient):
    """For gray images the shared and the joint matrix are one problem: one ridge, one solution."""
    task = small("deblur", (1, 9, 9))
    lesson = lesson_of(task)
    criterion = criterion_of(task, "distance", lesson)
    operator = OPERATORS[name](task.shape).double()
    found = minimiser(operator, 1e-2, "distance", task)([lesson], criterion)
    g = lesson.gradient.flatten(1)
    t = criterion.target(lesson).flatten(1)
    rho = 1e-2 * g.square().sum()
    expected = torch.linalg.solve(g.T @ g + rho * torch.eye(81), g.T @ t).T
    assert math.isfinite(expected.norm())
    torch.testing.assert_close(
        found, torch.eye(81, dtype=torch.float64) + expected, rtol=1e-6, atol=1e-6
    )
