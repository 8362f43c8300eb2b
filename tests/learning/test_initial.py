"""Where training starts: each choice against what it says."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dipa_bench import registry
from dipa_bench.errors import UserError
from dipa_bench.learning import initial as module
from dipa_bench.learning import losses
from dipa_bench.learning.closed_form import RIDGES, best_numbers, lesson, normalise
from dipa_bench.learning.initial import FREE, initialise
from dipa_bench.metrics import psnr
from dipa_bench.parameters import build, defaults, space
from dipa_bench.preconditioners import (
    Dense,
    Kronecker,
    LowRank,
    Pointwise,
    Scalar,
    State,
    Symmetric,
)
from dipa_bench.solvers import SolveParameters
from dipa_bench.testing import small_task

K = 3
SOLVE = SolveParameters(step=0.8, strength=0.1, start="zero")
OPERATORS = {
    "scalar": lambda task, copies: Scalar(copies),
    "pointwise": lambda task, copies: Pointwise(copies, task.shape),
    "dense": lambda task, copies: Dense(task.shape, copies=copies),
    "symmetric": lambda task, copies: Symmetric(task.shape, copies),
    "low-rank": lambda task, copies: LowRank(task.shape, 4, copies),
    "kronecker": lambda task, copies: Kronecker(task.shape, 2, copies),
}


@pytest.fixture
def task():
    return small_task("sr", (1, 12, 12), dtype=torch.float64, iterations=K, count=12)


def start(task, name, initial, context, copies=1, solve=SOLVE):
    """The reconstructor after `initialise`."""

    def make(count):
        return OPERATORS[name](task, count).to(task.device, task.dtype)

    reconstructor = context.reconstructor(task, solve, make(copies))
    initialise(reconstructor, make, initial, solve, 2.0, task, context)
    return reconstructor


def dense_of(operator, task, iteration=0):
    point = torch.zeros(1, *task.shape, dtype=torch.float64)
    return operator.dense(task.shape, State(iteration, point, point, point, None)).numpy()


def mismatch_of(operator, task, context, step):
    """R(P) of the first training images, from its definition."""
    x = task.pixels(task.images.train)
    student, teacher = (
        physics.A_adjoint(physics.A(x)) for physics in (task.student, task.teacher(2.0))
    )
    theirs = context.teachers.tuned(task, 2.0).step / task.norm_squared(2.0)
    state = State(0, x, x, x, task.student)
    return losses.operator_mismatch(operator(student, state), teacher, step, theirs).item()


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("copies", [1, K])
def test_identity_is_as_it_is_made(task, name, copies, context):
    """No number changes."""
    made = start(task, name, "identity", context(), copies).preconditioner
    fresh = OPERATORS[name](task, copies).double()
    for own, other in zip(made.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(own, other)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("step", [0.4, 1.3])
def test_scaled_is_the_best_multiple(task, name, step, context):
    """s I, and no other s has less R with the student's step in it."""
    found, solve = context(), SOLVE.model_copy(update={"step": step})
    made = start(task, name, "scaled", found, K, solve)
    p = dense_of(made.preconditioner, task, 1)
    s = p[0, 0]
    np.testing.assert_allclose(p, s * np.eye(144), atol=1e-12)
    assert abs(s - 1) > 1e-2
    reached = mismatch_of(made.preconditioner, task, found, made.solver.step_size)
    for factor in (*np.linspace(0.1, 3, 30), 0.999, 1.001):
        other = Scalar(1).double()
        other.scale(s * factor)
        value = mismatch_of(other, task, found, made.solver.step_size)
        assert value >= reached * (1 - 1e-12), factor


