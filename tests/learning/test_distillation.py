"""L-DIPA's loss, its gradient, and what a fit makes of them."""

import itertools

import numpy as np
import pytest
import torch

from dipa_bench.learning.distillation import LDIPA
from dipa_bench.learning.objective import (
    DistillParameters,
    Mismatch,
    distillation_loss,
    sizeable,
)
from dipa_bench.learning.strategies import GradientParameters
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
    compared = None
    if mismatch:
        pair = (
            (truth.flatten(1) @ torch.from_numpy(matrix)).view_as(truth)
            for matrix in (normal, teacher_normal)
        )
        compared = Mismatch(*pair, targets.step)
    loss = distillation_loss(
        reconstructor, targets, compared, parameters, GradientParameters(), task
    )
    index = torch.tensor([3, 1])
    batch = Batch(index, task.measure(task.images.train)[index], truth[index])
    operator = reconstructor.preconditioner

    def value(matrix):
        operator._parameters["matrix"] = matrix[None]
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
        "train.initial": "identity",
    } | values
    return build(LDIPA.parameters, flat)


@pytest.mark.parametrize("target", ["imit", "sup"])
def test_training_lowers_the_loss_and_helps(context, target):
    """Over ten epochs the training loss falls and the validation PSNR of epoch 0 is beaten."""
    task = small_task(noise=0.0, count=12)
    found = context(epochs=10, batch_size=4)
    made = LDIPA.fit(task, settings(**{"distill.target": target}), found)
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
        LDIPA.fit(task, settings(), context(seed, epochs=4, batch_size=4)).preconditioner.matrix
        for seed in (7, 7, 8)
    ]
    assert not torch.equal(found[0], torch.eye(256)[None])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_exploding_training_is_reported(context):
    """A learning rate of 1e6: `Diverged` with the loss in the reason."""
    from dipa_bench.errors import Diverged

    task = small_task()
    with pytest.raises(Diverged, match=r"training loss .* in epoch \d.*first"):
        LDIPA.fit(task, settings(**{"train.learning_rate": 1e6}), context(epochs=3, batch_size=2))


def test_published_rules_use_the_published_teacher(context):
    """Absolute steps 0.4 and 0.7, published momentum for the teacher too; no tuning."""
    task = small_task(noise=0.0)
    found = context(epochs=1)
    values = LDIPA.published(task)
    assert values["distill.teacher"] == 1.0
    made = LDIPA.fit(task, build(LDIPA.parameters, values), found)
    assert made.solver.step_size == 0.4
    assert found.notes["teacher.step"] == 0.7
    assert found.notes["teacher.units"] == "absolute"
    assert found.notes["teacher.strength"] == pytest.approx(2 / 255)
    folder = found.teachers.folder
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
    LDIPA.fit(task, settings(**values), found)
    loss = [value for _, value in found.series["train/loss"]]
    assert loss[-1] < 0.2 * loss[0]


def along(problem, context, strategy, gradient=0.7, window=2, target=0.9):
    """The loss with ``alignment=along`` as a function of the matrix, and its made-up path."""
    task, targets, *_ = problem
    generator = torch.Generator().manual_seed(4)
    path = torch.randn(4, 3, 1, 12, 12, generator=generator, dtype=torch.float64)
    targets = Targets(targets.estimates, targets.gradients, targets.step, path)
    solve = SolveParameters(step=0.8, strength=0.1, weight=0.5)
    made = context.reconstructor(task, solve, Dense(task.shape))
    parameters = DistillParameters(
        weight_gradient=gradient, weight_target=target, weight_mismatch=0.0, alignment="along"
    )
    loss = distillation_loss(
        made, targets, None, parameters, GradientParameters(strategy=strategy, window=window), task
    )
    index = torch.tensor([3, 1])
    truth = task.pixels(task.images.train)
    batch = Batch(index, task.measure(task.images.train)[index], truth[index])
    operator = made.preconditioner

    def value(matrix):
        operator._parameters["matrix"] = matrix[None]
        return loss(batch)

    return value, made.solver, batch, targets


