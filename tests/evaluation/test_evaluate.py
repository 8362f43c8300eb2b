"""From estimates to figures and tables."""

import math
import time

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio

from baselines.controls import bicubic
from dipa_bench import names
from dipa_bench.errors import Diverged
from dipa_bench.evaluation import evaluate as module
from dipa_bench.evaluation.evaluate import evaluate
from dipa_bench.methods import Direct, Iterative
from dipa_bench.preconditioners import Identity
from dipa_bench.solvers import PnPFISTA
from dipa_bench.tasks.spectrum import matrix
from dipa_bench.testing.problems import small_task


def iterative(task, iterations=4):
    solver = PnPFISTA(
        task.prior, step=1 / task.norm_squared(), strength=0.05, iterations=iterations
    )
    return Iterative(solver, Identity())


@pytest.fixture(scope="module")
def task():
    return small_task(dtype=torch.float64, count=7)


@pytest.fixture(scope="module")
def evaluation(task):
    return evaluate(iterative(task), task, task.images.validation, record=True, with_quality=True)


def test_figures_are_of_the_estimates(task, evaluation):
    """PSNR by scikit-image from the kept estimates; means, pooled figure and costs."""
    truth = task.images.validation.pixels.numpy()
    found = evaluation.estimates.numpy()
    own = [peak_signal_noise_ratio(t, f, data_range=1.0) for t, f in zip(truth, found, strict=True)]
    np.testing.assert_allclose(evaluation.psnr, own)
    metrics = evaluation.metrics("val")
    assert metrics["val/psnr"] == pytest.approx(np.mean(own))
    assert metrics["val/psnr_pooled"] == pytest.approx(
        peak_signal_noise_ratio(truth, found, data_range=1.0)
    )
    assert metrics["val/ssim"] == pytest.approx(evaluation.quality["ssim"].mean().item())
    assert metrics["cost/operator_calls"] == 1 + 2 * 4
    assert metrics["cost/denoiser_calls"] == 4
    assert metrics["cost/seconds"] > 0
    assert set(evaluation.metrics("test")) == {key.replace("val/", "test/") for key in metrics}


def test_scores_beside_psnr(task, evaluation):
    """Errors from their definitions, with numpy's pseudo-inverse of the dense operator."""
    truth = task.images.validation.pixels.double().flatten(1).numpy()
    error = evaluation.estimates.flatten(1).numpy() - truth
    like = torch.zeros(1, dtype=torch.float64)
    dense = matrix(task.student, task.shape, like).numpy()
    seen = error @ (np.linalg.pinv(dense, rcond=1e-3) @ dense).T
    energy = (truth**2).sum(1)
    quality = {name: values.numpy() for name, values in evaluation.quality.items()}
    np.testing.assert_allclose(quality["nmse"], (error**2).sum(1) / energy)
    np.testing.assert_allclose(quality["range_error"], (seen**2).sum(1) / energy)
    np.testing.assert_allclose(quality["null_error"], ((error - seen) ** 2).sum(1) / energy)
    curves = evaluation.curve_table(0)
    best = curves.groupby("image")["psnr"].max()[list(task.images.validation.names)]
    np.testing.assert_allclose(quality["psnr_best"], best)
    assert (quality["psnr_best"] >= evaluation.psnr.numpy()).all()
    assert set(quality) == set(names.QUALITY) - {"lpips"}  # of larger images
    assert evaluation.metrics("test")["test/null_error"] == quality["null_error"].mean()


def test_lpips_is_a_score_where_it_is_known(task, monkeypatch):
    monkeypatch.setattr(module, "lpips", lambda found, true: (found - true).flatten(1).norm(dim=1))
    found = evaluate(iterative(task), task, task.images.validation, with_quality=True)
    error = found.estimates - task.images.validation.pixels
    torch.testing.assert_close(found.quality["lpips"], error.flatten(1).norm(dim=1))
    assert found.metrics("val")["val/lpips"] == found.quality["lpips"].mean()


@pytest.mark.parametrize("iterations", [2, 60])
def test_a_rule_without_truth_stops_where_little_moves(task, iterations):
    """At the first iteration that moves an image by a hundredth of its norm, else at the last."""
    images = task.images.validation
    found = evaluate(iterative(task, iterations), task, images, record=True, with_quality=True)
    norms = np.linalg.norm(found.estimates.flatten(1).numpy(), axis=1)
    curves, stops = found.curve_table(0), found.quality["stopped_at"].numpy()
    for place, name in enumerate(images.names):
        run = curves[curves["image"] == name].set_index("iteration")
        moves = run["step_norm"].loc[1:]
        stop = next((k for k in moves.index if moves[k] <= 0.01 * norms[place]), iterations)
        assert stops[place] == stop
        assert found.quality["psnr_stopped"][place] == pytest.approx(run["psnr"][stop])
    assert (stops < iterations).all() == (iterations == 60)


