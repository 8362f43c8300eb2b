"""L-DIPA's loss, its gradient, and what a fit makes of them."""

import itertools

import numpy as np
import pytest
import torch

from dipa_bench.learning.distillation import (
    LDIPA,
    DistillParameters,
    distillation_loss,
    fit_ldipa,
    published_ldipa,
)
from dipa_bench.learning.teachers import Targets
from dipa_bench.learning.unrolling import Batch
from dipa_bench.parameters import build
from dipa_bench.preconditioners import Dense
from dipa_bench.solvers import SolveParameters
from dipa_bench.testing.problems import small_task

N, H = 144, 1e-5
COMBINATIONS = list(itertools.product(("imit", "sup"), (0.0, 0.7), (0.0, 0.3)))


@pytest.fixture(scope="module", params=["pnp-fista", "red-fista"])
def problem(request, dense_sr, smoother):
    """A 12 x 12 task with factor 4, a made-up teacher of factor 3, and the dense matrices."""
    task = small_task(
        shape=(1, 12, 12), dtype=torch.float64, iterations=3, count=4, solver=request.param
    )
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    truth = task.pixels(task.images.train)
    targets = Targets(truth + 0.1 * noise(4, 1, 12, 12), noise(4, 1, 12, 12), 1.7)
    matrix = torch.eye(N, dtype=torch.float64) + 0.05 * noise(N, N)
    student, teacher = dense_sr(12, 12, 4), dense_sr(12, 12, 3)
    return task, targets, matrix, student.T @ student, teacher.T @ teacher, student, smoother


def made(problem, context, target, gradient, mismatch):
    """The loss of P, as a function of the matrix alone, on images 3 and 1."""
    task, targets, _, normal, teacher_normal, *_ = problem
    solve = SolveParameters(step=0.8, strength=0.1, weight=0.5)
    reconstructor = context.reconstructor(task, solve, Dense(task.shape))
    parameters = DistillParameters(
        target=target, weight_gradient=gradient, weight_target=0.9, weight_mismatch=mismatch
    )
    truth = task.pixels(task.images.train)
    normals = None
    if mismatch:
        normals = tuple(
            (truth.flatten(1) @ torch.from_numpy(matrix)).view_as(truth)
            for matrix in (normal, teacher_normal)
        )
    loss = distillation_loss(reconstructor, targets, normals, parameters, task)
    index = torch.tensor([3, 1])
    batch = Batch(index, task.measure(task.images.train)[index], truth[index])
    operator = reconstructor.preconditioner

    def value(matrix):
        operator._parameters["matrix"] = matrix
        return loss(batch)

    return value, reconstructor.solver, batch


@pytest.mark.parametrize(("target", "gradient", "mismatch"), COMBINATIONS)
def test_value_from_the_formulas(problem, context, target, gradient, mismatch):
    """w_grad L_grad + w (L_imit or L_sup) + lambda_R R(P), every part in numpy with matrices."""
    task, targets, matrix, normal, teacher_normal, a, smoother = problem
    value, solver, batch = made(problem, context(), target, gradient, mismatch)
    p, w = matrix.numpy(), smoother(12, 12, 0.1)
    alpha, count = solver.step_size, len(batch.index)
    assert alpha == pytest.approx(0.8 / np.linalg.norm(a, 2) ** 2)
    y, x = batch.measurement.flatten(1).numpy(), batch.truth.flatten(1).numpy()
    now = z = y @ a
    for k in range(3):
        direction = (z @ a.T - y) @ a @ p.T
        if task.solver == "red-fista":
            new = z - alpha * (direction + solver.weight * (z - z @ w.T))
        else:
            new = (z - alpha * direction) @ w.T
        z, now = new + k / (k + 4) * (new - now), new
    wanted = x if target == "sup" else targets.estimates[batch.index].flatten(1).numpy()
    expected = 0.9 * ((now - wanted) ** 2).mean()
    final = (now @ a.T - y) @ a @ p.T
    theirs = targets.gradients[batch.index].flatten(1).numpy()
    cosine = [
        u @ v / np.linalg.norm(u) / np.linalg.norm(v) for u, v in zip(final, theirs, strict=True)
    ]
    expected += gradient * (1 - np.mean(cosine))
    gap = (alpha * p @ normal - 1.7 * teacher_normal) @ x.T
    expected += mismatch * (gap**2).sum() / (count * N)
    assert value(matrix).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("target", "gradient", "mismatch"), COMBINATIONS)