STRATEGIES = {"full": (0, 1, 2), "checkpointed": (0, 1, 2), "truncated": (1, 2), "one-step": (2,)}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_along_from_the_formula(problem, context, strategy):
    """The mean of 1 - cos over images and over the iterations that carry gradients, in numpy."""
    task, _, matrix, _, _, a, smoother = problem
    value, solver, batch, targets = along(problem, context(), strategy)
    p, w, alpha = matrix.numpy(), smoother(12, 12, 0.1), solver.step_size
    y = batch.measurement.flatten(1).numpy()
    now = z = y @ a
    terms = []
    for k in range(3):
        direction = (z @ a.T - y) @ a @ p.T
        theirs = targets.path[batch.index][:, k].flatten(1).numpy()
        cosine = (direction * theirs).sum(1) / np.linalg.norm(direction, axis=1)
        terms.append(1 - (cosine / np.linalg.norm(theirs, axis=1)).mean())
        if task.solver == "red-fista":
            new = z - alpha * (direction + solver.weight * (z - z @ w.T))
        else:
            new = (z - alpha * direction) @ w.T
        z, now = new + k / (k + 4) * (new - now), new
    wanted = targets.estimates[batch.index].flatten(1).numpy()
    expected = 0.9 * ((now - wanted) ** 2).mean()
    expected += 0.7 * np.mean([terms[k] for k in STRATEGIES[strategy]])
    assert value(matrix).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("strategy", ["full", "checkpointed"])
