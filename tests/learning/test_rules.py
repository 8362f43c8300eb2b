"""Cells OPERATOR+RULE: every one fits, its loss is what its name says, strangers' operators too."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from dipa_bench import devices, registry
from dipa_bench.errors import UserError
from dipa_bench.learning.objective import DistillParameters, Mismatch, distillation_loss
from dipa_bench.learning.strategies import GradientParameters
from dipa_bench.learning.teachers import Targets
from dipa_bench.learning.unrolling import Batch
from dipa_bench.parameters import build, defaults, space
from dipa_bench.preconditioners import Dense, LinearOperator, OperatorSpec
from dipa_bench.solvers import SolveParameters
from dipa_bench.testing import small_task

OPERATORS = registry.names("operators")
LINEAR = [name for name in OPERATORS if registry.get("operators", name).linear]
NETWORKS = [name for name in OPERATORS if name not in LINEAR]
TRAINED = ["supervised", "supervised-r", "imitated", "imitated-r", "distilled", "distilled-r"]
CELLS = registry.names("methods", "*+*")
TERMS = {  # target, L_grad, R
    "supervised": ("sup", False, False),
    "supervised-r": ("sup", False, True),
    "imitated": ("imit", False, False),
    "imitated-r": ("imit", False, True),
    "distilled": ("imit", True, False),
    "distilled-r": ("imit", True, True),
}
WITH_R = [rule for rule in TRAINED if TERMS[rule][2]]
CAP = {"operator.max_parameters": 200_000}  # tiny images: the dense P has fewer than a network


def fit(method, task, context, **values):
    flat = defaults(method.parameters, task.solver, task) | values
    return method.fit(task, build(method.parameters, flat), context)


@pytest.mark.covering
@pytest.mark.parametrize("task_name", ["sr", "cs", "mri"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_every_operator_is_trained(operator, task_name, context):
    """One epoch of distilling: finite losses and images, and the better of two epochs is kept."""
    task = small_task(task_name, iterations=3, count=6)
    linear = operator in LINEAR
    method = registry.get("methods", f"{operator}+distilled{'-r' if linear else ''}")
    found = context(epochs=1, batch_size=2)
    values = {"train.learning_rate": 1e-3} | ({"train.initial": "identity"} if linear else CAP)
    flat = defaults(method.parameters, task.solver, task) | values
    assert method.unsuitable(task, build(method.parameters, flat)) is None
    made = fit(method, task, found, **values)
    assert found.notes["epochs"] == 1
    ((_, loss),) = found.series["train/loss"]
    assert math.isfinite(loss)
    (_, before), (_, after) = found.series["val/psnr_by_epoch"]
    assert math.isfinite(after)
    assert found.notes["best_epoch"] == int(after > before)
    y = task.measure(task.images.validation)
    assert made.run(y, task.student).estimate.isfinite().all()
    assert not any(part.requires_grad for part in made.preconditioner.parameters())


@pytest.mark.covering
@pytest.mark.parametrize(
    ("operator", "rule"), [cell.split("+") for cell in CELLS if not cell.endswith("distilled-r")]
)
def test_every_cell_fits(operator, rule, context):
    """One epoch of one batch: a reconstructor of finite images; its own name and rule.

    With its defaults; but the closed form, where training begins with it, for one rule alone.
    """
    task = small_task("sr", iterations=2, count=4)
    method = registry.get("methods", f"{operator}+{rule}")
    assert (method.name, method.operator) == (f"{operator}+{rule}", operator)
    assert method.learned
    assert method.stochastic == method.unrolled == (rule in TRAINED)
    values = dict(CAP) if operator in NETWORKS else {}
    if operator in LINEAR and rule in TRAINED and rule != "supervised":
        values["train.initial"] = "identity"
    made = fit(method, task, context(epochs=1, batch_size=4), **values)
    y = task.measure(task.images.validation)
    assert made.run(y, task.student).estimate.isfinite().all()
    each = rule == "greedy" or operator in NETWORKS
    assert made.preconditioner.copies == (2 if each else 1)


@pytest.mark.parametrize("rule", ["greedy", "closed-form"])
def test_least_squares_needs_operators_linear_in_their_numbers(rule):
    """Those that say so are in the list; others get one line that names another rule."""
    for operator in OPERATORS:
        affine = registry.get("operators", operator).sample((1, 32, 32)).affine
        assert (f"{operator}+{rule}" in CELLS) == (affine is not None)
        if affine is None:
            with pytest.raises(UserError, match=f"{operator}.distilled") as caught:
                registry.get("methods", f"{operator}+{rule}")
            assert "\n" not in str(caught.value)
    trained = {f"{operator}+{rule}" for operator in OPERATORS for rule in TRAINED}
    assert trained - set(CELLS) == {f"{name}+{rule}" for name in NETWORKS for rule in WITH_R}


@pytest.mark.parametrize("rule", WITH_R)
@pytest.mark.parametrize("operator", NETWORKS)
def test_r_is_for_linear_operators(operator, rule):
    """A network gets one line that names the rule without R."""
    with pytest.raises(UserError, match=rf"linear.*use {operator}\+{rule[:-2]}$") as caught:
        registry.get("methods", f"{operator}+{rule}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("operators", ["one", "each"])
def test_ldipa_is_its_cell(operators, context):
    """The same bits as dense+distilled-r from the identity, with the same parameters and seed."""
    task, found = small_task(iterations=3), []
    for name in ("ldipa", "dense+distilled-r"):
        method = registry.get("methods", name)
        values = {"train.operators": operators, "train.learning_rate": 1e-3}
        if name != "ldipa":
            values["train.initial"] = "identity"
        made = fit(method, task, context(3, epochs=2, batch_size=2), **values)
        found.append(made.preconditioner.matrix)
    assert torch.equal(*found)
    assert len(found[0]) == (3 if operators == "each" else 1)
    assert not torch.equal(found[0][0], torch.eye(256))


@pytest.mark.parametrize(
    ("row", "cell"),
    [
        ("scalar", "scalar+greedy"),
        ("pointwise", "pointwise+greedy"),
        ("convolutional", "convolution+greedy"),
        ("full-linear", "dense+greedy"),
    ],
)
@pytest.mark.parametrize("objective", ["value", "distance"])
def test_the_rows_of_ehrhardt_are_their_cells(row, cell, objective, context):
    """The same parameters, defaults and bits."""
    task, found = small_task("deblur", iterations=3), []
    first, second = (registry.get("methods", name) for name in (row, cell))
    assert defaults(first.parameters, "pnp-fista", task) == defaults(
        second.parameters, "pnp-fista", task
    )
    assert space(first.parameters, "pnp-fista", task) == space(second.parameters, "pnp-fista", task)
    for method in (first, second):
        made = fit(method, task, context(), objective=objective)
        found.append(made.preconditioner.numbers)
    assert torch.equal(*found)


@pytest.mark.covering
@pytest.mark.parametrize(
    ("operator", "rule"),
    [cell.split("+") for cell in CELLS if cell.split("+")[1] in TRAINED],
)
def test_a_rules_parameters_are_those_of_its_loss(operator, rule):
    """Weights of terms that are not in its name are 0 and not searched; the others are."""
    task = small_task()
    method = registry.get("methods", f"{operator}+{rule}")
    target, aligned, regularised = TERMS[rule]
    values = defaults(method.parameters, task.solver, task)
    found = space(method.parameters, task.solver, task)
    assert values["distill.target"] == target
    assert values["distill.weight_target"] == 1
    assert "distill.target" not in found
    for name, present in (("weight_gradient", aligned), ("weight_mismatch", regularised)):
        assert (values[f"distill.{name}"] > 0) == present
        assert (f"distill.{name}" in found) == present
    assert ("distill.teacher" in found) == (rule != "supervised")
    assert ("train.initial" in found) == (operator in LINEAR and operator != "scalar")
    assert values["train.schedule"] == ("cosine" if operator in LINEAR else "plateau")
    paper = method.published(task)
    assert ("distill.teacher" in paper) == (rule != "supervised")
    assert paper.get("distill.weight_gradient") == (1.0 if aligned else None)
    made = build(method.parameters, values | paper).distill
    assert (made.weight_gradient > 0, made.weight_mismatch > 0) == (aligned, regularised)


@pytest.mark.parametrize("solver", ["pnp-fista", "red-fista"])
@pytest.mark.parametrize("name", CELLS)
def test_published_points_are_valid(name, solver):
    """They are parameters of the cell within their bounds."""
    task = small_task(solver=solver)
    method = registry.get("methods", name)
    flat = defaults(method.parameters, solver, task) | method.published(task)
    build(method.parameters, flat)
    assert flat["solve.strength"] == task.prior.strength.published


@pytest.mark.parametrize("rule", TRAINED)
def test_a_rules_loss_has_its_terms_alone(rule, context):
    """The value on a batch with a random P: exactly the terms of the name, from `losses`."""
    task = small_task("sr", (1, 12, 12), dtype=torch.float64, iterations=2)
    method = registry.get("methods", f"dense+{rule}")
    values = defaults(method.parameters, task.solver, task)
    distill = build(method.parameters, values).distill
    generator = torch.Generator().manual_seed(0)
    estimates, gradients, student, teacher = (
        torch.randn(6, 1, 12, 12, generator=generator, dtype=torch.float64) for _ in range(4)
    )
    operator = Dense(task.shape)
    made = context().reconstructor(task, SolveParameters(strength=0.1), operator)
    operator.matrix.data += 0.1 * torch.randn(144, 144, generator=generator, dtype=torch.float64)
    target, aligned, regularised = TERMS[rule]
    loss = distillation_loss(
        made,
        Targets(estimates, gradients, 1.3) if rule != "supervised" else None,
        Mismatch(student, teacher, 1.3) if distill.weight_mismatch else None,
        distill,
        GradientParameters(),
        task,
    )
    x, y = task.pixels(task.images.train), task.measure(task.images.train)
    index = torch.tensor([4, 0, 2])
    found = loss(Batch(index, y[index], x[index])).item()
    final = made.run(y[index], task.student).estimate.detach()
    p, physics = operator.matrix.detach()[0], task.student
    expected = ((final - (x if target == "sup" else estimates)[index]) ** 2).mean()
    if aligned:
        g = physics.A_adjoint(physics.A(final) - y[index]).flatten(1) @ p.T
        theirs = gradients[index].flatten(1)
        cosine = torch.nn.functional.cosine_similarity(g, theirs)
        expected = expected + 1e-3 * (1 - cosine).mean()
    if regularised:
        moved = (student[index].flatten(1) @ p.T).view_as(student[index])
        gap = made.solver.step_size * moved - 1.3 * teacher[index]
        expected = expected + 1e-3 * gap.square().mean()
    assert found == pytest.approx(expected.item(), rel=1e-9)


def test_supervised_reads_no_teacher(context):
    """Not from the identity: no teacher is tuned or run. The others do."""
    task = small_task(iterations=2)
    for rule, wanted in (("supervised", False), ("supervised-r", True), ("imitated", True)):
        found = context(epochs=1)
        method = registry.get("methods", f"pointwise+{rule}")
        fit(method, task, found, **{"train.initial": "identity"})
        folder = found.teachers.folder
        assert bool(list(folder.glob("*"))) == wanted, rule
        assert ("teacher.step" in found.notes) == wanted


def test_weights_of_losses_matter(context):
    """Fits of the six rules from one start and seed are six different operators."""
    task, found = small_task(iterations=3), []
    for rule in TRAINED:
        method = registry.get("methods", f"pointwise+{rule}")
        values = {"train.initial": "identity", "train.learning_rate": 1e-3}
        for name in ("weight_gradient", "weight_mismatch"):
            if defaults(method.parameters, task.solver, task)[f"distill.{name}"]:
                values[f"distill.{name}"] = 0.3
        made = fit(method, task, context(epochs=2, batch_size=3), **values)
        found.append(made.preconditioner.factors)
    for i, first in enumerate(found):
        assert not any(torch.equal(first, other) for other in found[:i])


class Rows(LinearOperator):
    """A stranger's: one factor for each row of the image."""

    affine = "factors"

    def __init__(self, shape, copies):
        super().__init__(copies, shape)
        self.factors = nn.Parameter(torch.ones(copies, shape[1], 1))

    def act(self, gradient, factors):
        return factors * gradient


