"""What is fitted on training images reconstructs them as images that it has never seen."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gaussian_images import SHAPE, gaussian_task

from dipa_bench import registry
from dipa_bench.data.images import ImageSet
from dipa_bench.learning import initial as initial_operators
from dipa_bench.learning import lmmse, unrolling
from dipa_bench.learning.cross_fitting import CrossFitted, folds, training_starts, without
from dipa_bench.metrics import psnr
from dipa_bench.parameters import build, defaults
from dipa_bench.solvers import Solver
from dipa_bench.testing.problems import small_task


def images_of(subjects, shape=SHAPE, seed=0):
    """Random images of some subjects."""
    pixels = torch.rand(len(subjects), *shape, generator=torch.Generator().manual_seed(seed))
    return ImageSet(pixels, tuple(f"{seed}-{i}" for i in range(len(subjects))), tuple(subjects))


@pytest.fixture(scope="module")
def alike():
    """Fewer Gaussian images than an LMMSE map has numbers; all splits from one law."""
    return gaussian_task(0.02, (60, 200, 4), per_subject=2)


# ---------------------------------------------------------------------------- folds


@pytest.mark.parametrize(
    ("subjects", "sizes"),
    [
        ("aabbccddee", [2] * 5),
        ("abcdefgh", [2, 2, 2, 1, 1]),
        ("aaaabcd", [4, 1, 1, 1]),
        ("abab", [2, 2]),
    ],
)
def test_a_subject_is_in_one_fold(subjects, sizes):
    found = folds(images_of(subjects), 5)
    assert sorted(place for fold in found for place in fold) == list(range(len(subjects)))
    assert [len(fold) for fold in found] == sizes
    owners = [{subjects[place] for place in fold} for fold in found]
    assert sum(map(len, owners)) == len(set(subjects))


def test_slices_of_one_subject_are_cut_into_blocks():
    assert folds(images_of("a" * 7), 3) == [[0, 1, 2], [3, 4], [5, 6]]
    assert folds(images_of("aa")) == [[0], [1]]


# ---------------------------------------------------------------------------- starts


def test_every_image_is_left_out_with_its_subject_alone():
    """With the mean image as the map: by hand, the mean of all other subjects' images."""
    images = images_of("aabbcd")
    task = small_task(shape=SHAPE)

    def mean(rest):
        return lambda y: rest.pixels.mean(0).expand(len(y), *SHAPE).clone()

    made = CrossFitted(task, images, mean(images), mean)
    found = made.out_of_fold(images)
    for place, subject in enumerate(images.subjects):
        others = [i for i, other in enumerate(images.subjects) if other != subject]
        torch.testing.assert_close(found[place], images.pixels[others].mean(0))
    other = images_of("xyz", seed=1)
    torch.testing.assert_close(made.out_of_fold(other), mean(images)(torch.zeros(3)))
    mixed = made.out_of_fold(images.at([4, 1]))
    torch.testing.assert_close(mixed, found[[4, 1]])
    torch.testing.assert_close(made(torch.zeros(2)), mean(images)(torch.zeros(2)))


def quality(task, starts, images):
    return psnr(starts, task.pixels(images)).mean().item()


def test_the_lmmse_start_of_training_images_is_as_good_as_of_others(alike):
    """Within 0.3 dB; in sample it is more than 0.7 dB better than on validation images."""
    train, validation = alike.images.train, alike.images.validation
    made = lmmse.cross_fitted(alike)
    elsewhere = quality(alike, made.out_of_fold(validation), validation)
    assert quality(alike, made(alike.measure(validation)), validation) == elsewhere
    assert quality(alike, made.out_of_fold(train), train) == pytest.approx(elsewhere, abs=0.3)
    assert quality(alike, made(alike.measure(train)), train) > elsewhere + 0.7


def test_the_folds_maps_are_lmmse_maps_of_the_rest(alike):
    made = lmmse.cross_fitted(alike)
    whole, train = lmmse.fit(alike), alike.images.train
    assert torch.equal(made.whole.matrix, whole.matrix)
    left_out = folds(train)[2]
    rest = [place for place in range(len(train)) if place not in left_out]
    x = train.pixels[rest].double()
    y = alike.student.A(x)
    x, mean, y, measured_mean = x.flatten(1), x.mean(0), y.flatten(1), y.mean(0)
    cross = np.cov(x.T.numpy(), y.T.numpy(), bias=True)
    cxy, cyy = cross[:144, 144:], cross[144:, 144:]
    damping = 0.05**2 + whole.ridge * np.diag(cyy).mean()
    weights = cxy @ np.linalg.inv(cyy + damping * np.eye(len(cyy)))
    observed = alike.measure(train.at(left_out)) - measured_mean
    expected = mean.flatten() + observed.flatten(1) @ torch.from_numpy(weights).T
    found = made.out_of_fold(train)[left_out].flatten(1)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