def test_gradient_against_differences(problem, context, target, gradient, mismatch):
    """d loss / dP along random directions and for single entries, float64."""
    _, _, matrix, *_ = problem
    value, *_ = made(problem, context(), target, gradient, mismatch)
    leaf = matrix.clone().requires_grad_()
    (exact,) = torch.autograd.grad(value(leaf), leaf)
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(N, N, generator=generator, dtype=torch.float64) for _ in range(2)]
    single = torch.zeros(N, N, dtype=torch.float64)
    single[20, 77] = 1
    with torch.no_grad():
        for direction in (*directions, single):
            numeric = (value(matrix + H * direction) - value(matrix - H * direction)) / (2 * H)
            torch.testing.assert_close((exact * direction).sum(), numeric, rtol=1e-5, atol=1e-9)


def settings(**values):
    flat = {
        "solve.strength": 0.1,
        "distill.teacher": 2.0,
        "train.learning_rate": 3e-3,
    } | values
    return build(LDIPA.parameters, flat)


@pytest.mark.parametrize("target", ["imit", "sup"])
def test_training_lowers_the_loss_and_helps(context, target):
    """Over ten epochs the training loss falls and the validation PSNR of epoch 0 is beaten."""
    task = small_task(noise=0.0, count=12)
    found = context(epochs=10, batch_size=4)
    made = fit_ldipa(task, settings(**{"distill.target": target}), found)
    loss = [value for _, value in found.series["train/loss"]]
    quality = [value for _, value in found.series["val/psnr_by_epoch"]]
    assert len(loss) == 10
    assert len(quality) == 11
    assert loss[-1] < 0.9 * loss[0]
    assert max(quality) > quality[0] + 0.3
    assert found.notes["teacher.step"] > 0
    assert not made.preconditioner.matrix.requires_grad


def test_same_seed_same_bits(context):
    """Twice the same seed; a different one gives another operator."""
    task = small_task(noise=0.0, count=12)
    found = [
        fit_ldipa(task, settings(), context(seed, epochs=4, batch_size=4)).preconditioner.matrix
        for seed in (7, 7, 8)
    ]
    assert not torch.equal(found[0], torch.eye(256))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_exploding_training_is_reported(context):
    """A learning rate of 1e6: `Diverged` with the loss in the reason."""
    from dipa_bench.errors import Diverged

    task = small_task()
    with pytest.raises(Diverged, match=r"training loss .* in epoch \d.*first"):
        fit_ldipa(task, settings(**{"train.learning_rate": 1e6}), context(epochs=3, batch_size=2))


def test_published_rules_use_the_published_teacher(context):
    """Absolute steps 0.4 and 0.7, published momentum for the teacher too; no tuning."""
    task = small_task(noise=0.0)
    found = context(epochs=1)
    values = published_ldipa(task)
    assert values["distill.teacher"] == 1.0
    made = fit_ldipa(task, build(LDIPA.parameters, values), found)
    assert made.solver.step_size == 0.4
    assert found.notes["teacher.step"] == 0.7
    assert found.notes["teacher.units"] == "absolute"
    assert found.notes["teacher.strength"] == pytest.approx(2 / 255)
    folder = found.teachers._folder
    assert list(folder.glob("targets-*"))
    assert not list(folder.glob("settings-*"))


def test_the_mismatch_alone_has_its_known_minimum(context, dense_sr):
    """With only R(P), gradient descent goes towards alpha_s P H_s = alpha_t H_t on the images."""
    task = small_task(shape=(1, 12, 12), noise=0.0, count=8)
    found = context(epochs=30, batch_size=8)
    values = {
        "distill.weight_target": 0.0,
        "distill.weight_gradient": 0.0,
        "distill.weight_mismatch": 1.0,
        "distill.teacher": 3.0,
    }
    fit_ldipa(task, settings(**values), found)
    loss = [value for _, value in found.series["train/loss"]]
    assert loss[-1] < 0.2 * loss[0]
