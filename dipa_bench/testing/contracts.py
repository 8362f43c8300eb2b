"""The contracts of preconditioners, priors and methods as pytest classes."""

from __future__ import annotations

import atexit
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from dipa_bench import parameters, registry
from dipa_bench.errors import UserError
from dipa_bench.evaluation.evaluate import evaluate
from dipa_bench.learning import lmmse
from dipa_bench.learning.teachers import TeacherCache
from dipa_bench.methods import Budget, FitContext, Method, Reconstructor
from dipa_bench.preconditioners import Preconditioner, State
from dipa_bench.priors import user
from dipa_bench.priors.base import Prior
from dipa_bench.reuse import CachedPerTask
from dipa_bench.tasks.base import Task
from dipa_bench.testing.problems import small_task, wide_task

SHAPES = [(1, 16, 16), (1, 12, 20)]


def linearised(task: Task, batch: int = 3, seed: int = 0) -> State:
    """A state of iteration 1 with every field set, at a random point."""
    generator = torch.Generator().manual_seed(seed)

    def image() -> torch.Tensor:
        return torch.rand(batch, *task.shape, generator=generator).to(task.device, task.dtype)

    point, before = image(), image()
    measurement = task.student.A(image())
    residual = task.student.A(point) - measurement
    earlier = task.student.A_adjoint(task.student.A(before) - measurement)
    return State(
        iteration=1,
        iterate=point,
        point=point,
        measurement=measurement,
        physics=task.student,
        previous_point=before,
        residual=residual,
        gradient=task.student.A_adjoint(residual),
        previous_gradient=earlier,
    )


class PreconditionerContract:
    """Subclass and override `make`."""

    def make(self, task: Task) -> Preconditioner:
        """A preconditioner for images of the task's shape."""
        raise NotImplementedError

    def on(self, task: Task) -> Preconditioner:
        return self.make(task).to(task.device, task.dtype)

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_keeps_shape_and_dtype(self, shape: tuple, dtype: torch.dtype) -> None:
        task = small_task(shape=shape, dtype=dtype)
        state = linearised(task)
        direction = self.on(task)(state.gradient, state)
        assert direction.shape == state.gradient.shape
        assert direction.dtype == dtype
        assert torch.isfinite(direction).all()

    def test_treats_each_image_by_itself(self) -> None:
        task = small_task(dtype=torch.float64)
        state, operator = linearised(task), self.on(task)
        whole = operator(state.gradient, state)
        for index in range(3):
            part = slice(index, index + 1)
            alone = state.of_images(part)
            torch.testing.assert_close(operator(alone.gradient, alone), whole[part])

    def test_can_be_replayed(self) -> None:
        task = small_task()
        state, operator = linearised(task), self.on(task)
        before = state.gradient.clone()
        first = operator(state.gradient, state)
        assert torch.equal(first, operator(state.gradient, state))
        assert torch.equal(before, state.gradient)

    def test_linear_means_linear(self) -> None:
        task = small_task(dtype=torch.float64)
        operator, state = self.on(task), linearised(task)
        if not operator.linear:
            pytest.skip("not linear")
        other = torch.randn(state.gradient.shape, dtype=torch.float64)
        both = operator(2 * state.gradient + other, state)
        parts = 2 * operator(state.gradient, state) + operator(other, state)
        torch.testing.assert_close(both, parts, rtol=1e-5, atol=1e-8)

    def test_dense_is_the_action(self) -> None:
        task = small_task(dtype=torch.float64)
        operator, state = self.on(task), linearised(task)
        if not operator.linear:
            pytest.skip("not linear")
        matrix = operator.dense(task.shape, state)
        expected = operator(state.gradient, state).flatten(1)
        found = state.gradient.flatten(1) @ matrix.T
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)

    def test_bound_is_the_largest_eigenvalue(self) -> None:
        task = small_task(dtype=torch.float64)
        operator, state = self.on(task), linearised(task)
        bound = operator.spectral_bound(task.norm_squared())
        if bound is None:
            pytest.skip("no closed form")
        size = task.images.train.pixels[0].numel()
        eye = torch.eye(size, dtype=torch.float64).reshape(size, *task.shape)
        normal = task.student.A_adjoint(task.student.A(eye)).reshape(size, size)
        product = operator.dense(task.shape, state) @ normal
        largest = torch.linalg.eigvals(product).real.max().item()
        assert bound == pytest.approx(largest, rel=1e-3)

    def test_state_round_trips(self) -> None:
        task = small_task()
        operator, fresh = self.on(task), self.on(task)
        state = linearised(task)
        fresh.load_state_dict(operator.state_dict())
        assert torch.equal(fresh(state.gradient, state), operator(state.gradient, state))


