"""Gradients through the unrolled iteration by every strategy, against loops written by hand."""

import itertools

import numpy as np
import pytest
import torch

from dipa_bench.errors import UserError
from dipa_bench.learning.strategies import GradientParameters, describe, unroll
from dipa_bench.parameters import build, space
from dipa_bench.preconditioners import Dense, Preconditioner
from dipa_bench.priors.base import SIGMA, Prior
from dipa_bench.solvers import REDFISTA, PnPFISTA
from dipa_bench.testing.problems import small_task

SIDE, N, H = 12, 144, 1e-5
STEP, SIGMA_USED, WEIGHT = 4.0, 0.1, 0.2
STRATEGIES = ("full", "checkpointed", "truncated", "one-step")
KINDS, STARTS = ("pnp", "red"), ("adjoint", "preconditioned")
MOMENTA = {
    "textbook": lambda k: k / (k + 4),
    "published": lambda k: (k + 2) / (k + 3),
    "none": lambda k: 0.0,
}
VARIANTS = list(itertools.product(KINDS, STARTS, MOMENTA))


@pytest.fixture(scope="module")
def task():
    return small_task(shape=(1, SIDE, SIDE), dtype=torch.float64, count=3)


@pytest.fixture(scope="module")
def matrix():
    """A P that is neither the identity nor symmetric."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(N, N, generator=generator, dtype=torch.float64)
    return torch.eye(N, dtype=torch.float64) + 0.05 * noise


@pytest.fixture(scope="module")
def by_hand(task, dense_sr, smoother):
    """The algorithms with matrices: (P, variant, K, cut) -> x_K and directions, as B x n rows.

    At the start of iteration `cut` x and z become constants; 0 cuts nothing.
    """
    a = torch.from_numpy(dense_sr(SIDE, SIDE, 4))
    w = torch.from_numpy(smoother(SIDE, SIDE, SIGMA_USED))
    y = task.measure(task.images.train).flatten(1)

    def iterate(p, variant, total, cut=0):
        kind, start, momentum = variant
        x = y @ a
        if start == "preconditioned":
            x = STEP * x @ p.T
        z, directions = x, []
        for k in range(total):
            if k == cut and cut:
                x, z = x.detach(), z.detach()
            direction = (z @ a.T - y) @ a @ p.T
            directions.append(direction)
            if kind == "pnp":
                new = (z - STEP * direction) @ w.T
            else:
                new = z - STEP * (direction + WEIGHT * (z - z @ w.T))
            z, x = new + MOMENTA[momentum](k) * (new - x), new
        return x, directions

    return iterate


def solver_of(task, variant, total, prior=None):
    kind, start, momentum = variant
    options = {"step": STEP, "strength": SIGMA_USED, "iterations": total}
    options |= {"start": start, "momentum": momentum}
    if kind == "red":
        return REDFISTA(prior or task.prior, weight=WEIGHT, **options)
    return PnPFISTA(prior or task.prior, **options)


def dense(matrix):
    operator = Dense((1, SIDE, SIDE)).double()
    with torch.no_grad():
        operator.matrix.copy_(matrix)
    return operator


def loss_of(estimate, directions, iterations, truth):
    """A number that depends on x_K and, with a weight of its own, on every direction."""
    total = (estimate.flatten(1) - truth).square().mean() + estimate.sin().mean()
    for k, direction in zip(iterations, directions, strict=True):
        total = total + 0.1 * (k + 1) * direction.square().mean()
    return total


def gradients(task, operator, variant, total, parameters, prior=None):
    """d loss / d parameters of the operator, one flat vector."""
    solver = solver_of(task, variant, total, prior)
    measured = task.measure(task.images.train)
    truth = task.pixels(task.images.train).flatten(1)
    made = unroll(solver, operator, measured, task.student, parameters)
    loss = loss_of(made.estimate, made.directions, made.iterations, truth)
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, operator.parameters())])


def expected(task, by_hand, matrix, variant, total, cut):
    """The same from the loop by hand, with its directions from `cut` on."""
    p = matrix.clone().requires_grad_()
    estimate, directions = by_hand(p, variant, total, cut)
    truth = task.pixels(task.images.train).flatten(1)
    loss = loss_of(estimate, directions[cut:], range(cut, total), truth)
    return torch.autograd.grad(loss, p)[0].flatten()


@pytest.mark.covering
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
def test_the_forward_result_is_the_solvers(task, matrix, variant, strategy):
    """Bit for bit, with and without gradients."""
    solver, operator = solver_of(task, variant, 7), dense(matrix)
    measured = task.measure(task.images.train)
    parameters = GradientParameters(strategy=strategy, window=3)
    run = solver.run(measured, task.student, operator).estimate
    assert torch.equal(unroll(solver, operator, measured, task.student, parameters).estimate, run)
    with torch.no_grad():
        plain = unroll(solver, operator, measured, task.student, parameters)
    assert torch.equal(plain.estimate, run)
    assert not plain.estimate.requires_grad


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_forward_result_through_a_network(strategy):
    """In float32 with the shipped denoiser, whose convolutions might differ without gradients."""
    from dipa_bench.priors.shipped import SPEC

    task = small_task(shape=(1, 32, 32))
    solver = PnPFISTA(SPEC.build(), step=1.0, strength=0.05, iterations=6)
    operator, measured = Dense(task.shape), task.measure(task.images.train)
    parameters = GradientParameters(strategy=strategy, window=2)
    run = solver.run(measured, task.student, operator).estimate
    assert torch.equal(unroll(solver, operator, measured, task.student, parameters).estimate, run)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start", STARTS)
def test_full_against_finite_differences(task, matrix, kind, start):
    """Along random directions and single entries of P."""
    variant = (kind, start, "textbook")
    gradient = gradients(task, dense(matrix), variant, 5, GradientParameters()).view(N, N)
    solver, measured = solver_of(task, variant, 5), task.measure(task.images.train)
    truth = task.pixels(task.images.train).flatten(1)

    @torch.no_grad()
    def value(p):
        made = unroll(solver, dense(p), measured, task.student, GradientParameters())
        return loss_of(made.estimate, made.directions, made.iterations, truth)

    generator = torch.Generator().manual_seed(1)
    ways = [torch.randn(N, N, generator=generator, dtype=torch.float64) for _ in range(3)]
    for place in ((0, 0), (17, 90), (143, 5)):
        ways.append(torch.zeros(N, N, dtype=torch.float64))
        ways[-1][place] = 1
    for way in ways:
        numeric = (value(matrix + H * way) - value(matrix - H * way)) / (2 * H)
        torch.testing.assert_close((gradient * way).sum(), numeric, rtol=1e-5, atol=1e-9)
    assert gradient.abs().max() > 1e-4


@pytest.mark.covering
@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
@pytest.mark.parametrize(
    ("strategy", "window", "cut"),
    [
        ("full", 3, 0),
        ("checkpointed", 3, 0),
        ("truncated", 1, 6),
        ("truncated", 3, 4),
        ("truncated", 6, 1),
        ("truncated", 7, 0),
        ("truncated", 30, 0),
        ("one-step", 3, 6),
    ],
)
def test_gradients_of_the_loop_by_hand(task, by_hand, matrix, variant, strategy, window, cut):
    """K = 7: what the strategy gives is what detaching x and z before iteration `cut` gives."""
    parameters = GradientParameters(strategy=strategy, window=window)
    found = gradients(task, dense(matrix), variant, 7, parameters)
    exact = expected(task, by_hand, matrix, variant, 7, cut)
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-11)
    assert exact.abs().max() > 1e-4


@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
def test_every_cut_is_another_gradient(task, matrix, variant):
    """Otherwise the comparisons above would tell nothing; the longest window is the full one."""
    found = [
        gradients(task, dense(matrix), variant, 5, GradientParameters(strategy=name, window=window))
        for name, window in (("one-step", 5), *(("truncated", m) for m in range(1, 6)), ("full", 5))
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[-1], found[-2])
    for one, other in itertools.pairwise(found[1:-1]):
        assert (one - other).norm() > 1e-3 * other.norm()


@pytest.mark.parametrize("total", [1, 2, 3, 7, 16, 17])
def test_checkpointed_is_full(task, matrix, total):
    """Whether or not the segments divide K, and with a prior that is not linear."""
    for kind, start in itertools.product(KINDS, STARTS):
        exact, found = (
            gradients(
                task,
                dense(matrix),
                (kind, start, "textbook"),
                total,
                GradientParameters(strategy=strategy),
                prior=wide_prior(),
            )
            for strategy in ("full", "checkpointed")
        )
        torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("strategy", "first"), [("full", 0), ("checkpointed", 0), ("truncated", 4), ("one-step", 6)]
)
@pytest.mark.parametrize("kind", KINDS)
def test_directions_are_those_that_were_made(task, by_hand, matrix, kind, strategy, first):
    """P (A^T (A z_k - y)) at the z_k of the loop by hand, for the iterations that are named."""
    variant = (kind, "adjoint", "textbook")
    made = unroll(
        solver_of(task, variant, 7),
        dense(matrix),
        task.measure(task.images.train),
        task.student,
        GradientParameters(strategy=strategy, window=3),
    )
    _, directions = by_hand(matrix, variant, 7)
    assert made.iterations == range(first, 7)
    assert len(made.directions) == 7 - first
    for direction, exact in zip(made.directions, directions[first:], strict=True):
        assert direction.requires_grad
        torch.testing.assert_close(direction.flatten(1), exact, rtol=1e-10, atol=1e-12)


class Counted(Dense):
    """A dense P that counts how often it is asked."""

    calls = 0

    def forward(self, gradient, state):
        self.calls += 1
        return super().forward(gradient, state)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_iterations_are_computed_as_often_as_they_must(task, strategy):
    """16 times ahead, and by checkpointing once more in `backward`."""
    operator = Counted((1, SIDE, SIDE)).double()
    solver = solver_of(task, ("pnp", "adjoint", "textbook"), 16)
    measured = task.measure(task.images.train)
    parameters = GradientParameters(strategy=strategy)
    made = unroll(solver, operator, measured, task.student, parameters)
    assert operator.calls == 16
    made.estimate.square().mean().backward()
    assert operator.calls == (32 if strategy == "checkpointed" else 16)


def wide_prior():
    """A denoiser that keeps eight hidden images for its gradients, as networks do."""
    generator = torch.Generator().manual_seed(2)
    kernel = 0.2 * torch.randn(8, 1, 3, 3, generator=generator, dtype=torch.float64)

    def denoise(noisy, sigma):
        hidden = torch.tanh(torch.nn.functional.conv2d(noisy, kernel, padding=1))
        return noisy - sigma * torch.nn.functional.conv_transpose2d(hidden, kernel, padding=1)

    return Prior("wide", SIGMA, denoise)


def saved_bytes(task, matrix, strategy):
    """Bytes that the graph of 16 iterations holds on to, P itself not counted."""
    operator, held = dense(matrix), {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() != operator.matrix.untyped_storage().data_ptr():
            held[storage.data_ptr()] = tensor, storage.nbytes()
        return tensor

    solver = solver_of(task, ("pnp", "adjoint", "textbook"), 16, wide_prior())
    measured = task.measure(task.images.train)
    parameters = GradientParameters(strategy=strategy, window=4)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        made = unroll(solver, operator, measured, task.student, parameters)
    assert made.estimate.requires_grad
    return sum(size for _, size in held.values())


def test_memory(task, matrix):
    """Checkpointing keeps four states, of two to five images each, instead of 16 x 8 images."""
    bytes_of = {strategy: saved_bytes(task, matrix, strategy) for strategy in STRATEGIES}
    image = 3 * N * 8
    assert bytes_of["full"] > 16 * 8 * image
    assert 0 < bytes_of["checkpointed"] <= 4 * 5 * image
    assert bytes_of["truncated"] == pytest.approx(bytes_of["full"] / 4, rel=0.1)
    assert bytes_of["one-step"] == pytest.approx(bytes_of["full"] / 16, rel=0.1)


class Leaning(Preconditioner):
    """g -> M g + c (mean of earlier directions): a memory with gradients and a plain number."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        noise = torch.randn(N, N, generator=generator, dtype=torch.float64)
        self.matrix = torch.nn.Parameter(torch.eye(N, dtype=torch.float64) + 0.05 * noise)
        self.lean = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, gradient, state):
        direction = (gradient.flatten(1) @ self.matrix.T).view_as(gradient)
        if state.memory is None:
            return direction
        return direction + self.lean * state.memory["sum"] / state.memory["count"]

    def remember(self, gradient, state):
        before = state.memory or {"sum": 0.0, "count": 0}
        return {
            "sum": before["sum"] + self(gradient, state),
            "count": before["count"] + 1,
        }