ROWS = OperatorSpec("rows", "Rows", "one factor for each row", lambda s, p, copies: Rows(s, copies))


@pytest.mark.parametrize("rule", ["greedy", "closed-form", *TRAINED])
def test_a_strangers_operator_gets_every_rule(rule, context):
    """Ten lines and a record; fitted, it differs from the identity and is finite."""
    task = small_task("deblur", iterations=3, noise=0.01)
    method = registry.get("rules", rule).method(ROWS)
    assert method.name == f"rows+{rule}"
    assert method.unsuitable(task) is None
    made = fit(method, task, context(epochs=2, batch_size=2))
    numbers = made.preconditioner.factors
    assert numbers.shape == (3 if rule == "greedy" else 1, 16, 1)
    assert numbers.isfinite().all()
    assert not torch.equal(numbers, torch.ones_like(numbers))


class Squares(LinearOperator):
    """A stranger's that is not linear in its numbers and has no projection."""

    def __init__(self, shape, copies):
        super().__init__(copies, shape)
        self.roots = nn.Parameter(torch.ones(copies, *shape))

    def act(self, gradient, roots):
        return roots**2 * gradient

    def scale(self, factor):
        self.roots.data.mul_(factor**0.5)


SQUARES = OperatorSpec("squares", "Squares", "r^2", lambda s, p, copies: Squares(s, copies))


