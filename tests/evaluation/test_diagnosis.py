"""Rank, conditioning and null space against numpy's pseudo-inverse."""

import numpy as np
import pytest
import torch

from dipa_bench.evaluation.denoiser_bound import denoiser_bound
from dipa_bench.evaluation.diagnosis import diagnose
from dipa_bench.learning import lmmse
from dipa_bench.learning.teachers import TeacherCache
from dipa_bench.metrics import psnr
from dipa_bench.tasks import spectrum
from dipa_bench.testing.problems import small_task


@pytest.fixture(scope="module")
def task():
    return small_task(shape=(1, 12, 16), dtype=torch.float64, iterations=3)


@pytest.fixture(scope="module")
def found(task, tmp_path_factory):
    return diagnose(task, TeacherCache(tmp_path_factory.mktemp("teachers")), lmmse.fit)


def test_names(found):
    """The student first, then the teachers, worst conditioned first."""
    names = [spectrum.name for spectrum in found.spectra]
    assert names == ["student", *(f"teacher factor {factor}" for factor in (3, 2, 1))]


@pytest.mark.parametrize(("place", "factor"), list(enumerate([4, 3, 2, 1])))
def test_spectra(task, found, dense_sr, place, factor):
    """Sizes, rank, extreme eigenvalues, condition, and energies by the projector I - A^+ A."""
    spectrum, a = found.spectra[place], dense_sr(12, 16, factor)
    eigenvalues = np.linalg.svd(a, compute_uv=False) ** 2
    kept = eigenvalues[eigenvalues > 1e-6 * eigenvalues[0]]
    assert (spectrum.measurements, spectrum.pixels) == a.shape
    assert spectrum.rank == len(kept)
    assert spectrum.largest == pytest.approx(eigenvalues[0])
    assert spectrum.smallest == pytest.approx(kept[-1], rel=1e-5)
    assert spectrum.condition == pytest.approx(eigenvalues[0] / kept[-1], rel=1e-5)
    outside = np.eye(a.shape[1]) - np.linalg.pinv(a, rcond=1e-3) @ a
    images = task.images.train.pixels.double().flatten(1).numpy()
    for values, share in (
        (images, spectrum.null_energy),
        (images - images.mean(0), spectrum.null_detail),
    ):
        expected = ((values @ outside) ** 2).sum() / (values**2).sum()
        assert share == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_single_precision_gives_the_same_rank(found, tmp_path, dense_sr):
    """float32 operators are no reason to count rounding noise as rank."""
    single = diagnose(
        small_task(shape=(1, 12, 16), iterations=3), TeacherCache(tmp_path), lmmse.fit
    ).spectra
    assert [one.rank for one in single] == [one.rank for one in found.spectra]


def test_references(task, found, tmp_path):
    """Mean validation PSNR of the controls, the LMMSE map and each tuned teacher."""
    images = task.images.validation
    truth, measured = task.pixels(images), task.measure(images)

    def mean(estimate):
        return psnr(estimate, truth).mean().item()

    assert found.images == len(images)
    assert found.references["adjoint"] == pytest.approx(mean(task.student.A_adjoint(measured)))
    assert found.references["LMMSE map"] == pytest.approx(mean(lmmse.fit(task)(measured)))
    teachers = [found.references[f"teacher factor {factor}, tuned"] for factor in (3, 2, 1)]
    assert all(value > found.references["adjoint"] + 3 for value in teachers)
    assert "bicubic" in found.references


def test_large_operators_have_no_full_spectrum(task, tmp_path, monkeypatch):
    """Above the limit only sizes and lambda_max are given, and the sentence says so."""
    monkeypatch.setattr(spectrum, "LARGEST", 11)
    found = diagnose(task, TeacherCache(tmp_path), lmmse.fit)
    student = found.spectra[0]
    assert student.rank is student.condition is student.null_energy is None
    assert student.largest == pytest.approx(task.norm_squared())
    assert "smaller size" in found.sentence()


def test_the_bound_is_the_priors(task, found):
    """That of the task's own prior."""
    assert found.denoiser == denoiser_bound(task)


def test_the_sentence_gives_the_figures(found):
    """Condition number and share of the null space of the student."""
    student = found.spectra[0]
    assert f"{student.condition:.3g}" in found.sentence()
    assert f"{100 * student.null_detail:.0f}%" in found.sentence()


def test_no_test_image_is_read(task, found):
    """The diagnosis looks at training and validation images only."""
    assert task.images.reads == []
