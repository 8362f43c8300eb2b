"""Many settings as one batch: the same numbers as one by one, for every method without training."""

from itertools import cycle

import pytest
import torch

from dipa_bench import parameters, registry
from dipa_bench.errors import UserError
from dipa_bench.methods import Batched, Iterative, as_batch
from dipa_bench.preconditioners import Dense, Identity
from dipa_bench.priors.base import SIGMA, Prior
from dipa_bench.solvers import REDFISTA, PnPFISTA
from dipa_bench.solvers.batched import batched_solver, takes_each
from dipa_bench.testing.problems import small_task, smoothing_prior

MOMENTA = ("textbook", "published", "none")
STARTS = ("adjoint", "zero", "preconditioned", "lmmse")
TASKS = ("sr", "cs", "mri", "deblur")
OWN = {  # other values of what a method has beside its solver settings
    "barzilai-borwein": [{"rule": "bb1"}, {"rule": "bb2", "cap": 3.0}],
    "bp-ls": [{"gamma": 2.0}, {"mu": 0.5}],
    "circulant": [{"mu": 0.3}, {"mu": 2.0}],
    "hessian": [{"mu": 0.3}, {"mu": 2.0}],
    "nystrom": [{"rank": 8}, {"mu": 2.0}],
    "polynomial": [{"degree": 1}, {"family": "neumann", "degree": 3}],
    "lmmse-preconditioner": [{"damping": 0.1, "covariance": "dense"}, {"damping": 0.5}],
    "sr1": [{"least": 0.3}, {"least": 0.2}],
    "weighted-proximal": [{"metric": "sr1", "inner": 4}, {"inner": 3}],
}
JOINED = sorted(
    name
    for name in registry.names("methods")
    if registry.get("methods", name).solver_free or name == "weighted-proximal"
)
GREEDY = ("scalar", "pointwise", "convolutional", "full-linear")


def settings(method, task, count=6):
    """Flat parameters that differ in everything that a search turns."""
    plain = parameters.defaults(method.parameters, task.solver, task)
    space = parameters.space(method.parameters, task.solver, task)
    found = []
    own = cycle([{}, *OWN.get(method.name, [])])
    for index in range(count):
        values = {
            "solve.step": 0.4 + 0.15 * index,
            "solve.strength": 0.02 + 0.03 * index,
            "solve.decay": (1.0, 0.3, 1.5)[index % 3],
            "solve.momentum": MOMENTA[index % 3],
            "solve.start": STARTS[index % 4],
        }
        if task.solver == "red-fista":
            values["solve.weight"] = 0.2 + 0.1 * index
        admitted = {name: v for name, v in values.items() if space[name].admits(v)}
        found.append(plain | admitted | next(own))
    return found


def fitted(name, task, context, count=6):
    method = registry.get("methods", name)
    if reason := method.unsuitable(task):
        pytest.skip(reason)
    return [
        method.fit(task, parameters.build(method.parameters, values), context())
        for values in settings(method, task, count)
    ]


def compare(members, task, **tolerances):
    """Estimates, curves and costs of a batch against those of the members alone."""
    joined = as_batch(members)
    assert isinstance(joined, Batched)
    images = task.images.validation
    measured, truth = task.measure(images), task.pixels(images)
    with torch.no_grad():
        runs = joined.run(measured, task.student, record=True, reference=truth)
        alone = [m.run(measured, task.student, record=True, reference=truth) for m in members]
    assert len(runs) == len(alone)
    for found, expected in zip(runs, alone, strict=True):
        torch.testing.assert_close(found.estimate, expected.estimate, **tolerances)
        assert found.operator_calls == expected.operator_calls
        assert found.denoiser_calls == expected.denoiser_calls
        for curve in ("mse", "residual", "step_norm"):
            torch.testing.assert_close(
                getattr(found.curves, curve), getattr(expected.curves, curve), **tolerances
            )
    assert not torch.allclose(alone[0].estimate, alone[1].estimate, rtol=0, atol=1e-3)


@pytest.mark.covering
@pytest.mark.parametrize(
    ("name", "task_name", "solver"),
    [
        (name, task_name, solver)
        for first, name in enumerate(JOINED)
        for second, task_name in enumerate(TASKS)
        for solver in [("pnp-fista", "red-fista")[(first + second) % 2]]
        if (name, solver) != ("weighted-proximal", "pnp-fista")  # solves RED's equation
    ],
)
def test_batch_is_each_alone(name, task_name, solver, context):
    """To 1e-9 in double precision: steps, strengths, weights, momenta, starts, operators mixed."""
    task = small_task(task_name, solver=solver, dtype=torch.float64, count=4)
    compare(fitted(name, task, context), task, rtol=1e-9, atol=1e-9)