def test_an_operator_without_projection_is_told_to_start_elsewhere(context):
    """Defaults that need one: a single line that names what works; identity and scaled do."""
    task = small_task(iterations=2)
    method = registry.get("rules", "distilled").method(SQUARES)
    for initial in ("identity", "scaled"):
        fit(method, task, context(epochs=1), **{"train.initial": initial})
    with pytest.raises(UserError, match=r"train\.initial=.*identity.*scaled"):
        fit(method, task, context(epochs=1), **{"train.initial": "lmmse"})


def test_structure_is_a_parameter_of_the_cell(context):
    """`operator.` has its defaults, bounds and ranges, and reaches the operator."""
    task = small_task(iterations=2)
    method = registry.get("methods", "low-rank+supervised")
    assert defaults(method.parameters, task.solver, task)["operator.rank"] == 32
    assert space(method.parameters, task.solver, task)["operator.rank"].choices == (8, 32, 128)
    made = fit(method, task, context(epochs=1), **{"operator.rank": 5, "train.initial": "identity"})
    assert made.preconditioner.left.shape == (1, 256, 5)
    with pytest.raises(UserError, match=r"operator\.rank = 0"):
        build(method.parameters, {"operator.rank": 0})
    plain = registry.get("methods", "hadamard+supervised").parameters
    assert not [path for path in defaults(plain, task.solver, task) if path.startswith("operator")]