def leaning_by_hand(task, operator, total, cut):
    """PnP without momentum from A^T y around `Leaning`; x and the sum are constants at `cut`."""
    physics, y = task.student, task.measure(task.images.train)
    x, directions = physics.A_adjoint(y), []
    for k in range(total):
        if k == cut and cut:
            x, directions = x.detach(), [direction.detach() for direction in directions]
        gradient = physics.A_adjoint(physics.A(x) - y)
        direction = (gradient.flatten(1) @ operator.matrix.T).view_as(gradient)
        if directions:
            direction = direction + operator.lean * sum(directions) / len(directions)
        directions.append(direction)
        x = task.prior(x - STEP * direction, SIGMA_USED)
    return x, directions


@pytest.mark.parametrize(
    ("strategy", "cut"), [("full", 0), ("checkpointed", 0), ("truncated", 4), ("one-step", 6)]
)
def test_a_preconditioner_with_memory(task, strategy, cut):
    """The memory crosses the segments with its gradients, and a cut takes them from it."""
    operator, variant = Leaning(), ("pnp", "adjoint", "none")
    parameters = GradientParameters(strategy=strategy, window=3)
    found = gradients(task, operator, variant, 7, parameters)
    estimate, directions = leaning_by_hand(task, operator, 7, cut)
    truth = task.pixels(task.images.train).flatten(1)
    loss = loss_of(estimate, directions[cut:], range(cut, 7), truth)
    exact = torch.cat([part.flatten() for part in torch.autograd.grad(loss, operator.parameters())])
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-11)
    assert exact[-1].abs() > 1e-4  # of `lean`


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("start", STARTS)
def test_nothing_to_train(task, matrix, start, strategy):
    """Frozen parameters: no graph, no warning, the same images."""
    operator = dense(matrix).eval().requires_grad_(False)
    solver = solver_of(task, ("pnp", start, "textbook"), 7)
    measured = task.measure(task.images.train)
    parameters = GradientParameters(strategy=strategy)
    made = unroll(solver, operator, measured, task.student, parameters)
    assert not made.estimate.requires_grad
    assert not any(direction.requires_grad for direction in made.directions)
    assert torch.equal(made.estimate, solver.run(measured, task.student, operator).estimate)