def test_a_start_that_memorises_is_caught(alike):
    """The training image with the nearest measurement: perfect in sample, useless elsewhere."""

    def nearest(images):
        known = alike.measure(images).flatten(1)
        return lambda y: alike.pixels(images)[torch.cdist(y.flatten(1), known).argmin(1)]

    train, validation = alike.images.train, alike.images.validation
    made = CrossFitted(alike, train, nearest(train), nearest)
    elsewhere = quality(alike, made.out_of_fold(validation), validation)
    assert quality(alike, made(alike.measure(train)), train) > elsewhere + 50
    assert quality(alike, made.out_of_fold(train), train) == pytest.approx(elsewhere, abs=0.5)


# ---------------------------------------------------------------------------- who uses them


def fit(name, task, context, **values):
    method = registry.get("methods", name)
    flat = defaults(method.parameters, task.solver, task) | {"solve.start": "lmmse"} | values
    return method.fit(task, build(method.parameters, flat), context)


def farthest(images, others):
    """The largest distance of an image to its nearest among others."""
    return (images[:, None] - others[None]).flatten(2).norm(dim=2).amin(1).max().item()


@pytest.mark.parametrize(
    "name", ["ldipa", "dense+supervised", "pointwise+imitated", "ndipa/cnn", "dense+greedy"]
)
def test_training_begins_out_of_fold_and_validation_does_not(name, context, monkeypatch):
    """Seen from the solver's start."""
    task = small_task(iterations=2, count=10)
    given, seen = context(epochs=1, batch_size=4), []
    made = given.lmmse(task)
    expected = made.out_of_fold(task.images.train)
    given.lmmse = lambda of: made
    start = Solver.start

    def watched(self, measurement, physics, preconditioner, first=None):
        state = start(self, measurement, physics, preconditioner, first)
        if self.start_map is not None:
            seen.append((first is not None, state.iterate.detach().clone()))
        return state

    monkeypatch.setattr(Solver, "start", watched)
    fit(name, task, given)
    trained = torch.cat([iterate for told, iterate in seen if told])
    rest = [iterate for told, iterate in seen if not told]
    assert len(trained) >= len(expected)
    assert farthest(trained, expected) == 0
    inside = made(task.measure(task.images.train))
    assert farthest(expected, inside) > 1e-3
    if rest:  # validation images start from the map of all
        assert farthest(torch.cat(rest), made(task.measure(task.images.validation))) < 1e-6


@pytest.mark.parametrize("initial", ["lmmse", "mismatch"])
def test_a_closed_form_is_trained_as_if_without_each_fold(initial, context, monkeypatch):
    """Each batch is of one fold; P is what other images alone give, moved as far as training has.

    What other images alone give is fitted by the rule ``closed-form`` on a task that has no others.
    """
    task = small_task(iterations=2, count=10)
    given, seen = context(epochs=2, batch_size=4), []
    parts = folds(task.images.train, initial_operators.FOLDS)

    class Watched(unrolling._Training):
        def _step(self, place, fold):
            before = self._module.matrix.detach().clone()
            assert set(place.tolist()) <= set(parts[fold])
            loss = self._loss

            def told(batch):
                seen.append((fold, self._module.matrix.detach() - before))
                return loss(batch)

            self._loss = told
            number = super()._step(place, fold)
            self._loss = loss
            moved = (self._module.matrix.detach() - before).abs().max()
            assert 0 < moved <= 1.1e-5  # by Adam alone: the fold's difference is taken back
            return number

    monkeypatch.setattr(unrolling, "_Training", Watched)
    values = {"train.initial": initial, "train.learning_rate": 1e-5}
    fit("dense+distilled-r", task, given, **values)
    assert {fold for fold, _ in seen} == set(range(len(parts)))
    assert len(seen) == 2 * sum(-(-len(part) // 4) for part in parts)

    def alone(images):
        target = "truth" if initial == "lmmse" else "mismatch"
        values = {"target": target, "ridge": given.notes["ridge"]}
        splits = replace(task.images, train=images)
        other = replace(task, images=splits)
        return fit("dense+closed-form", other, context(), **values).preconditioner.matrix

    whole = alone(task.images.train)
    for fold, difference in seen:
        rest = without(task.images.train, parts[fold])
        torch.testing.assert_close(difference, alone(rest) - whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "initial"),
    [
        ("dense+distilled", "identity"),
        ("dense+distilled-r", "scaled"),
        ("low-rank+imitated", "lmmse"),
    ],
)
def test_other_initial_operators_are_trained_as_they_are(name, initial, context, monkeypatch):
    task = small_task(iterations=2, count=10)
    told = []
    real = unrolling._Training._step
    monkeypatch.setattr(
        unrolling._Training,
        "_step",
        lambda self, place, fold: (told.append(fold), real(self, place, fold))[1],
    )
    fit(name, task, context(epochs=1, batch_size=4), **{"train.initial": initial})
    assert told and set(told) == {None}


def test_starts_that_are_not_fitted_stay(context):
    task = small_task(iterations=2)
    given = context()
    method = registry.get("methods", "identity")
    for start in ("adjoint", "zero", "preconditioned"):
        flat = defaults(method.parameters, task.solver, task) | {"solve.start": start}
        solver = method.fit(task, build(method.parameters, flat), given).solver
        assert training_starts(solver, task.images.train) is None
