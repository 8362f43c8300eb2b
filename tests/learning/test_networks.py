"""What training a network has of its own: scales of gradients, precision, names, restoring."""

from __future__ import annotations

import re

import pytest
import torch

from dipa_bench import devices, registry
from dipa_bench.errors import Diverged, UserError
from dipa_bench.learning.networks import FLOOR, gradient_scales, prepare
from dipa_bench.learning.unrolling import validate
from dipa_bench.parameters import build, defaults, space
from dipa_bench.preconditioners import Identity, Learned, OperatorSpec
from dipa_bench.preconditioners.networks import SPECS, Network, NetworkParameters, zeroed
from dipa_bench.solvers import SolveParameters
from dipa_bench.testing import small_task

NAMES = [spec.name for spec in SPECS]
CAP = {"operator.max_parameters": 200_000}


def fit(name, task, context, **values):
    method = registry.get("methods", name)
    flat = defaults(method.parameters, task.solver, task) | CAP | values
    return method.fit(task, build(method.parameters, flat), context)


@pytest.mark.parametrize("solver", ["pnp-fista", "red-fista"])
def test_scales_are_those_of_the_run_without_p(context, solver):
    """Root mean squares of A^T (A z_k - y) along a run that is written out here."""
    task = small_task("deblur", iterations=5, solver=solver)
    found = context(train_images=4)
    solve = SolveParameters(strength=0.1, step=0.8, start="zero")
    made = found.reconstructor(task, solve, Identity())
    ours = gradient_scales(made, task, found)
    y, seen = task.measure(task.images.train.first(4)), []
    state = made.solver.start(y, task.student, Identity())
    for _ in range(5):
        g = task.student.A_adjoint(task.student.A(state.point) - y)
        seen.append((g**2).mean() ** 0.5)
        state = made.solver.advance(made.solver.with_gradient(state), Identity())
    torch.testing.assert_close(ours, torch.stack(seen))
    assert ours[0] > 3 * ours[-1]  # they do shrink


def test_a_first_gradient_that_is_rounding_has_a_floor(context):
    """A A^T = I and x_0 = A^T y: divided by rounding, it would be noise of size one."""
    task = small_task("cs", noise=0.0, iterations=4)
    made = context().reconstructor(task, SolveParameters(strength=0.1), Identity())
    scales = gradient_scales(made, task, context())
    assert scales[0] == pytest.approx(FLOOR * scales.max().item())
    assert (scales[1:] > scales[0]).all()


def test_the_fitted_network_knows_its_scales(context):
    """`iteration`: stored with the numbers; the other choices have none."""
    task = small_task("deblur", iterations=3)
    for normalise in ("none", "sample", "iteration"):
        found = context(epochs=1)
        made = fit("ndipa/cnn", task, found, **{"operator.normalise": normalise})
        state = made.preconditioner.state_dict()
        assert ("scales" in state) == (normalise == "iteration")
    plain = found.reconstructor(task, made_solve(task), Identity())
    torch.testing.assert_close(state["scales"], gradient_scales(plain, task, found))
    assert found.notes["precision"] == "full"
    assert found.notes["initial"] == "identity"


def made_solve(task):
    method = registry.get("methods", "ndipa/cnn")
    return build(method.parameters, defaults(method.parameters, task.solver, task)).solve