@pytest.mark.covering
@pytest.mark.parametrize("task_name", TASKS)
@pytest.mark.parametrize("name", ["identity", "barzilai-borwein", "polynomial"])
def test_single_precision(name, task_name, context):
    """To the rounding of float32."""
    task = small_task(task_name, count=4)
    compare(fitted(name, task, context), task, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", GREEDY)
def test_operators_for_each_iteration_are_joined(name, context):
    """Greedy ones, which the state's iteration indexes."""
    task = small_task(dtype=torch.float64, count=4)
    compare(fitted(name, task, context, 3), task, rtol=1e-9, atol=1e-9)


def iterative(kind=PnPFISTA, operator=None, **options):
    given = {"prior": smoothing_prior(), "step": 1.0, "strength": 0.1, "iterations": 3} | options
    return Iterative(kind(**given), operator or Identity())


def test_what_cannot_be_joined(context):
    """Other classes, other K, other priors, tensors, foreign iterations, no iterations at all."""

    class Careful(PnPFISTA):
        def step(self, state, direction):
            return super().step(state, direction)

    class Relaxed(PnPFISTA):
        def __init__(self, relaxation, **options):
            super().__init__(**options)
            self.relaxation = relaxation

    prior = smoothing_prior()
    one = iterative(prior=prior)
    levels = torch.full((1, 1, 1, 1), 0.1)
    others = {
        "class": iterative(REDFISTA, prior=prior, weight=1.0),
        "iterations": iterative(prior=prior, iterations=4),
        "prior": iterative(),
        "tensor": iterative(prior=prior, strength=levels),
    }
    for reason, other in others.items():
        assert as_batch([one, other]) is None, reason
    assert as_batch([iterative(Careful, prior=prior)] * 2) is None
    relaxed = [iterative(Relaxed, prior=prior, relaxation=value) for value in (0.5, 0.7, 0.5)]
    assert as_batch(relaxed[:2]) is None
    assert as_batch(relaxed[::2]) is not None
    task = small_task()
    for name in ("anderson", "adjoint", "lmmse"):
        assert as_batch(fitted_defaults(name, task, context)) is None


def fitted_defaults(name, task, context):
    method = registry.get("methods", name)
    values = parameters.defaults(method.parameters, task.solver, task)
    return [method.fit(task, parameters.build(method.parameters, values), context())] * 2


def test_priors_that_take_numbers_alone():
    """They are joined only where all strengths are the same."""

    def denoise(noisy, sigma):
        return noisy if sigma < 0.2 else noisy / 2

    def mean_of_all(noisy, sigma):  # takes tensors, but for the whole batch
        return noisy * torch.as_tensor(sigma).mean()

    for function in (denoise, mean_of_all):
        prior = Prior("plain", SIGMA, function)
        assert not takes_each(prior)
        assert as_batch([iterative(prior=prior, strength=s) for s in (0.1, 0.3)]) is None
        assert as_batch([iterative(prior=prior, step=s) for s in (0.1, 0.3)]) is not None


@pytest.mark.parametrize("name", ["dncnn-small", "tv", "wavelet", "recursive", "nlm"])
def test_shipped_priors_take_a_strength_for_each_image(name):
    """Which is what makes them one batch."""
    assert takes_each(registry.get("priors", name).build())


def test_equal_settings_stay_numbers():
    """A batch of one setting runs as that setting does, bit for bit."""
    like = torch.zeros(6, 1, 4, 4)
    same = [iterative(prior=smoothing_prior()).solver for _ in range(3)]
    solver = batched_solver(same, like)
    assert (solver.step_size, solver.strength) == (1.0, 0.1)
    assert solver.momentum is same[0].momentum
    mixed = [
        iterative(step=step, momentum=m).solver for step, m in ((1.0, "none"), (2.0, "published"))
    ]
    solver = batched_solver(mixed, like)
    assert solver.step_size.flatten().tolist() == [1.0] * 3 + [2.0] * 3
    torch.testing.assert_close(solver.momentum(0).flatten(), torch.tensor([0.0] * 3 + [2 / 3] * 3))
    assert mixed[0].step_size == 1.0  # the members stay as they were


def test_a_shared_operator_is_not_cut_up():
    """One product for the whole batch where all have the same P."""
    task = small_task()
    batches = []

    class Seen(Dense):
        def forward(self, gradient, state):
            batches.append(len(gradient))
            return super().forward(gradient, state)

    operator, prior = Seen(task.shape).requires_grad_(False), smoothing_prior()
    members = [iterative(operator=operator, prior=prior, step=step) for step in (0.5, 1.0)]
    as_batch(members).run(task.measure(task.images.validation), task.student)
    assert batches == [12, 12, 12]


def test_nothing_to_check_is_still_checked():
    """The plain solver still names what it does not know."""
    with pytest.raises(UserError, match="momentum"):
        iterative(momentum="mixed")