class PriorContract:
    """Subclass and set `name` to a registered prior, ``module:function`` or a weights file."""

    name: ClassVar[str]

    def make(self, dtype: torch.dtype = torch.float32) -> Prior:
        return user.build(self.name).to(dtype=dtype)

    def batch(self, prior: Prior, count: int, *size: int) -> torch.Tensor:
        """Random images of as many channels as the prior takes, 1 for any."""
        generator = torch.Generator().manual_seed(0)
        return torch.rand(count, prior.channels or 1, *size, generator=generator)

    @pytest.mark.parametrize("size", [(17, 20), (11, 11)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_keeps_shape_and_dtype(self, dtype: torch.dtype, size: tuple) -> None:
        prior = self.make(dtype)
        batch = self.batch(prior, 2, *size).to(dtype)
        found = prior(batch, prior.strength.default)
        assert found.shape == batch.shape
        assert found.dtype == dtype
        assert torch.isfinite(found).all()

    def test_can_be_replayed(self) -> None:
        prior = self.make()
        batch = self.batch(prior, 2, 16, 16)
        before = batch.clone()
        first = prior(batch, prior.strength.default)
        assert torch.equal(first, prior(batch, prior.strength.default))
        assert torch.equal(before, batch)

    def test_takes_the_channels_it_names(self) -> None:
        prior = self.make()
        images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        levels = prior.strength.default * torch.tensor([0.5, 2.0]).view(-1, 1, 1, 1)
        assert prior(images, levels).shape == images.shape
        if prior.channels == 3:
            with pytest.raises(UserError, match="channels"):
                prior(images[:, :1], prior.strength.default)

    def test_leaves_a_graph_where_gradients_pass(self) -> None:
        prior = self.make()
        batch = self.batch(prior, 2, 16, 16).requires_grad_()
        assert prior(batch, prior.strength.default).requires_grad == prior.differentiable

    def test_treats_each_image_by_itself(self) -> None:
        prior = self.make()
        batch = self.batch(prior, 3, 16, 16)
        levels = prior.strength.default * torch.tensor([0.5, 1.0, 2.0]).view(-1, 1, 1, 1)
        whole = prior(batch, levels)
        for index in range(3):
            alone = prior(batch[index : index + 1], levels[index].item())
            torch.testing.assert_close(alone, whole[index : index + 1], rtol=1e-4, atol=1e-5)

    def test_gradients_pass(self) -> None:
        prior = self.make(torch.float64)
        if not prior.differentiable:
            pytest.skip("says that it is not differentiable")
        generator = torch.Generator().manual_seed(0)
        point = self.batch(prior, 1, 8, 8).double()
        toward = torch.randn(point.shape, generator=generator, dtype=torch.float64)

        def value(x: torch.Tensor) -> torch.Tensor:
            return (prior(x, prior.strength.default) * toward).sum()

        point.requires_grad_()
        (slope,) = torch.autograd.grad(value(point), point)
        small = 1e-6
        with torch.no_grad():
            difference = value(point + small * toward) - value(point - small * toward)
        expected = difference / (2 * small)
        torch.testing.assert_close((slope * toward).sum(), expected, rtol=1e-3, atol=1e-5)


class MethodContract:
    """Subclass and set `name` to a registered method; `tasks` to the tasks it is tried on.

    Each task stands with one setting of solver, precision and shape; those of three tasks hold each
    value of the three. Which of a task's two settings it is depends on the method's name, and over
    methods they hold every pair of two values. All checks of a setting share one fit.
    """

    name: ClassVar[str]
    tasks: ClassVar[tuple[str, ...]] = ("sr", "cs", "mri")

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Makes one test for each of the class's `tasks`."""
        if "task_name" in metafunc.fixturenames:
            metafunc.parametrize("task_name", type(self).tasks)

    @property
    def method(self) -> Method:
        return registry.get("methods", self.name)

    def task(self, setting: Setting) -> Task:
        """The small task of a setting; the test is skipped where the method does not apply."""
        made = setting.task()
        reason = self.method.unsuitable(made)
        if reason is not None:
            pytest.skip(reason)
        return made

    def setting(self, task_name: str) -> Setting:
        """A task's setting for this method; the other where the method is not for that one."""
        first, second = settings(task_name, type(self).tasks)
        found = (second, first) if zlib.crc32(self.name.encode()) % 2 else (first, second)
        fitting = (one for one in found if self.method.unsuitable(one.task()) is None)
        return next(fitting, found[0])

    def test_describes_itself(self) -> None:
        method = self.method
        assert method.title and method.summary and method.operator and method.rule

    def test_reconstructs(self, task_name: str) -> None:
        setting = self.setting(task_name)
        task = self.task(setting)
        reconstructor = fitted(self.method, setting)
        found = evaluate(reconstructor, task, task.images.validation, record=True).check()
        assert found.estimates.shape == task.images.validation.pixels.shape
        assert len(found.curve_table(0)) >= len(found.images)
        with torch.no_grad():
            estimate = reconstructor.run(
                task.measure(task.images.validation), task.student
            ).estimate
        assert estimate.dtype == task.dtype

    def test_fit_is_deterministic(self) -> None:
        found = map(self.setting, type(self).tasks)
        fitting = (one for one in found if self.method.unsuitable(one.task()) is None)
        setting = next(fitting, None)
        if setting is None:
            pytest.skip("is for none of these tasks")
        task = setting.task()
        once, again = (
            evaluate(made, task, task.images.validation).estimates
            for made in (fitted(self.method, setting), fit(self.method, setting))
        )
        assert torch.equal(once, again)

    def test_treats_each_image_by_itself(self, task_name: str) -> None:
        setting = self.setting(task_name)
        task = self.task(setting)
        reconstructor = fitted(self.method, setting)
        measured = task.measure(task.images.validation)
        with torch.no_grad():
            whole = reconstructor.run(measured, task.student).estimate
            alone = reconstructor.run(measured[1:2], task.student).estimate
        single = {"rtol": 1e-3, "atol": 1e-4} if task.dtype == torch.float32 else {}
        torch.testing.assert_close(alone, whole[1:2], **single)

    def test_published_settings_are_valid(self, task_name: str) -> None:
        task = self.task(self.setting(task_name))
        method = self.method
        values = parameters.defaults(method.parameters, task.solver, task)
        parameters.build(method.parameters, values | method.published(task))


@dataclass(frozen=True)
class Setting:
    """A small problem that a method is tried on.

    Attributes:
        name: of the task.
        solver: ``pnp-fista`` or ``red-fista``.
        dtype: of the images.
        wide: whether they are wider than high.
    """

    name: str
    solver: str
    dtype: torch.dtype
    wide: bool

    def __str__(self) -> str:
        shape = "wide" if self.wide else "square"
        return f"{self.name}-{self.solver}-{str(self.dtype).removeprefix('torch.')}-{shape}"

    def task(self) -> Task:
        """The task, made once in a session."""
        return _task(self)


LMMSE_MAPS = CachedPerTask(lmmse.cross_fitted)
HALVES = (  # solver, dtype, wide; the other setting of a task has the other value of each
    ("pnp-fista", torch.float32, False),
    ("pnp-fista", torch.float64, False),
    ("pnp-fista", torch.float32, True),
)


def settings(task: str, tasks: Sequence[str]) -> tuple[Setting, Setting]:
    """The two settings of one of `tasks`."""
    solver, dtype, wide = HALVES[list(tasks).index(task) % len(HALVES)]
    other = torch.float64 if dtype == torch.float32 else torch.float32
    return Setting(task, solver, dtype, wide), Setting(task, "red-fista", other, not wide)


def fit(method: Method, setting: Setting) -> Reconstructor:
    """A method fitted with its defaults for one epoch; teachers are shared by the session."""
    task = setting.task()
    values = parameters.defaults(method.parameters, task.solver, task)
    context = FitContext(
        seed=0,
        budget=Budget(epochs=1, batch_size=3),
        teachers=TeacherCache(_teachers()),
        lmmse=LMMSE_MAPS,
    )
    return method.fit(task, parameters.build(method.parameters, values), context)


@cache
def _task(setting: Setting) -> Task:
    build = wide_task if setting.wide else small_task
    return build(setting.name, solver=setting.solver, dtype=setting.dtype)


@cache
def _teachers() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="dipa-teachers-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


@cache
def fitted(method: Method, setting: Setting) -> Reconstructor:
    """`fit`, once for all tests that only read what it gives."""
    return fit(method, setting)
