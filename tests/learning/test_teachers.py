"""Teachers: tuned on a grid, cached by everything they depend on."""

from dataclasses import replace

import pytest
import torch

from dipa_bench.learning import teachers
from dipa_bench.learning.teachers import TeacherCache
from dipa_bench.metrics import psnr
from dipa_bench.preconditioners import Identity
from dipa_bench.priors.base import SIGMA, Prior
from dipa_bench.solvers import REDFISTA, PnPFISTA, SolveParameters
from dipa_bench.testing.problems import small_task, smoothing_prior

SETTINGS = SolveParameters(step=0.9, strength=0.08)


class Counting:
    """The smoothing prior, counting its calls."""

    def __init__(self):
        self.calls = 0
        self.inner = smoothing_prior()

    def __call__(self, noisy, sigma):
        self.calls += 1
        return self.inner(noisy, sigma)


@pytest.fixture
def spy():
    return Counting()


@pytest.fixture
def task(spy):
    return replace(small_task(iterations=3), prior=Prior("spy", SIGMA, spy))


@pytest.fixture
def cache(tmp_path):
    return TeacherCache(tmp_path)


@pytest.mark.parametrize("solver", ["pnp-fista", "red-fista"])
@pytest.mark.parametrize("label", [3.0, 1.0])
def test_targets_are_a_run_of_the_teacher(cache, solver, label):
    """Estimates, data gradients and the absolute step, from the teacher's own measurements."""
    task = small_task(iterations=3, dtype=torch.float64, solver=solver)
    images, physics = task.images.train, task.teacher(label)
    found = cache.targets(task, label, images, SETTINGS)
    largest = task.norm_squared(label)
    kind, extra = (REDFISTA, {"weight": 1.0 * largest}) if solver == "red-fista" else (PnPFISTA, {})
    own = kind(task.prior, step=0.9 / largest, strength=0.08, iterations=3, **extra)
    y = task.measure(images, label)
    estimate = own.run(y, physics, Identity()).estimate
    assert torch.equal(found.estimates, estimate)
    assert torch.equal(found.gradients, physics.A_adjoint(physics.A(estimate) - y))
    assert found.step == pytest.approx(0.9 / largest)


def test_a_second_request_reads_the_disk(task, cache, spy, tmp_path):
    """Same tensors and no call of the denoiser, also for another cache on the same folder."""
    first = cache.targets(task, 2.0, task.images.train, SETTINGS)
    assert spy.calls == 3
    second = TeacherCache(tmp_path).targets(task, 2.0, task.images.train, SETTINGS)
    assert spy.calls == 3
    assert torch.equal(first.estimates, second.estimates)
    assert torch.equal(first.gradients, second.gradients)
    assert first.step == second.step
    assert len(list(tmp_path.iterdir())) == 1  # no temporary file stays


def test_everything_that_matters_is_in_the_key(task, cache, spy, tmp_path):
    """Each change makes an entry of its own, and none of them is read for another."""
    images = task.images.train
    pixels = images.pixels.clone()
    pixels[0, 0, 3, 3] = 1 - pixels[0, 0, 3, 3]
    requests = [
        (task, 2.0, images, SETTINGS),
        (task, 3.0, images, SETTINGS),
        (task, 2.0, images.first(3), SETTINGS),
        (task, 2.0, replace(images, pixels=pixels), SETTINGS),
        (task, 2.0, images, SETTINGS.model_copy(update={"strength": 0.081})),
        (task, 2.0, images, SETTINGS.model_copy(update={"step": 0.91})),
        (task, 2.0, images, SETTINGS.model_copy(update={"momentum": "published"})),
        (task, 2.0, images, SETTINGS.model_copy(update={"start": "zero"})),
        (task, 2.0, images, SETTINGS.model_copy(update={"units": "absolute"})),
        (replace(task, iterations=4), 2.0, images, SETTINGS),
        (replace(task, noise=0.02), 2.0, images, SETTINGS),
        (replace(task, seed=1), 2.0, images, SETTINGS),
        (replace(task, solver="red-fista"), 2.0, images, SETTINGS),
        (replace(task, prior=Prior("other", SIGMA, spy)), 2.0, images, SETTINGS),
        (
            replace(small_task(iterations=3, options={"blur": 1.1}), prior=task.prior),
            2.0,
            images,
            SETTINGS,
        ),
        (
            replace(small_task(iterations=3, dtype=torch.float64), prior=task.prior),
            2.0,
            images,
            SETTINGS,
        ),
    ]
    for count, request in enumerate(requests, start=1):
        before = spy.calls
        cache.targets(*request)
        assert spy.calls > before, f"request {count} was answered from another one's entry"
        assert len(list(tmp_path.iterdir())) == count
    before = spy.calls
    for request in requests:
        cache.targets(*request)
    assert spy.calls == before


