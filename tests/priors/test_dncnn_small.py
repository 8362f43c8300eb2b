"""The shipped gray denoiser: its symmetries, its file, and its lead over classical denoisers."""

from __future__ import annotations

import math
from pathlib import Path

import compare_classical
import numpy as np
import pytest
import torch
import train_dncnn_small
from compare_classical import (
    Bilateral,
    NoisySet,
    NonLocalMeans,
    SplitBregman,
    TotalVariation,
    Wavelet,
    as_denoise,
    held_out_crops,
)
from train_dncnn_small import TrainingPlan

from dipa_bench.data.photographs import HELD_OUT, TRAINING, PackagedImage
from dipa_bench.errors import UserError
from dipa_bench.priors import dncnn_small
from dipa_bench.priors.dncnn_small import DnCNNSmall, load_dncnn_small, save_dncnn_small

# What `python tests/denoiser/compare_classical.py --package skimage` finds best, and second.
CLASSICAL = {
    15: [NonLocalMeans(1.2, fast=False), TotalVariation(0.75)],
    25: [NonLocalMeans(0.7, fast=True), TotalVariation(0.75)],
    50: [TotalVariation(0.9), NonLocalMeans(0.5, fast=True, patch=7, distance=11)],
}
LEAD = 0.3
"""Decibels by which the prior must beat the best classical one (measured: see the printout)."""


@pytest.fixture(scope="module")
def prior() -> DnCNNSmall:
    return load_dncnn_small()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def noisy_images(shape, generator, dtype=torch.float32):
    return torch.rand(shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize("scale", [1e-3, 0.3, 7.0, 255.0])
def test_scales_with_image_and_sigma(generator, scale):
    prior = load_dncnn_small().double()
    noisy = noisy_images((2, 1, 17, 24), generator, torch.float64)
    torch.testing.assert_close(prior(scale * noisy, scale * 0.1), scale * prior(noisy, 0.1))


def test_scaling_by_a_power_of_two_is_exact_in_float32(prior, generator):
    noisy = noisy_images((2, 1, 16, 16), generator)
    assert torch.equal(prior(4 * noisy, 0.4), 4 * prior(noisy, 0.1))


@pytest.mark.parametrize("shape", [(16, 16), (15, 19)])
def test_follows_a_constant(generator, shape):
    prior = load_dncnn_small().double()
    noisy = noisy_images((1, 1, *shape), generator, torch.float64)
    torch.testing.assert_close(prior(noisy - 0.7, 0.1), prior(noisy, 0.1) - 0.7)


def test_keeps_a_constant_image_without_noise(prior):
    flat = torch.full((1, 1, 20, 20), 0.4)
    torch.testing.assert_close(prior(flat, 0.0), flat)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (2, 7), (3, 3), (33, 32), (32, 45), (31, 29)])
def test_keeps_any_size(prior, generator, shape):
    denoised = prior(noisy_images((2, 1, *shape), generator), 0.1)
    assert denoised.shape == (2, 1, *shape)
    assert denoised.isfinite().all()


def test_an_odd_size_repeats_the_last_row_and_column(prior, generator):
    odd = noisy_images((1, 1, 15, 17), generator)
    even = torch.nn.functional.pad(odd, (0, 1, 0, 1), mode="replicate")
    torch.testing.assert_close(prior(odd, 0.1), prior(even, 0.1)[..., :15, :17])


@pytest.mark.parametrize("size", [(6, 6), (5, 7)])
def test_gradients_match_finite_differences(generator, size):
    prior = load_dncnn_small().double()
    noisy = noisy_images((2, 1, *size), generator, torch.float64).requires_grad_()
    sigma = torch.tensor([0.1, 0.3], dtype=torch.float64).reshape(2, 1, 1, 1).requires_grad_()
    assert torch.autograd.gradcheck(prior, (noisy, sigma), eps=1e-7, atol=1e-5)