@pytest.mark.covering
@pytest.mark.parametrize("name", ["pointwise", "dense"])
@pytest.mark.parametrize("initial", ["mismatch", "lmmse"])
@pytest.mark.parametrize("copies", [1, K])
def test_the_ridge_is_the_best_on_validation_images(task, name, initial, copies, context):
    """All six rebuilt and run: the numbers are those of the best, the same in every entry."""
    found = context(validation_images=4)
    made = start(task, name, initial, found, copies)
    target = {"lmmse": "truth"}.get(initial, initial)
    given = lesson(task, target, 2.0, "relative", context())
    validation = task.images.validation.first(4)
    y, x = task.measure(validation), task.pixels(validation)
    quality, numbers = {}, {}
    for ridge in RIDGES:
        operator = OPERATORS[name](task, 1).double().requires_grad_(False)
        operator.numbers.copy_(best_numbers(operator, given, ridge, task))
        normalise(operator, task)
        estimate = made.solver.run(y, task.student, operator).estimate
        quality[ridge], numbers[ridge] = psnr(estimate, x).mean().item(), operator.numbers
    best = max(quality, key=quality.get)
    assert max(quality.values()) > min(quality.values())
    assert found.notes["ridge"] == best
    assert len(made.preconditioner.numbers) == copies
    torch.testing.assert_close(
        made.preconditioner.numbers.detach(), numbers[best].expand(copies, *numbers[best].shape[1:])
    )


@pytest.mark.parametrize("name", ["symmetric", "low-rank", "kronecker"])
def test_others_are_near_the_dense_solution(task, name, context):
    """The approximation of the best dense one of the chosen ridge, up to its size."""
    found = context()
    made = start(task, name, "lmmse", found, K).preconditioner
    given = lesson(task, "truth", 2.0, "relative", context())
    dense = best_numbers(Dense(task.shape).double(), given, found.notes["ridge"], task)
    expected = OPERATORS[name](task, 1).double()
    expected.approximate(dense)
    normalise(expected, task)
    for k in range(K):
        np.testing.assert_allclose(
            dense_of(made, task, k), dense_of(expected, task), rtol=1e-6, atol=1e-8
        )


@pytest.mark.parametrize("name", ["scalar", "pointwise", "dense"])
@pytest.mark.parametrize("units", ["relative", "absolute"])
def test_greedy_is_what_the_greedy_rule_fits(task, name, units, context):
    """Its first operator for one P, all of them for one in each iteration."""
    step = 0.8 if units == "relative" else 0.8 / task.norm_squared()
    solve = SOLVE.model_copy(update={"units": units, "step": step})
    cell = registry.get("methods", f"{name}+greedy")
    flat = {f"solve.{key}": value for key, value in solve.model_dump().items()}
    flat.pop("solve.weight")
    expected = cell.fit(task, build(cell.parameters, flat), context()).preconditioner.numbers
    assert not torch.equal(expected[0], expected[1])
    each = start(task, name, "greedy", context(), K, solve).preconditioner.numbers
    assert torch.equal(each, expected)
    one = start(task, name, "greedy", context(), 1, solve).preconditioner.numbers
    assert torch.equal(one, expected[:1])


@pytest.mark.parametrize("name", ["symmetric", "low-rank", "kronecker"])
def test_greedy_is_approximated_entry_by_entry(task, name, context):
    """Each iteration's operator is near that iteration's dense one."""
    cell = registry.get("methods", "dense+greedy")
    flat = {"solve.step": 0.8, "solve.strength": 0.1, "solve.start": "zero"}
    dense = cell.fit(task, build(cell.parameters, flat), context()).preconditioner.numbers
    made = start(task, name, "greedy", context(), K).preconditioner
    for k in range(K):
        expected = OPERATORS[name](task, 1).double()
        expected.approximate(dense[k])
        np.testing.assert_allclose(
            dense_of(made, task, k), dense_of(expected, task), rtol=1e-8, atol=1e-10
        )


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("initial", ["mismatch", "lmmse", "greedy"])
def test_too_large_images_are_refused(task, name, initial, context, monkeypatch):
    """One line with the choice, the sizes and what works; a scalar never is too large."""
    monkeypatch.setattr(module, "LARGEST", 100)
    if name == "scalar":
        start(task, name, initial, context())
        return
    with pytest.raises(UserError, match=f"train.initial={initial}.*12 x 12") as caught:
        start(task, name, initial, context())
    assert "\n" not in str(caught.value)
    assert all(choice in str(caught.value) for choice in FREE)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("initial", FREE)
def test_free_choices_are_never_refused(task, name, initial, context, monkeypatch):
    """At any size."""
    monkeypatch.setattr(module, "LARGEST", 0)
    start(task, name, initial, context())