def test_the_gradient_along_against_differences(problem, context, strategy):
    """d loss / dP along random directions, through every iteration, float64."""
    matrix = problem[2]
    value, *_ = along(problem, context(), strategy)
    leaf = matrix.clone().requires_grad_()
    (exact,) = torch.autograd.grad(value(leaf), leaf)
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        direction = torch.randn(N, N, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            numeric = (value(matrix + H * direction) - value(matrix - H * direction)) / (2 * H)
        torch.testing.assert_close((exact * direction).sum(), numeric, rtol=1e-5, atol=1e-9)


def test_along_in_a_fit(context):
    """The loss falls, the teacher's path is kept, and the operator differs from ``end``'s."""
    task, found = small_task(noise=0.0, count=12), {}
    for alignment in ("end", "along"):
        run = context(epochs=6, batch_size=4)
        values = {"distill.alignment": alignment, "distill.weight_gradient": 1.0}
        made = LDIPA.fit(task, settings(**values), run)
        loss = [value for _, value in run.series["train/loss"]]
        assert loss[-1] < loss[0]
        found[alignment] = made.preconditioner.matrix
    assert not torch.equal(found["end"], found["along"])


def test_along_asks_for_no_path_without_its_weight(context):
    """The teacher runs without it where L_grad has no weight."""
    task, run = small_task(iterations=2), context(epochs=1)
    values = {"distill.alignment": "along", "distill.weight_gradient": 0.0}
    LDIPA.fit(task, settings(**values), run)
    (file,) = run.teachers.folder.glob("targets-*")
    from safetensors.torch import load_file

    assert set(load_file(file)) == {"estimates", "gradients"}


@pytest.mark.parametrize("solver", ["pnp-fista", "red-fista"])
def test_gradient_strategies_in_whole_fits(context, solver):
    """Checkpointed ends where full does; truncated over all K too; shorter ones elsewhere."""
    task = small_task(
        "deblur", count=6, dtype=torch.float64, iterations=5, solver=solver, noise=0.01
    )
    found, notes = {}, {}
    for name, strategy, window in (
        ("full", "full", 5),
        ("checkpointed", "checkpointed", 5),
        ("all", "truncated", 5),
        ("three", "truncated", 3),
        ("one", "truncated", 1),
        ("one-step", "one-step", 5),
    ):
        run = context(epochs=3, batch_size=3)
        values = {
            "distill.teacher": task.labels[-1],
            "gradient.strategy": strategy,
            "gradient.window": window,
        }
        made = LDIPA.fit(task, settings(**values), run)
        found[name], notes[name] = made.preconditioner.matrix, run.notes["gradient_strategy"]
        assert run.series["train/loss"][-1][1] < run.series["train/loss"][0][1]
    torch.testing.assert_close(found["checkpointed"], found["full"], rtol=1e-9, atol=1e-11)
    assert torch.equal(found["all"], found["full"])
    assert torch.equal(found["one"], found["one-step"])
    assert not torch.allclose(found["three"], found["full"])
    assert not torch.allclose(found["one"], found["three"])
    assert notes["full"] == notes["all"] == "full unrolling"
    assert notes["three"] == "last 3 of 5 iterations"
    assert notes["one"] == notes["one-step"] == "last iteration"
    assert notes["checkpointed"].startswith("checkpointed every 2")


@pytest.mark.exhaustive(after=1)
@pytest.mark.parametrize("strategy", ["full", "checkpointed", "truncated"])
def test_one_operator_for_each_iteration(context, strategy):
    """All that carry gradients are trained, each to another; R reaches those before the cut."""
    task = small_task("deblur", count=6, iterations=4, noise=0.0)
    values = {
        "train.operators": "each",
        "gradient.strategy": strategy,
        "gradient.window": 2,
        "distill.target": "sup",
        "distill.teacher": task.labels[-1],
    }
    for weight in (0.0, 0.1):
        run = context(epochs=4, batch_size=2)
        more = {"distill.weight_gradient": 0.0, "distill.weight_mismatch": weight}
        matrix = LDIPA.fit(task, settings(**values, **more), run).preconditioner.matrix
        assert run.notes["best_epoch"] > 0
        assert matrix.shape == (4, 256, 256)
        moved = [not torch.equal(part, torch.eye(256)) for part in matrix]
        cut = 2 if strategy == "truncated" and not weight else 0
        assert moved == [False] * cut + [True] * (4 - cut)
        assert not torch.equal(matrix[2], matrix[3])


def test_gradients_that_are_rounding_have_no_angle():
    """Beside the largest of its own run, not of the batch; a run of zeros has none at all."""
    sizes = torch.tensor([[1e-6, 1.0, 2e-4], [3e-9, 1e-5, 1e-6], [0.0, 0.0, 0.0]])
    directions = sizes.view(3, 3, 1, 1, 1).expand(3, 3, 1, 4, 4)
    expected = [[False, True, True], [True, True, True], [False, False, False]]
    assert sizeable(directions).tolist() == expected


def test_along_a_noiseless_run_the_first_gradient_does_not_count(context):
    """cs from A^T y: rounding at k = 0 would be half of a mean over two iterations."""
    task = small_task("cs", noise=0.0, iterations=2, dtype=torch.float64, count=4)
    reconstructor = context().reconstructor(task, SolveParameters(strength=0.1), Dense(task.shape))
    truth, measured = task.pixels(task.images.train), task.measure(task.images.train)
    generator = torch.Generator().manual_seed(0)
    path = torch.randn(4, 2, 1, 16, 16, generator=generator, dtype=torch.float64)
    parameters = DistillParameters(
        target="sup", weight_target=0.0, weight_gradient=1.0, weight_mismatch=0.0, alignment="along"
    )
    targets = Targets(truth, truth, 1.0, path)
    loss = distillation_loss(reconstructor, targets, None, parameters, GradientParameters(), task)
    found = loss(Batch(torch.arange(4), measured, truth)).item()
    solver, operator = reconstructor.solver, reconstructor.preconditioner
    state = solver.with_gradient(solver.start(measured, task.student, operator))
    state = solver.with_gradient(solver.advance(state, operator))
    second, theirs = state.gradient.flatten(1), path[:, 1].flatten(1)
    expected = 1 - torch.nn.functional.cosine_similarity(second, theirs).mean()
    assert found == pytest.approx(expected.item(), rel=1e-9)