@pytest.mark.parametrize("damage", ["garbage", "empty", "truncated", "other shape", "other names"])
def test_damaged_targets_are_made_again(task, cache, spy, tmp_path, damage, caplog):
    """A warning is logged, the values are right again, and so is the file."""
    from safetensors.torch import save_file

    good = cache.targets(task, 2.0, task.images.train, SETTINGS)
    (path,) = tmp_path.iterdir()
    if damage == "garbage":
        path.write_bytes(b"no safetensors")
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "other shape":
        save_file({"estimates": torch.zeros(2), "gradients": torch.zeros(2)}, path)
    else:
        save_file({"estimates": good.estimates}, path)
    before = spy.calls
    again = cache.targets(task, 2.0, task.images.train, SETTINGS)
    assert spy.calls == before + 3
    assert torch.equal(again.estimates, good.estimates)
    assert "damaged" in caplog.text
    cache.targets(task, 2.0, task.images.train, SETTINGS)
    assert spy.calls == before + 3


@pytest.mark.parametrize("solver", ["pnp-fista", "red-fista"])
def test_tuned_settings_are_the_best_of_the_grid(cache, solver):
    """All thirty pairs recomputed by runs of their own with plain numbers."""
    task = small_task(iterations=3, count=10, noise=0.05, solver=solver)
    found = cache.tuned(task, 3.0)
    images = task.images.train.first(8)
    y, truth, largest = task.measure(images, 3.0), images.pixels, task.norm_squared(3.0)
    scores = {}
    for step in (0.1, 0.3, 0.6, 1.0, 1.25):
        for power in range(6):
            strength = 0.005 * (0.3 / 0.005) ** (power / 5)
            options = {"step": step / largest, "strength": strength, "iterations": 3}
            solve = (
                REDFISTA(task.prior, weight=largest, **options)
                if solver == "red-fista"
                else PnPFISTA(task.prior, **options)
            )
            estimate = solve.run(y, task.teacher(3.0), Identity()).estimate
            scores[step, strength] = psnr(estimate, truth).mean().item()
    best = max(scores, key=scores.get)
    assert found.step == best[0]
    assert found.strength == pytest.approx(best[1], rel=1e-5)
    assert (found.momentum, found.start, found.units) == ("textbook", "adjoint", "relative")
    assert max(scores.values()) > min(scores.values()) + 0.5  # the grid matters


def test_settings_that_explode_are_not_chosen(cache):
    """A prior that returns NaN above some strength: the best of the others wins."""

    def denoise(noisy, sigma):
        weak = torch.as_tensor(sigma) < 0.05
        return torch.where(weak, smoothing_prior()(noisy, sigma), torch.nan)

    task = replace(small_task(), prior=Prior("fragile", SIGMA, denoise))
    assert cache.tuned(task, 3.0).strength < 0.05


def test_tuned_settings_are_kept(task, cache, spy, tmp_path):
    """Read from disk the second time; a damaged file is made again."""
    first = cache.tuned(task, 2.0)
    assert spy.calls == 3  # thirty pairs in one batch
    assert TeacherCache(tmp_path).tuned(task, 2.0) == first
    assert spy.calls == 3
    (path,) = tmp_path.iterdir()
    for damage in ("{", "[]", '{"step": -1}', '{"step": "x"}', '{"surprise": 1}'):
        path.write_text(damage)
        before = spy.calls
        assert cache.tuned(task, 2.0) == first
        assert spy.calls == before + 3


def test_published_settings(task, cache):
    """The teacher's absolute step 0.7, all else as the published student's."""
    found = cache.published(task)
    assert (found.step, found.units, found.momentum) == (0.7, "absolute", "published")
    assert found.strength == pytest.approx(2 / 255)
    assert found.start == "adjoint"
    targets = cache.targets(task, 1.0, task.images.train, found)
    assert targets.step == 0.7