@pytest.mark.parametrize("initial", ["mismatch", "lmmse"])
def test_black_images(initial, context):
    """Nothing to learn: finite, no error."""
    task = small_task("sr", (1, 12, 12), dtype=torch.float64, iterations=K, noise=0.0)
    task.images.train.pixels.zero_()
    made = start(task, "kronecker", initial, context()).preconditioner
    assert all(part.isfinite().all() for part in made.parameters())


def test_scaled_on_black_images(context):
    """No multiple is better than another: finite and positive."""
    task = small_task("sr", (1, 12, 12), dtype=torch.float64, iterations=K, noise=0.0)
    task.images.train.pixels.zero_()
    p = dense_of(start(task, "dense", "scaled", context()).preconditioner, task)
    assert np.isfinite(p).all()
    assert p[0, 0] > 0


def space_of(name, task):
    method = registry.get("methods", name)
    return method.narrow(task, space(method.parameters, task.solver, task)), method


CHOICES = {"supervised": ("identity", "lmmse"), "distilled-r": ("identity", "mismatch", "lmmse")}


@pytest.mark.parametrize("rule", CHOICES)
def test_the_search_space_has_what_is_feasible(rule):
    """Without a teacher none of R; beyond 64 x 64 pixels no dense solution."""
    small = small_task("deblur", (1, 12, 12))
    for name in ("dense", "symmetric", "pointwise"):
        found, method = space_of(f"{name}+{rule}", small)
        assert found["train.initial"].choices == CHOICES[rule]
        assert defaults(method.parameters, "pnp-fista", small)["train.initial"] == "lmmse"
    large = small_task("deblur", (1, 72, 64), count=1)
    for name in ("dense", "symmetric", "kronecker", "low-rank"):
        found, _ = space_of(f"{name}+{rule}", large)
        assert found["train.initial"].choices == (FREE if rule == "distilled-r" else FREE[:1])


@pytest.mark.parametrize("rule", CHOICES)
def test_operators_with_few_numbers_keep_every_choice(rule):
    """A diagonal of 72 x 64 factors is one least-squares problem like any other."""
    large = small_task("deblur", (1, 72, 64), count=1)
    for name in ("pointwise", "convolution"):
        found, _ = space_of(f"{name}+{rule}", large)
        assert found["train.initial"].choices == CHOICES[rule]


def test_a_scalars_start_is_not_searched_at_any_size():
    """It is frozen: all its starts differ in size alone."""
    for shape in ((1, 12, 12), (1, 72, 64)):
        found, method = space_of("scalar+distilled-r", small_task("deblur", shape, count=1))
        assert "train.initial" not in found
        assert defaults(method.parameters, "pnp-fista", small_task())["train.initial"] == "identity"


def test_scaled_follows_the_teacher_of_the_loss(task, context):
    """Absolute steps: R of the loss has the published teacher's step, so `scaled` has it too."""
    found = context()
    step = 0.4
    solve = SOLVE.model_copy(update={"units": "absolute", "step": step})
    made = start(task, "scalar", "scaled", found, 1, solve)
    x = task.pixels(task.images.train)
    student, teacher = (
        physics.A_adjoint(physics.A(x)) for physics in (task.student, task.teacher(2.0))
    )
    theirs = task.spec.published.teacher
    expected = theirs / step * (student * teacher).sum() / student.square().sum()
    assert made.preconditioner.steps.item() == pytest.approx(expected.item(), rel=1e-6)


def test_initialising_is_deterministic(task, context):
    """The same bits for other seeds: nothing is drawn from them."""
    found = [start(task, "kronecker", "lmmse", context(seed)).preconditioner for seed in (0, 1)]
    for own, other in zip(*(made.parameters() for made in found), strict=True):
        assert torch.equal(own, other)


def test_red_fista_starts_as_well(context):
    """The validation runs use the solver of the task."""
    task = replace(
        small_task("sr", (1, 12, 12), dtype=torch.float64, iterations=K), solver="red-fista"
    )
    found = context()
    start(task, "dense", "lmmse", found)
    assert found.notes["ridge"] in RIDGES
