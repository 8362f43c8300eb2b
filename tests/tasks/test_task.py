"""A task made concrete: measurements, digests, ranges."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dipa_bench.data.images import ImageSet, Splits
from dipa_bench.errors import UserError
from dipa_bench.priors.base import SIGMA, Prior
from dipa_bench.testing.problems import small_task


def subset(images, index):
    return ImageSet(
        images.pixels[index],
        tuple(images.names[i] for i in index),
        tuple(images.subjects[i] for i in index),
    )


@pytest.mark.parametrize("label", [None, 3.0, 1.0])
def test_an_images_measurement_does_not_depend_on_its_company(label):
    """Any subset in any order gives the same bits, and so does a second task."""
    task, twin = small_task(), small_task()
    images = task.images.train
    whole = task.measure(images, label)
    index = [4, 0, 2]
    assert torch.equal(task.measure(subset(images, index), label), whole[index])
    assert torch.equal(twin.measure(images, label), whole)


def test_clean_part_is_the_operator(dense_sr):
    """Without noise y = A x with the dense A."""
    task = small_task(dtype=torch.float64, noise=0.0)
    x = task.images.train.pixels.double().flatten(1).numpy()
    found = task.measure(task.images.train).flatten(1).numpy()
    np.testing.assert_allclose(found, x @ dense_sr(16, 16, 4).T, atol=1e-13)


@pytest.mark.parametrize("noise", [0.01, 0.2])
def test_noise_level(noise):
    """Mean 0 and the wanted standard deviation over 4,096 samples; white, Gaussian kurtosis."""
    task = small_task(shape=(1, 64, 64), noise=noise, count=16)
    clean = replace(task, noise=0.0)
    drawn = (task.measure(task.images.train) - clean.measure(task.images.train)) / noise
    assert drawn.mean().item() == pytest.approx(0, abs=0.06)
    assert drawn.std().item() == pytest.approx(1, rel=0.05)
    assert (drawn.pow(4).mean() / drawn.pow(2).mean() ** 2).item() == pytest.approx(3, abs=0.4)
    flat = drawn.flatten(1)
    correlation = np.corrcoef(flat.numpy())
    assert np.abs(correlation - np.eye(16)).max() < 0.3  # images have draws of their own


def test_noise_depends_on_seed_name_and_operator():
    """Another seed, another image name or another operator draws anew."""
    task = small_task(noise=0.1)
    clean = replace(task, noise=0.0)
    images = task.images.train
    renamed = replace(images, names=tuple(f"x{name}" for name in images.names))

    def noise(which, images, label=None):
        return which.measure(images, label) - clean.measure(images, label)

    base = noise(task, images)
    assert not torch.allclose(base, noise(replace(task, seed=1), images))
    assert not torch.allclose(base, noise(task, renamed))
    assert not torch.allclose(noise(task, images, 3.0)[..., :4, :4], base)


def test_digest_follows_every_ingredient():
    """Equal for equal tasks; different for each thing that measurements or priors depend on."""
    base = small_task()
    assert small_task().digest == base.digest
    pixels = base.images.train.pixels.clone()
    pixels[0, 0, 0, 0] = 1 - pixels[0, 0, 0, 0]
    train = replace(base.images.train, pixels=pixels)
    other_images = Splits(train, base.images.validation, base.images._test)
    renamed = Splits(
        replace(base.images.train, names=tuple("abcdef")), base.images.validation, base.images._test
    )
    weights = torch.nn.Linear(2, 2)
    changed = [
        small_task(noise=0.02),
        small_task(seed=5),
        small_task(dtype=torch.float64),
        small_task(options={"factor": 2}),
        small_task(options={"blur": 1.5}),
        small_task(shape=(1, 16, 20)),
        replace(base, images=other_images),
        replace(base, images=renamed),
        replace(base, prior=Prior("other", SIGMA, base.prior._denoise)),
        replace(base, prior=Prior("smoothing", SIGMA, base.prior._denoise, identity="v2")),
        replace(base, prior=Prior("smoothing", SIGMA, weights)),
        replace(base, prior=Prior("smoothing", SIGMA, torch.nn.Linear(2, 2))),
    ]
    digests = [base.digest, *(task.digest for task in changed)]
    assert len(set(digests)) == len(digests)


def test_teachers_are_made_once_and_unknown_ones_refused():
    """The same object each time; the error names the axis and a label that exists."""
    task = small_task()
    assert task.teacher(2.0) is task.teacher(2.0)
    assert task.physics(None) is task.student
    with pytest.raises(UserError, match=r"teacher factor '5.0': did you mean '3.0'"):
        task.teacher(5.0)


def test_largest_of_student_and_teachers(dense_sr):
    """Each operator's own lambda_max."""
    task = small_task(dtype=torch.float64)
    for label, factor in ((None, 4), (3.0, 3), (2.0, 2), (1.0, 1)):
        true = np.linalg.norm(dense_sr(16, 16, factor), 2) ** 2
        assert task.norm_squared(label) == pytest.approx(true, rel=1e-6)


def test_ranges_come_from_prior_and_operators():
    """`strength` is the prior's, `teacher` the labels with the middle one as default."""
    task = small_task()
    strength, teacher = task.setting("strength"), task.setting("teacher")
    assert (strength.default, strength.search.low, strength.search.high) == (0.1, 0.005, 0.3)
    assert strength.search.log
    assert teacher.search.choices == (3.0, 2.0, 1.0)
    assert teacher.default == 2.0
    with pytest.raises(KeyError):
        task.setting("colour")


def test_published_settings():
    """Absolute student step 0.4, published momentum, start A^T y, RED weight 1 (paper's page)."""
    values = small_task().published_solve()
    assert values["solve.step"] == 0.4
    assert values["solve.units"] == "absolute"
    assert values["solve.momentum"] == "published"
    assert values["solve.start"] == "adjoint"
    assert values["solve.strength"] == pytest.approx(2 / 255)
    assert "solve.weight" not in values
    assert small_task(solver="red-fista").published_solve()["solve.weight"] == 1.0


def test_test_images_may_have_another_noise():
    """Training keeps its level; the tested task has the other, and the same draws."""
    task = small_task(noise=0.01, test_noise=0.1)
    images = task.images.train
    clean = replace(task, noise=0.0, test_noise=None).measure(images)
    mild, strong = task.measure(images) - clean, task.tested.measure(images) - clean
    torch.testing.assert_close(strong, 10 * mild, rtol=1e-3, atol=1e-5)
    for level in (None, 0.01):
        same = replace(task, test_noise=level)
        assert same.tested is same