def test_images_of_a_batch_do_not_mix(prior, generator):
    noisy = noisy_images((5, 1, 18, 21), generator)
    sigma = torch.tensor([0.0, 0.05, 0.1, 0.2, 0.4])
    apart = [prior(noisy[i : i + 1], float(sigma[i])) for i in range(5)]
    torch.testing.assert_close(prior(noisy, sigma.reshape(5, 1, 1, 1)), torch.cat(apart))


@pytest.mark.parametrize(
    "sigma",
    [0.1, *(torch.full(shape, 0.1) for shape in [(), (1,), (3,), (1, 1, 1, 1)])],
)
def test_takes_sigma_in_every_usual_form(prior, generator, sigma):
    noisy = noisy_images((3, 1, 8, 8), generator)
    expected = prior(noisy, torch.full((3, 1, 1, 1), 0.1))
    torch.testing.assert_close(prior(noisy, sigma), expected)


@pytest.mark.parametrize("sigma", [torch.ones(2), torch.ones(1, 3), torch.ones(3, 1, 8, 8)])
def test_refuses_a_sigma_that_does_not_fit(prior, sigma):
    with pytest.raises(ValueError, match="one value per image"):
        prior(torch.zeros(3, 1, 8, 8), sigma)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (8, 8), (1, 8, 8)])
def test_refuses_images_that_are_not_gray(prior, shape):
    with pytest.raises(ValueError, match="B x 1 x H x W"):
        prior(torch.zeros(shape), 0.1)


def test_refuses_a_network_without_layers():
    with pytest.raises(ValueError, match="depth=1"):
        DnCNNSmall(depth=1)


def test_is_small_frozen_and_in_eval_mode(prior):
    parameters = list(prior.parameters())
    assert sum(parameter.numel() for parameter in parameters) <= 230_000
    assert not any(parameter.requires_grad for parameter in parameters)
    assert not prior.training
    assert not list(prior.buffers())
    assert all(name.endswith("weight") for name in prior.state_dict())


def test_file_is_under_a_megabyte():
    file = Path(dncnn_small.__file__).parent.joinpath(*dncnn_small.WEIGHTS)
    assert file.stat().st_size < 1_000_000
    metadata = dncnn_small.read_metadata(file)
    assert int(metadata["steps"]) > 0
    assert set(metadata["held_out"].split()) == {image.name for image in HELD_OUT}
    assert set(metadata["images"].split()) == {image.name for image in TRAINING}


def test_counts_its_operations():
    network = DnCNNSmall(features=3, depth=2)
    assert network.flops_per_pixel == 2 * (5 * 3 + 3 * 4) * 9 / 4


def test_round_trip_through_a_file(tmp_path, generator):
    network = DnCNNSmall(features=6, depth=3)
    save_dncnn_small(network, tmp_path / "net.safetensors", {"seed": "0"})
    restored = load_dncnn_small(tmp_path / "net.safetensors")
    assert (restored.features, restored.depth) == (6, 3)
    assert dncnn_small.read_metadata(tmp_path / "net.safetensors")["seed"] == "0"
    noisy = noisy_images((1, 1, 9, 8), generator)
    torch.testing.assert_close(restored(noisy, 0.1), network(noisy, 0.1))


def test_a_file_without_architecture_is_named(tmp_path):
    path = tmp_path / "foreign.safetensors"
    dncnn_small.save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"foreign\.safetensors"):
        load_dncnn_small(path)


def test_training_learns_and_repeats(generator):
    images = [torch.rand(1, 1, 64, 64, generator=generator) for _ in range(2)]
    plan = TrainingPlan(steps=4, batch=2, side=16, features=4, depth=2, bfloat16=False)
    first, steps = train_dncnn_small.train(plan, images, images[:1])
    second, _ = train_dncnn_small.train(plan, images, images[:1])
    assert steps == 4
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_crops_are_clean_pieces_of_the_images(generator):
    image = torch.rand(1, 1, 50, 60, generator=generator)
    crops = train_dncnn_small.CropSampler([image], 16, generator).batch(7)
    assert crops.shape == (7, 1, 16, 16)
    assert 0 <= crops.min() and crops.max() <= 1


