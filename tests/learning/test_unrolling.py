"""The training loop, with losses made up for the purpose."""

import math
import re

import pytest
import torch

from dipa_bench import registry
from dipa_bench.errors import Diverged, Pruned
from dipa_bench.learning.unrolling import TrainParameters, train, validate
from dipa_bench.metrics import psnr
from dipa_bench.parameters import build, defaults
from dipa_bench.preconditioners import Dense
from dipa_bench.solvers import SolveParameters
from dipa_bench.testing.problems import small_task


@pytest.fixture
def task():
    return small_task(shape=(1, 12, 12), iterations=2)


def prepared(task, context):
    solve = SolveParameters(strength=0.1)
    return context.reconstructor(task, solve, Dense(task.shape))


def supervised(task, reconstructor):
    def loss(batch):
        estimate = reconstructor.run(batch.measurement, task.student).estimate
        return (estimate - batch.truth).square().mean()

    return loss


def run(task, context, loss=None, **parameters):
    reconstructor = prepared(task, context)
    loss = loss or supervised(task, reconstructor)
    train(reconstructor, loss, task.images.train, TrainParameters(**parameters), task, context)
    return reconstructor


def test_the_best_epoch_is_kept(task, context):
    """The operator returned has the highest validation PSNR of the series, not the last one."""
    ends = []
    for rate in (1e-2, 5e-2):  # the second one overshoots
        found = context(epochs=6, batch_size=3)
        made = run(task, found, learning_rate=rate)
        series = dict(found.series["val/psnr_by_epoch"])
        quality = validate(made, task, task.images.validation)
        assert quality == pytest.approx(max(series.values()), abs=1e-4)
        assert series[found.notes["best_epoch"]] == max(series.values())
        assert sorted(series) == list(range(7))
        ends.append(series[6] == max(series.values()))
    assert not all(ends)  # at least once the last epoch was not the best


def test_a_bad_loss_leaves_the_identity(task, context):
    """When every epoch is worse than the start, epoch 0 comes back bit by bit."""
    reconstructor = None

    def away(batch):
        return -supervised(task, reconstructor)(batch) + 1

    found = context(epochs=3, batch_size=3)
    reconstructor = prepared(task, found)
    train(
        reconstructor,
        away,
        task.images.train,
        TrainParameters(learning_rate=1e-2),
        task,
        found,
    )
    assert torch.equal(reconstructor.preconditioner.matrix[0], torch.eye(144))
    assert found.notes["best_epoch"] == 0


def test_validation_is_the_mean_psnr(task, context):
    """Of the budget's images; minus infinity when one is not finite."""
    found = context(validation_images=3)
    reconstructor = prepared(task, found)
    images = task.images.validation.first(3)
    estimate = reconstructor.run(task.measure(images), task.student).estimate
    expected = psnr(estimate, images.pixels).mean().item()
    assert validate(reconstructor, task, images) == pytest.approx(expected)
    with torch.no_grad():
        reconstructor.preconditioner.matrix[0, 0, 0] = math.nan
    assert validate(reconstructor, task, images) == -math.inf


@pytest.mark.parametrize("bad", [math.nan, math.inf, 5e3])
def test_losses_that_leave_the_numbers(task, context, bad):
    """NaN, infinity, or a thousandfold of the first: `Diverged`, and the reason has the value."""
    values = iter([1.0, 2.0, bad, 1.0])
    found = context(epochs=5, batch_size=3)
    reconstructor = prepared(task, found)

    def loss(batch):
        return next(values) + 0 * reconstructor.preconditioner.matrix.sum()

    reason = re.escape(f"training loss {bad:.3g} in epoch 2 (first: 1)")
    with pytest.raises(Diverged, match=reason):
        train(reconstructor, loss, task.images.train, TrainParameters(), task, found)


def test_a_negative_loss_is_no_divergence(task, context):
    """A loss may start below zero and come back to small positive numbers."""
    values = iter([-1.0, -0.5, 0.5, 0.9])
    found = context(epochs=2, batch_size=3)
    reconstructor = prepared(task, found)

    def loss(batch):
        return next(values) + 0 * reconstructor.preconditioner.matrix.sum()

    train(reconstructor, loss, task.images.train, TrainParameters(), task, found)


def test_pruning_stops_the_fit(task, context):
    """A report that raises `Pruned` after epoch 2 ends the training there."""
    reports = []

    def report(step, value):
        reports.append((step, value))
        if step == 2:
            raise Pruned("others were ahead")

    found = context(epochs=9, batch_size=3, report=report)
    with pytest.raises(Pruned, match="ahead"):
        run(task, found)
    assert [step for step, _ in reports] == [0, 1, 2]
    assert reports == found.series["val/psnr_by_epoch"]
    assert len(found.series["train/loss"]) == 2