@pytest.mark.exhaustive(after=3)
@pytest.mark.parametrize("name", NAMES)
def test_ndipa_is_its_cell(name, context):
    """`ndipa/NAME` and NAME+distilled: the same bits; another seed, other ones."""
    task, found = small_task(iterations=2), []
    for method, seed in ((f"ndipa/{name}", 1), (f"{name}+distilled", 1), (f"ndipa/{name}", 2)):
        made = fit(method, task, context(seed, epochs=1, batch_size=3))
        found.append(torch.cat([part.flatten() for part in made.module.state_dict().values()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.exhaustive(after=3)
@pytest.mark.parametrize("name", NAMES)
def test_the_searched_architecture_is_the_fixed_one(name, context):
    """`ndipa` with the architecture chosen, its own parameters below its name."""
    task = small_task(iterations=2)
    fixed = registry.get("methods", f"ndipa/{name}")
    structure = {
        key.removeprefix("operator."): search.choices[0]
        for key, search in space(fixed.parameters, task.solver, task).items()
        if key.startswith("operator.")
    }
    shared = {"embedding", "normalise"}
    own, both = ({}, {})
    for key, value in structure.items():
        (both if key in shared else own)[key] = value
    plain = {f"operator.{key}": value for key, value in structure.items()}
    branch = {f"operator.{name.replace('-', '_')}.{key}": value for key, value in own.items()}
    branch |= {f"operator.{key}": value for key, value in both.items()}
    branch["operator.architecture"] = name
    first = fit(f"ndipa/{name}", task, context(epochs=1, batch_size=3), **plain).module
    second = fit("ndipa", task, context(epochs=1, batch_size=3), **branch).module
    assert type(first) is type(second)
    for key, part in first.state_dict().items():
        assert torch.equal(second.state_dict()[key], part)


@pytest.mark.exhaustive(after=4)
@pytest.mark.parametrize("name", [f"ndipa/{name}" for name in NAMES] + ["ndipa", "ldipa"])
def test_restored_is_fitted(name, context):
    """From its numbers alone, at its own task and at others; the same images bit for bit."""
    task = small_task("sr", iterations=2, solver="pnp-fista")
    values = {"operator.normalise": "iteration"} if name != "ldipa" else {}
    method = registry.get("methods", name)
    flat = defaults(method.parameters, task.solver, task) | (CAP if values else {}) | values
    parameters = build(method.parameters, flat)
    made = method.fit(task, parameters, context(epochs=1, batch_size=3))
    state = {key: part.clone() for key, part in made.module.state_dict().items()}
    back = method.restore(task, parameters, state, context())
    y = task.measure(task.images.validation)
    assert torch.equal(back.run(y, task.student).estimate, made.run(y, task.student).estimate)
    other = small_task("deblur", iterations=5, solver="red-fista")
    there = method.restore(other, parameters, state, context())
    assert there.solver.iterations == 5
    for key, part in state.items():
        assert torch.equal(there.module.state_dict()[key], part)
    assert not any(part.requires_grad for part in there.module.parameters())


def test_numbers_of_another_shape_are_refused(context):
    """One line that says what to give."""
    task, other = small_task(iterations=2), small_task(shape=(1, 20, 20), iterations=2)
    for name in ("ldipa", "ndipa/mlp"):
        method = registry.get("methods", name)
        flat = defaults(method.parameters, task.solver, task) | (CAP if "/" in name else {})
        parameters = build(method.parameters, flat)
        state = method.fit(task, parameters, context(epochs=1)).module.state_dict()
        with pytest.raises(UserError, match="size and channels") as caught:
            method.restore(other, parameters, state, context())
        assert "\n" not in str(caught.value)


def test_a_network_over_the_cap_is_skipped_with_the_cure():
    """The default cap is the dense P; a number is a number."""
    task = small_task(iterations=2)
    method = registry.get("methods", "ndipa/convnext")
    flat = defaults(method.parameters, task.solver, task)
    assert method.unsuitable(task, build(method.parameters, flat)) is None
    for values, said in (
        ({"operator.width": 128, "operator.depth": 5}, r"858,758 numbers .* dense, 65,536: lower"),
        ({"operator.max_parameters": 1000}, r"max_parameters = 1,000"),
    ):
        reason = method.unsuitable(task, build(method.parameters, flat | values))
        assert re.search(said, reason), reason


def test_an_mlp_over_dense_says_so(context):
    """It may be larger than the dense P; the record tells."""
    task = small_task(iterations=2)
    for width, larger in ((16, False), (512, True)):
        found = context(epochs=1)
        values = {"operator.width": width, "operator.max_parameters": "dense"}
        fit("ndipa/mlp", task, found, **values)
        assert found.notes.get("larger_than_dense", False) == larger


def test_mixed_precision_is_for_gpus(monkeypatch, context):
    """Never on a CPU; where the device mixes, the network does and the note says so."""
    task = small_task(iterations=2)
    found = context()
    spec = registry.get("operators", "cnn")
    network = spec.build(task.shape, spec.parameters(), 2)
    made = found.reconstructor(task, SolveParameters(strength=0.1), network)
    prepare(made, task, found)
    assert (network.mixed, found.notes["precision"]) == (False, "full")
    assert not devices.mixes(torch.device("cpu"))
    monkeypatch.setattr(devices, "mixes", lambda device: True)
    prepare(made, task, found)
    assert (network.mixed, found.notes["precision"]) == (True, "bfloat16 networks")


def test_what_is_published_of_networks():
    """Adam and a plateau, no initial P to choose; steps as published."""
    task = small_task()
    method = registry.get("methods", "ndipa/convnext")
    paper = method.published(task)
    assert paper["train.schedule"] == "plateau"
    assert paper["train.optimizer"] == "adam"
    assert paper["solve.units"] == "absolute"
    assert (paper["operator.width"], paper["operator.depth"]) == (128, 5)
    assert paper["operator.normalise"] == "none"
    searched = registry.get("methods", "ndipa").published(task)
    assert searched["operator.architecture"] == "convnext"
    assert searched["operator.convnext.width"] == 128
    assert not {"train.initial", "train.operators", "distill.weight_mismatch"} & set(paper)
    build(method.parameters, defaults(method.parameters, task.solver, task) | paper)


@pytest.mark.exhaustive
def test_training_a_network_gains(context):
    """From the published kind of start, a few epochs of a small network beat the identity."""
    task = small_task("sr", iterations=4, count=24)
    found = context(epochs=15, batch_size=6)
    fit("ndipa/cnn", task, found, **{"train.learning_rate": 2e-3})
    curve = dict(found.series["val/psnr_by_epoch"])
    assert max(curve.values()) > curve[0] + 1


class Sharpened(Network):
    """A stranger's network: one convolution, told nothing."""

    def __init__(self, shape, parameters, copies):
        super().__init__(shape, parameters, copies)
        self.last = zeroed(torch.nn.Conv2d(shape[0], shape[0], 3, padding=1))

    def body(self, scaled, embedded):
        return self.last(scaled)


class Bent(Learned):
    """A stranger's that shares nothing with ours but the interface."""

    linear = False

    def __init__(self, copies):
        super().__init__(copies)
        self.bend = torch.nn.Parameter(torch.zeros(1))

    def forward(self, gradient, state):
        return gradient + self.bend * gradient.tanh()


STRANGERS = {
    "sharpened": OperatorSpec(
        "sharpened",
        "Sharpened",
        "a convolution",
        lambda shape, parameters, copies: Sharpened(shape, parameters, copies),
        parameters=NetworkParameters,
        linear=False,
    ),
    "bent": OperatorSpec(
        "bent", "Bent", "a tanh", lambda shape, parameters, copies: Bent(copies), linear=False
    ),
}


@pytest.mark.parametrize("rule", ["supervised", "imitated", "distilled"])
@pytest.mark.parametrize("name", STRANGERS)
def test_a_strangers_network_is_trained(name, rule, context):
    """Ten lines and a record; no rule with R, no least squares."""
    task = small_task("deblur", iterations=3)
    method = registry.get("rules", rule).method(STRANGERS[name])
    values = defaults(method.parameters, task.solver, task) | {"train.learning_rate": 1e-2}
    found = context(epochs=3, batch_size=3)
    made = method.fit(task, build(method.parameters, values), found)
    assert found.notes["best_epoch"] > 0
    state = made.module.state_dict()
    assert any(part.abs().max() > 0 for key, part in state.items())
    back = method.restore(task, build(method.parameters, values), state, context())
    y = task.measure(task.images.validation)
    assert torch.equal(back.run(y, task.student).estimate, made.run(y, task.student).estimate)
    for refused in (f"{rule}-r", "greedy", "closed-form"):
        with pytest.raises(UserError, match="linear"):
            registry.get("rules", refused).method(STRANGERS[name])


def test_stored_numbers_know_no_cap(context):
    """A network works at sizes where it could not have been trained."""
    task, small = small_task(shape=(1, 32, 32), iterations=2), small_task(iterations=2)
    values = {"operator.width": 64, "operator.depth": 3, "operator.max_parameters": "dense"}
    method = registry.get("methods", "ndipa/convnext")
    flat = defaults(method.parameters, task.solver, task) | values
    parameters = build(method.parameters, flat)
    assert "max_parameters" in method.unsuitable(small, parameters)
    network = registry.get("operators", "convnext").build(task.shape, parameters.operator, 2)
    back = method.restore(small, parameters, network.state_dict(), context())
    y = small.measure(small.images.validation)
    assert back.run(y, small.student).estimate.shape == small.images.validation.pixels.shape


@pytest.mark.exhaustive
def test_trained_in_bfloat16_measured_in_full(monkeypatch, context):
    """On a device that mixes (made up here), what is measured is what is stored and restored."""
    monkeypatch.setattr(devices, "mixes", lambda device: True)
    task = small_task(iterations=2)
    method = registry.get("methods", "ndipa/cnn")
    flat = defaults(method.parameters, task.solver, task) | CAP | {"train.learning_rate": 1e-2}
    parameters = build(method.parameters, flat)
    found = context(epochs=2, batch_size=3)
    made = method.fit(task, parameters, found)
    assert found.notes["precision"] == "bfloat16 networks"
    back = method.restore(task, parameters, made.module.state_dict(), context())
    y = task.measure(task.images.validation)
    assert torch.equal(back.run(y, task.student).estimate, made.run(y, task.student).estimate)
    quality = dict(found.series["val/psnr_by_epoch"])[found.notes["best_epoch"]]
    assert validate(made, task, task.images.validation) == pytest.approx(quality, abs=1e-6)
    assert not made.module.mixed
    spent = []
    for mixes in (True, False):
        monkeypatch.setattr(devices, "mixes", lambda device, mixes=mixes: mixes)
        spent.append(method.fit(task, parameters, context(epochs=2, batch_size=3)).module)
    assert not torch.equal(spent[0].last.weight, spent[1].last.weight)  # training was mixed


def test_a_solver_that_diverges_has_no_scales(context):
    """`Diverged`, not a complaint about numbers."""
    task = small_task("deblur", iterations=400)
    solve = SolveParameters(strength=0.1, step=60.0)
    made = context().reconstructor(task, solve, Identity())
    with pytest.raises(Diverged):
        gradient_scales(made, task, context())