def test_refuses_a_crop_larger_than_a_shrunk_image(generator):
    with pytest.raises(ValueError, match="crop <= 18"):
        train_dncnn_small.CropSampler([torch.zeros(1, 1, 50, 60)], 32, generator)


def test_noise_levels_cover_the_range(generator):
    sigma = train_dncnn_small.draw_sigma(4000, generator)
    assert sigma.shape == (4000, 1, 1, 1)
    assert 0 <= sigma.min() and 95 / 255 < sigma.max() <= 100 / 255
    assert (sigma < 15 / 255).float().mean() == pytest.approx(0.2 + 0.8 * 0.15, abs=0.03)


def test_learning_rate_rises_and_falls():
    rates = [train_dncnn_small.one_cycle(progress / 100, 1.0) for progress in range(101)]
    assert max(rates) == pytest.approx(1.0)
    assert 0 < rates[0] < 0.1 and rates[-1] == pytest.approx(0, abs=1e-9)
    assert np.argmax(rates) == 5


def test_held_out_images_are_not_trained_on():
    assert len(HELD_OUT) >= 6
    assert not set(HELD_OUT) & set(TRAINING)
    assert PackagedImage("pywt", "data/camera.npz") not in TRAINING


def test_a_missing_package_is_named():
    with pytest.raises(
        UserError, match=r"no_such_package_of_images.*pip install no_such_package_of_images"
    ):
        PackagedImage("no_such_package_of_images", "a.png").load()
    with pytest.raises(UserError, match=r"no data/none\.png"):
        PackagedImage("skimage", "data/none.png").load()


@pytest.mark.parametrize(
    "denoise",
    [
        NonLocalMeans(0.7, fast=True),
        NonLocalMeans(1.0, fast=False),
        TotalVariation(0.75),
        SplitBregman(1.6, isotropic=False),
        Wavelet("BayesShrink", "db2"),
        Wavelet("VisuShrink", "db2", "hard", 0.75),
        Bilateral(1.5, 2.0),
    ],
    ids=str,
)
def test_classical_denoisers_denoise(denoise):
    noisy_set = NoisySet.draw(held_out_crops(48, "skimage")[:1], 25 / 255)
    assert noisy_set.mean(denoise) > noisy_set.mean(lambda noisy, sigma: noisy) + 2


def test_search_finds_the_best_of_each_method(monkeypatch):
    grid = [TotalVariation(0.01), TotalVariation(0.75), NonLocalMeans(0.7, fast=True)]
    monkeypatch.setattr(compare_classical, "classical_grid", lambda: iter(grid))
    noisy_set = NoisySet.draw(held_out_crops(48, "skimage")[:1], 25 / 255)
    best = compare_classical.search_classical(noisy_set)
    assert best["TotalVariation"] == (noisy_set.mean(grid[1]), grid[1])
    assert list(best) == ["TotalVariation", "NonLocalMeans"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("level", sorted(CLASSICAL))
def test_beats_the_best_classical_denoiser_on_unseen_images(prior, level):
    noisy_set = NoisySet.draw(held_out_crops(192, "skimage"), level / 255)
    ours = noisy_set.mean(as_denoise(prior))
    scores = {denoise: noisy_set.mean(denoise) for denoise in CLASSICAL[level]}
    denoise = max(scores, key=scores.get)
    best = scores[denoise]
    print(f"sigma {level}/255: DnCNNSmall {ours:.2f} dB, best classical {best:.2f} dB ({denoise})")
    assert math.isfinite(ours)
    assert ours > best + LEAD


def test_removes_little_when_there_is_little_noise(prior):
    noisy_set = NoisySet.draw(held_out_crops(96, "skimage"), 2 / 255)
    noise = noisy_set.mean(lambda noisy, sigma: noisy)
    assert noisy_set.mean(as_denoise(prior)) > noise + 0.3