def test_what_is_not_known_is_left_out(task, monkeypatch):
    """Without curves there is no best iteration, of a large operator no projection."""
    run = iterative(task)
    found = evaluate(run, task, task.images.validation, with_quality=True)
    assert set(found.quality) == {"ssim", "nmse", "range_error", "null_error"}
    monkeypatch.setitem(task.__dict__, "onto_range", None)
    found = evaluate(run, task, task.images.validation, with_quality=True)
    assert set(found.quality) == {"ssim", "nmse"}
    assert not evaluate(run, task, task.images.validation).quality


def test_image_table(task, evaluation):
    """One row per image, in order, with its subject."""
    table = evaluation.image_table(seed=3)
    images = task.images.validation
    assert table["image"].tolist() == list(images.names)
    assert table["subject"].tolist() == list(images.subjects)
    assert table["seed"].unique().tolist() == [3]
    np.testing.assert_allclose(table["psnr"], evaluation.psnr)
    np.testing.assert_allclose(table["ssim"], evaluation.quality["ssim"])


def test_curve_table_is_consistent(task, evaluation):
    """(K + 1) rows per image; each equals a shorter run's PSNR and residual for that image."""
    table = evaluation.curve_table(seed=1)
    images = task.images.validation
    assert len(table) == 5 * 7
    measured, truth = task.measure(images), task.pixels(images)
    starts = task.student.A_adjoint(measured)
    for iteration in range(5):
        rows = table[table["iteration"] == iteration]
        assert rows["image"].tolist() == list(images.names)
        estimate = (
            iterative(task, iteration).run(measured, task.student).estimate if iteration else starts
        )
        mse = (estimate - truth).square().mean((1, 2, 3))
        residual = (task.student.A(estimate) - measured).flatten(1).norm(dim=1)
        np.testing.assert_allclose(rows["psnr"], -10 * torch.log10(mse), rtol=1e-9)
        np.testing.assert_allclose(rows["residual"], residual, rtol=1e-9)
    last = table[table["iteration"] == 4]
    np.testing.assert_allclose(last["psnr"], evaluation.image_table(1)["psnr"], rtol=1e-9)
    assert (table[table["iteration"] == 0]["step_norm"] == 0).all()


def test_batches_do_not_matter(task, evaluation, monkeypatch):
    """Three images at a time: the same estimates, curves in the same order, the same costs."""
    monkeypatch.setattr(module, "BATCH", 3)
    parts = evaluate(iterative(task), task, task.images.validation, record=True)
    torch.testing.assert_close(parts.estimates, evaluation.estimates)
    for name in ("mse", "residual", "step_norm"):
        expected = getattr(evaluation.curves, name)
        torch.testing.assert_close(getattr(parts.curves, name), expected)
    assert parts.operator_calls == evaluation.operator_calls


def test_methods_without_iterations(task):
    """One row per image, no curve; ssim only when asked for."""
    found = evaluate(Direct(bicubic), task, task.images.validation, record=True)
    table = found.curve_table(0)
    assert table["iteration"].tolist() == [0] * 7
    np.testing.assert_allclose(table["psnr"], found.psnr)
    assert table["residual"].isna().all()
    assert "val/ssim" not in found.metrics("val")
    assert found.operator_calls == 0


@pytest.mark.parametrize(
    ("value", "lost"), [(math.nan, 1), (math.inf, 1), (1e3, 1), (5.0, 0), (-9.0, 0)]
)
def test_lost_images_are_a_divergence(task, value, lost):
    """NaN, infinity or a PSNR under -20 dB in one image of seven; a merely bad one passes."""

    def spoil(measured, physics):
        estimate = bicubic(measured, physics)
        estimate[2] = value
        return estimate

    found = evaluate(Direct(spoil), task, task.images.validation)
    if not lost:
        assert found.check() is found
        return
    with pytest.raises(Diverged, match="1 of 7 reconstructions left the image range"):
        found.check()


def test_one_nan_pixel_is_enough(task):
    """A single pixel that is not a number."""

    def spoil(measured, physics):
        estimate = bicubic(measured, physics)
        estimate[5, 0, 3, 3] = math.nan
        return estimate

    with pytest.raises(Diverged, match="1 of 7"):
        evaluate(Direct(spoil), task, task.images.validation).check()


def test_the_clock_leaves_out_the_scoring(task, monkeypatch):
    """Seconds per image of the runs; a slow SSIM does not count."""

    def slow(estimates, truth):
        time.sleep(0.3)
        return torch.zeros(len(truth))

    def sleepy(measured, physics):
        time.sleep(0.07)
        return bicubic(measured, physics)

    monkeypatch.setattr(module, "ssim", slow)
    found = evaluate(Direct(sleepy), task, task.images.validation, with_quality=True)
    assert 0.07 / 7 <= found.seconds < 0.3 / 7


def test_gradients_are_not_kept(task):
    """Also for an operator that could be trained."""
    from dipa_bench.preconditioners import Dense

    made = Iterative(iterative(task).solver, Dense(task.shape).double())
    assert not evaluate(made, task, task.images.validation).estimates.requires_grad
