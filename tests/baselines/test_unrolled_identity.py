"""The control that learns steps and strengths and no operator."""

from dataclasses import replace

import pytest
import torch

from baselines.unrolled_identity import METHOD, Unrolled, restore
from dipa_bench import registry
from dipa_bench.learning.losses import imitation
from dipa_bench.learning.unrolling import validate
from dipa_bench.parameters import build, defaults
from dipa_bench.priors.base import SIGMA, Prior
from dipa_bench.testing.problems import small_task


def parameters(task, **values):
    return build(METHOD.parameters, defaults(METHOD.parameters, task.solver, task) | values)


def identity(task, context, **values):
    method = registry.get("methods", "identity")
    flat = defaults(method.parameters, task.solver, task) | values
    return method.fit(task, build(method.parameters, flat), context)


@pytest.mark.parametrize("solver", ["pnp-fista", "red-fista"])
def test_untrained_it_is_the_identity(solver, context):
    task = small_task(solver=solver)
    values = {"solve.start": "preconditioned", "solve.decay": 0.5}
    made = METHOD.fit(task, parameters(task, **values), context(epochs=0))
    y = task.measure(task.images.validation)
    expected = identity(task, context(), **values).run(y, task.student)
    found = made.run(y, task.student)
    torch.testing.assert_close(found.estimate, expected.estimate)
    assert found.operator_calls == expected.operator_calls
    assert found.denoiser_calls == expected.denoiser_calls
    assert set(made.module.state_dict()) == {"steps", "strengths"}


def test_one_step_without_a_prior_is_the_least_squares_step(context):
    """argmin over a of sum |z - a g - x|^2 = sum <z - x, g> / sum |g|^2, at z = A^T y."""
    prior = Prior("none", SIGMA, lambda images, sigma: images)
    task = replace(small_task(iterations=1, count=8, noise=0.05), prior=prior)
    values = {"train.learning_rate": 3e-2, "solve.step": 0.4}
    made = METHOD.fit(task, parameters(task, **values), context(epochs=200, batch_size=8))
    y, truth = task.measure(task.images.train), task.pixels(task.images.train)
    z = task.student.A_adjoint(y)
    g = task.student.A_adjoint(task.student.A(z) - y)
    best = (((z - truth) * g).sum() / g.square().sum()).item()
    found = 0.4 / task.norm_squared() * made.module.steps.exp().item()
    losses = [
        imitation(z - step * g, truth).item() for step in (found, best, 0.4 / task.norm_squared())
    ]
    assert losses[1] <= losses[0] <= losses[1] + 0.02 * (losses[2] - losses[1])


def test_gradients_are_finite_differences(context):
    """Of the loss in the logarithm of each step and strength, in float64."""
    task = small_task(dtype=torch.float64, iterations=3, solver="red-fista")
    made = METHOD.fit(task, parameters(task), context(epochs=0))
    schedule = made.module.requires_grad_(True)
    y, truth = task.measure(task.images.train), task.pixels(task.images.train)

    def loss():
        return imitation(made.run(y, task.student).estimate, truth)

    loss().backward()
    for part in (schedule.steps, schedule.strengths):
        for k in range(3):
            values = []
            for small in (1e-5, -1e-5):
                with torch.no_grad():
                    part[k] += small
                    values.append(loss().item())
                    part[k] -= small
            assert part.grad[k].item() == pytest.approx(
                (values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-9
            )
            assert part.grad[k] != 0


@pytest.mark.parametrize("task_name", ["sr", "cs"])
def test_training_helps_and_its_numbers_come_back(task_name, context):
    task = small_task(task_name, iterations=4, count=10)
    given = context(epochs=12, batch_size=5)
    made = METHOD.fit(task, parameters(task), given)
    (_, before), *_ = given.series["val/psnr_by_epoch"]
    after = validate(made, task, task.images.validation)
    assert after > before + 0.1
    state = {name: part.clone() for name, part in made.module.state_dict().items()}
    back = METHOD.rebuild(task, parameters(task), state, context(), moved=False)
    assert isinstance(back, Unrolled)
    y = task.measure(task.images.validation)
    assert torch.equal(back.run(y, task.student).estimate, made.run(y, task.student).estimate)
    longer = replace(task, iterations=7)
    more = restore(longer, parameters(task), state, context()).solver
    assert more.step_at(6) == more.step_at(3)
    assert more.strength_at(5) == more.strength_at(3)