def test_what_does_not_fit_is_skipped_with_a_reason(context, monkeypatch):
    """Shapes, numbers and memory: one line each, and a fit refuses with the same."""
    odd = small_task("deblur", (1, 10, 12))
    for name, reason in (
        ("hadamard+greedy", "powers of two, not 10 x 12"),
        ("block-circulant+distilled", "block = 4 does not divide 10 x 12"),
    ):
        method = registry.get("methods", name)
        assert reason in method.unsuitable(odd)
        method.narrow(odd, space(method.parameters, odd.solver, odd))  # skipped, not failed
        with pytest.raises(UserError, match=reason):
            fit(method, odd, context())
    task = small_task()
    dense = registry.get("methods", "dense+greedy")
    assert dense.unsuitable(task) is None
    monkeypatch.setattr(devices, "available_memory", lambda device: 256**2 * 4 * 4)
    assert "GiB" in dense.unsuitable(task)
    assert registry.get("methods", "hadamard+greedy").unsuitable(task) is None


def test_more_numbers_than_least_squares_can_fit():
    """A matrix of 72 x 64 pixels is beyond the limit of greedy and closed form alone."""
    large = small_task("deblur", (1, 72, 64), count=1)
    for rule in ("greedy", "closed-form"):
        reason = registry.get("methods", f"dense+{rule}").unsuitable(large)
        assert "at most 16,777,216 numbers" in reason
        assert registry.get("methods", f"pointwise+{rule}").unsuitable(large) is None


def test_r_is_the_mean_over_the_operators(context):
    """One operator for each iteration: R of each, averaged, by numpy."""
    task = small_task("sr", (1, 12, 12), dtype=torch.float64, iterations=3)
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 6, 1, 12, 12, generator=generator, dtype=torch.float64)
    operator = Dense(task.shape, copies=3)
    made = context().reconstructor(task, SolveParameters(strength=0.1), operator)
    operator.matrix.data += torch.randn(3, 144, 144, generator=generator, dtype=torch.float64)
    parameters = DistillParameters(
        target="sup", weight_gradient=0.0, weight_target=0.0, weight_mismatch=0.7
    )
    loss = distillation_loss(
        made, None, Mismatch(student, teacher, 1.3), parameters, GradientParameters(), task
    )
    x, y = task.pixels(task.images.train), task.measure(task.images.train)
    index = torch.tensor([1, 5])
    found = loss(Batch(index, y[index], x[index])).item()
    u, v = (part[index].flatten(1).numpy() for part in (student, teacher))
    gaps = [made.solver.step_size * u @ p.T - 1.3 * v for p in operator.matrix.detach().numpy()]
    assert found == pytest.approx(0.7 * np.mean([(gap**2).mean() for gap in gaps]), rel=1e-10)


@pytest.mark.parametrize(
    "method, values, read",
    [
        ("hessian", {}, "nothing"),
        ("scalar", {"objective": "value"}, "measurements"),
        ("pointwise", {"objective": "distance"}, "ground truth"),
        ("dense+closed-form", {}, "ground truth"),
        ("dense+closed-form", {"target": "mismatch"}, "teacher"),
        ("dense+supervised", {}, "ground truth"),
        ("dense+supervised-r", {}, "ground truth and teacher"),
        ("dense+imitated", {}, "ground truth and teacher"),
        ("dense+imitated", {"train.initial": "identity"}, "teacher"),
        ("dense+distilled", {"train.initial": "greedy"}, "measurements and teacher"),
        ("ldipa", {}, "teacher"),
        ("ldipa-from-closed-form", {}, "ground truth and teacher"),
        ("ndipa/cnn", {}, "teacher"),
        ("lmmse", {}, "ground truth"),
        ("unrolled-identity", {}, "ground truth"),
        ("e2e-varnet", {}, "ground truth"),
    ],
)
def test_methods_say_what_they_learn_from(method: str, values: dict, read: str) -> None:
    found = registry.get("methods", method)
    assert found.learns_from(build(found.parameters, values)) == read