def test_batches_do_not_matter(cache, tmp_path, monkeypatch):
    """Five images at a time or all at once."""
    task = small_task(count=12, dtype=torch.float64)
    whole = cache.targets(task, 2.0, task.images.train, SETTINGS)
    monkeypatch.setattr(teachers, "BATCH", 5)
    parts = TeacherCache(tmp_path / "other").targets(task, 2.0, task.images.train, SETTINGS)
    torch.testing.assert_close(whole.estimates, parts.estimates)
    torch.testing.assert_close(whole.gradients, parts.gradients)


def test_what_reading_saves_is_counted(task, cache, tmp_path):
    """A cached result costs a fit as much as it cost the one that computed it."""
    images = task.images.train
    settings = cache.tuned(task, 2.0)
    cache.targets(task, 2.0, images, settings)
    assert cache.saved == 0.0
    again = TeacherCache(tmp_path)
    again.tuned(task, 2.0)
    tuning = again.saved
    again.targets(task, 2.0, images, settings)
    both = again.saved
    again.targets(task, 2.0, images, settings)
    assert 0 < tuning < both
    assert again.saved == pytest.approx(tuning + 2 * (both - tuning))


@pytest.mark.parametrize("solver", ["pnp-fista", "red-fista"])
@pytest.mark.parametrize("momentum", ["textbook", "published"])
def test_the_path_is_the_gradients_along_the_run(cache, solver, momentum):
    """Iteration by iteration by hand: gradients at the extrapolated points, then the estimate."""
    task = small_task(iterations=4, dtype=torch.float64, solver=solver)
    settings = SETTINGS.model_copy(update={"momentum": momentum})
    images, physics = task.images.train, task.teacher(2.0)
    found = cache.targets(task, 2.0, images, settings, path=True)
    assert found.path.shape == (6, 4, 1, 16, 16)
    largest = task.norm_squared(2.0)
    kind, extra = (REDFISTA, {"weight": 1.0 * largest}) if solver == "red-fista" else (PnPFISTA, {})
    own = kind(
        task.prior,
        step=0.9 / largest,
        strength=0.08,
        iterations=4,
        momentum=momentum,
        **extra,
    )
    y = task.measure(images, 2.0)
    state = own.start(y, physics, Identity())
    for k in range(4):
        expected = physics.A_adjoint(physics.A(state.point) - y)
        torch.testing.assert_close(found.path[:, k], expected, rtol=1e-10, atol=1e-12)
        state = own.advance(own.with_gradient(state), Identity())
    torch.testing.assert_close(found.estimates, state.iterate)
    assert not torch.allclose(found.path[:, 3], found.gradients)  # that one is at x_K


def test_with_and_without_a_path(task, cache, spy, tmp_path):
    """Estimates and gradients are the same bits; each kind is kept, and none read for the other."""
    images = task.images.train
    plain = cache.targets(task, 2.0, images, SETTINGS)
    assert plain.path is None
    before = spy.calls
    along = cache.targets(task, 2.0, images, SETTINGS, path=True)
    assert spy.calls > before
    assert torch.equal(plain.estimates, along.estimates)
    assert torch.equal(plain.gradients, along.gradients)
    before = spy.calls
    again = TeacherCache(tmp_path)
    assert torch.equal(again.targets(task, 2.0, images, SETTINGS, path=True).path, along.path)
    assert again.targets(task, 2.0, images, SETTINGS).path is None
    assert spy.calls == before
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_path_is_made_again(task, cache, tmp_path, caplog):
    """A file without it, or with one of another length."""
    from safetensors.torch import load_file, save_file

    good = cache.targets(task, 2.0, task.images.train, SETTINGS, path=True)
    (file,) = tmp_path.iterdir()
    kept = load_file(file)
    for wrong in (
        {name: part for name, part in kept.items() if name != "path"},
        kept | {"path": kept["path"][:, :2].contiguous()},
    ):
        save_file(wrong, file, metadata={"seconds": "1.0"})
        found = cache.targets(task, 2.0, task.images.train, SETTINGS, path=True)
        assert torch.equal(found.path, good.path)
    assert caplog.text.count("computed again") == 2


def test_batches_do_not_matter_to_the_path(cache, tmp_path, monkeypatch):
    """Five images at a time or all at once, in their order."""
    task = small_task(count=12, dtype=torch.float64)
    whole = cache.targets(task, 2.0, task.images.train, SETTINGS, path=True)
    monkeypatch.setattr(teachers, "BATCH", 5)
    parts = TeacherCache(tmp_path / "other").targets(
        task, 2.0, task.images.train, SETTINGS, path=True
    )
    torch.testing.assert_close(whole.path, parts.path)