def test_gradient_mode_is_left_as_it_was(task, matrix):
    """Also when the preconditioner fails before the cut."""

    class Broken(Dense):
        def forward(self, gradient, state):
            raise UserError("broken")

    solver = solver_of(task, ("pnp", "adjoint", "textbook"), 3)
    measured = task.measure(task.images.train)
    with pytest.raises(UserError, match="broken"):
        unroll(
            solver,
            Broken((1, SIDE, SIDE)),
            measured,
            task.student,
            GradientParameters(strategy="one-step"),
        )
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    ("strategy", "window", "iterations", "words"),
    [
        ("full", 5, 20, "full unrolling"),
        ("checkpointed", 5, 20, "checkpointed every 4 iterations"),
        ("checkpointed", 5, 1, "checkpointed every iteration"),
        ("truncated", 5, 20, "last 5 of 20 iterations"),
        ("truncated", 1, 20, "last iteration"),
        ("truncated", 5, 5, "full unrolling"),
        ("truncated", 9, 5, "full unrolling"),
        ("one-step", 5, 20, "last iteration"),
        ("one-step", 5, 1, "full unrolling"),
    ],
)
def test_words_for_the_record(strategy, window, iterations, words):
    assert describe(GradientParameters(strategy=strategy, window=window), iterations) == words


def test_the_words_agree_with_the_segments(task, matrix):
    """K = 20: five segments of four, seen by when P is asked again in `backward`."""
    operator = Counted((1, SIDE, SIDE)).double()
    asked = []
    operator.register_forward_pre_hook(lambda module, given: asked.append(given[1].iteration))
    solver = solver_of(task, ("pnp", "adjoint", "textbook"), 20)
    made = unroll(
        solver,
        operator,
        task.measure(task.images.train),
        task.student,
        GradientParameters(strategy="checkpointed"),
    )
    made.estimate.sum().backward()
    back = np.array(asked[20:]).reshape(5, 4)
    np.testing.assert_array_equal(back, np.arange(20).reshape(5, 4)[::-1])


def test_parameters():
    """Neither is searched unless a study says so; a window is a whole number from 1 on."""
    assert not space(GradientParameters, "pnp-fista", None)
    assert GradientParameters() == GradientParameters(strategy="full", window=5)
    for values in ({"window": 0}, {"window": 2.5}, {"strategy": "half"}):
        with pytest.raises(UserError):
            build(GradientParameters, values)