def test_every_image_is_seen_once_per_epoch(task, context):
    """In batches of the budget's size, in an order that changes from epoch to epoch."""
    seen = []
    found = context(epochs=3, batch_size=4)
    reconstructor = prepared(task, found)
    measured, truth = task.measure(task.images.train), task.pixels(task.images.train)

    def loss(batch):
        seen.append(batch.index.tolist())
        assert torch.equal(batch.measurement, measured[batch.index])
        assert torch.equal(batch.truth, truth[batch.index])
        return reconstructor.preconditioner.matrix.square().mean()

    train(reconstructor, loss, task.images.train, TrainParameters(), task, found)
    assert [len(index) for index in seen] == [4, 2] * 3
    epochs = [seen[i] + seen[i + 1] for i in (0, 2, 4)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_the_whole_gradient_is_clipped(task, context):
    """Its norm never exceeds `clip`, as the optimiser sees it."""
    norms = []
    found = context(epochs=1, batch_size=6)
    reconstructor = prepared(task, found)
    operator = reconstructor.preconditioner

    def loss(batch):
        return 1e4 * operator.matrix.sum()

    original = torch.optim.Adam.step

    def step(self, *arguments, **options):
        norms.append(operator.matrix.grad.norm().item())
        return original(self, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", step)
        train(reconstructor, loss, task.images.train, TrainParameters(clip=0.5), task, found)
    assert norms == [pytest.approx(0.5, rel=1e-3)]


def test_adamw_decays_and_adam_does_not(task, context):
    """A loss without gradient: adamw shrinks I by (1 - rate * decay) each step, adam leaves it."""
    ends = {}
    for name in ("adam", "adamw"):
        found = context(epochs=2, batch_size=6)
        reconstructor = prepared(task, found)
        operator = reconstructor.preconditioner
        seen = []

        def loss(batch, operator=operator, seen=seen):
            seen.append(operator.matrix[0, 0, 0].item())
            return 0 * operator.matrix.sum() + 1

        parameters = TrainParameters(optimizer=name, learning_rate=0.01, weight_decay=0.5)
        train(reconstructor, loss, task.images.train, parameters, task, found)
        ends[name] = seen[-1]
    assert ends["adam"] == 1
    assert ends["adamw"] == pytest.approx(1 - 0.01 * 0.5, rel=1e-6)


def test_progress_is_told(task, context):
    """One call for each epoch with its loss and PSNR."""
    told = []
    found = context(epochs=3, batch_size=6)
    found.progress = told.append
    run(task, found)
    assert [(step.epoch, step.epochs) for step in told] == [(1, 3), (2, 3), (3, 3)]
    assert [(step.epoch, step.loss) for step in told] == found.series["train/loss"]


def test_training_images_grow_by_thirds(task, context):
    """Of 6 images with 3 rungs in 6 epochs: as many as a batch, 2, then 6; always the same ones."""
    seen = []
    found = context(epochs=6, batch_size=1, rungs=3)
    reconstructor = prepared(task, found)

    def loss(batch):
        seen.append(batch.index.item())
        return reconstructor.preconditioner.matrix.square().mean()

    train(reconstructor, loss, task.images.train, TrainParameters(), task, found)
    epochs, rest = [], seen
    for count in (1, 1, 2, 2, 6, 6):
        epochs.append(set(rest[:count]))
        rest = rest[count:]
        assert len(epochs[-1]) == count
    assert not rest
    assert epochs[0] == epochs[1] <= epochs[2] == epochs[3] <= epochs[4] == set(range(6))
    assert [epoch for epoch, _ in found.series["train/loss"]] == [1, 2, 3, 4, 5, 6]


def test_the_rate_reaches_zero_with_rungs(task, context):
    """The cosine counts the batches that there are."""
    for rungs in (1, 3):
        found = context(epochs=6, batch_size=2, rungs=rungs)
        run(task, found)
        assert found.notes["learning_rate_at_end"] == pytest.approx(0, abs=1e-12)


def test_the_rate_halves_on_a_plateau(task, context):
    """Validation never improves: after each patience + 1 epochs the rate is half."""
    found = context(epochs=7, batch_size=6)
    reconstructor = prepared(task, found)

    def loss(batch):
        return 0 * reconstructor.preconditioner.matrix.sum() + 1

    parameters = TrainParameters(schedule="plateau", patience=1, learning_rate=0.8)
    train(reconstructor, loss, task.images.train, parameters, task, found)
    # the first epoch is the best there is; then two bad ones before each of the three cuts
    assert found.notes["learning_rate_at_end"] == pytest.approx(0.8 / 8)


TRAINED = [method.name for method in registry.describe("methods") if method.unrolled]


@pytest.mark.parametrize("name", TRAINED)
def test_without_epochs_a_fit_gives_what_it_would_start_from(name: str, task, context) -> None:
    """And restored with other solver settings it is the same operator."""
    method = registry.get("methods", name)
    flat = defaults(method.parameters, task.solver, task)
    sizes = {"operator.max_parameters": 10**6, "distill.teacher": task.labels[-1]}
    flat |= {key: value for key, value in sizes.items() if key in flat}
    start = context(epochs=0)
    made = method.fit(task, build(method.parameters, flat), start)
    assert not any(part.requires_grad for part in made.module.parameters())
    assert "train/loss" not in start.series
    other = build(method.parameters, flat | {"solve.step": 0.5, "solve.momentum": "none"})
    again = method.restore(task, other, made.module.state_dict(), start)
    assert again.solver.step_size == pytest.approx(0.5 * made.solver.step_size)
    measured = task.measure(task.images.validation)
    again.solver.step_size, again.solver.momentum = made.solver.step_size, made.solver.momentum
    ours, theirs = (one.run(measured, task.student).estimate for one in (made, again))
    assert torch.equal(ours, theirs)
