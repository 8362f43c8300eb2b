"""Studies of live objects: a program's physics, denoiser, images and operators."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import deepinv
import numpy as np
import pytest
import torch

import dipa_bench
from baselines.identity import METHOD
from dipa_bench import live
from dipa_bench.config.live_study import LiveParts, LiveStudy, _splits
from dipa_bench.methods import Method
from dipa_bench.preconditioners import Preconditioner
from dipa_bench.runs import rerun
from dipa_bench.tracking import records

SIDE = 16
ONE_FIT = {"budget.epochs": 1, "budget.final_epochs": 1}


class Half(Preconditioner):
    """Halves the gradient."""

    def forward(self, gradient, state):
        return gradient / 2


class Flat(Preconditioner):
    def forward(self, gradient, state):
        return gradient.flatten(1)


class Squares(deepinv.physics.LinearPhysics):
    def A(self, x, **parameters):  # noqa: N802
        return x**2

    def A_adjoint(self, y, **parameters):  # noqa: N802
        return y


class Shifted(Squares):
    def A(self, x, **parameters):  # noqa: N802
        return x.roll(1, -1)


def smooth(v, sigma):
    wrapped = torch.nn.functional.pad(v, [1] * 4, mode="circular")
    return 0.7 * v + 0.3 * torch.nn.functional.avg_pool2d(wrapped, 3, 1)


def pictures(count: int = 20, channels: int = 1) -> torch.Tensor:
    coarse = torch.rand(count, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    return coarse.repeat_interleave(4, -1).repeat_interleave(4, -2)


def masked(share: float, channels: int = 1) -> deepinv.physics.LinearPhysics:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.rand(1, SIDE, SIDE, generator=generator) < share).float().expand(channels, -1, -1)
    physics = deepinv.physics.Inpainting((channels, SIDE, SIDE), mask=mask)
    physics.set_noise_model(deepinv.physics.GaussianNoise(0.02))
    return physics


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: Path) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlflow.db").write_bytes(empty_database.read_bytes())
    return tmp_path


def study(**given: Any) -> dipa_bench.Results:
    options = {
        "physics": masked(0.4),
        "images": pictures(),
        "prior": smooth,
        "methods": ["identity", Half()],
        "trials": 2,
        "replicates": 1,
        "name": "own",
        "device": "cpu",
    }
    return dipa_bench.run_study(**(options | given))


def test_three_lines_make_a_study_that_goes_on_and_is_repeated(place: Path) -> None:
    asked = {"teacher": masked(0.8), "methods": ["identity", "ldipa", Half()], "set": ONE_FIT}
    found = study(**asked)
    board = found.leaderboard.set_index("method")
    assert set(board.index) == {"identity", "ldipa", "Half"}
    assert board["psnr"].notna().all()
    setting = board.loc["Half", "setting"]
    assert "images of the program 16 x 16, prior of the program" in setting
    assert "noise 0.02" in setting and "live:" not in setting
    again = study(**asked)
    assert len(again.runs) == len(found.runs)
    record, device = records.read(found.folder / "Half"), torch.device("cpu")
    assert rerun.repeat(record, place / "mlruns", device).agrees(0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live, "_objects", {})  # as in another process
        with pytest.raises(dipa_bench.UserError, match="an object of the program that ran the"):
            rerun.repeat(record, place / "mlruns", device)
    with pytest.raises(dipa_bench.UserError, match=r"exists with problem\.options\.operators"):
        study(**asked | {"physics": masked(0.5)})


def test_half_of_a_gradient_is_half_a_step() -> None:
    steps = {"identity.solve.step": 0.2, "Half.solve.step": 0.4}
    board = study(protocol="published", set=steps).leaderboard.set_index("method")
    assert board.loc["Half", "psnr"] == pytest.approx(board.loc["identity", "psnr"], abs=1e-4)


@pytest.mark.parametrize("channels", [2, 3])
def test_complex_and_colour_images(channels: int) -> None:
    images = pictures(channels=channels) / (1.5 if channels == 2 else 1)
    found = study(physics=masked(0.4, channels), images=images, methods=["identity"])
    assert found.leaderboard["psnr"].notna().all()
    assert found.load("identity", "cpu").task.shape == (channels, SIDE, SIDE)
    assert not vars(smooth), "the program's own function is left as it is"


def test_objects_beside_a_registered_task() -> None:
    found = study(physics=None, task="sr", methods=["identity"], set={"problem.iterations": 2})
    assert found.task == "sr" and found.leaderboard["psnr"].notna().all()
    setting = found.leaderboard.loc[0, "setting"]
    assert setting.startswith("images of the program 16 x 16, prior of the program")


def test_objects_of_other_content_have_other_names() -> None:
    """Also where they differ in a plain attribute, a number that a fit uses, or test images."""

    class Times(Preconditioner):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor

    def method(factor: float) -> Method:
        def fit(task, parameters, context):
            return context.reconstructor(task, parameters.solve, Times(factor))

        return replace(METHOD, name="times", fit=fit)

    def named(**given: Any) -> list[str]:
        parts = LiveParts(images=given.pop("images", None))
        asked = LiveStudy(None, "sr", given.pop("methods", None), [], parts)
        entries = asked.config["methods"] if asked.config else {}
        return [*asked.sets, *(one["method"] for one in entries.values() if "method" in one)]

    pixels = pictures()
    splits = {"train": pixels[:10], "validation": pixels[10:12], "test": pixels[12:]}
    others = splits | {"test": pixels[12:].flip(-1)}
    for one, other in (
        ({"methods": [Times(0.5)]}, {"methods": [Times(0.25)]}),
        ({"methods": [method(0.5)]}, {"methods": [method(0.25)]}),
        ({"images": splits}, {"images": others}),
    ):
        assert named(**one) == named(**one) != named(**other)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"physics": Squares()}, r"physics \(Squares\): A is not linear|not the adjoint"),
        ({"physics": Shifted()}, r"physics \(Shifted\): A_adjoint is not the adjoint of A"),
        ({"physics": smooth}, "physics .* is a function: give a deepinv LinearPhysics"),
        ({"teacher": Shifted()}, r"teacher \(Shifted\): A_adjoint is not the adjoint"),
        ({"physics": None, "teacher": masked(0.8)}, "a teacher without physics"),
        ({"task": "sr"}, "leave out task and study file"),
        ({"images": 255 * pictures()}, r"reach from .* to 25\d: scale them to \[0, 1\]"),
        ({"images": pictures() - 1}, r"reach from -.*: scale them to \[0, 1\]"),
        ({"images": torch.full((9, 1, 16, 16), torch.nan)}, "reach from nan"),
        ({"images": pictures(2)}, "2 images: three splits need at least 3"),
        ({"images": torch.rand(9, 4, 16, 16)}, "give N x C x H x W with C = 1, 2"),
        ({"images": {"train": pictures()}}, "give train, validation, test"),
        ({"images": [torch.rand(1, 8, 8), torch.rand(1, 9, 9)]}, "images of one shape"),
        ({"prior": 3}, "prior is a int: give a denoiser"),
        ({"prior": lambda v, sigma: v[..., 1:]}, "is no gray denoiser"),
        ({"methods": ["identity", Flat()]}, r"method Flat gives \(2, 256\) for gradients of"),
        ({"methods": ["identity", Half(), Half()]}, "two methods are called 'Half'"),
        ({"methods": ["identity", 3]}, "method 3 is a int: give a name, a Preconditioner"),
        ({"workers": 2}, "objects stay in this process: leave out workers"),
    ],
)
def test_what_is_wrong_with_an_object_is_one_line(
    given: dict[str, Any], message: str, place: Path
) -> None:
    with pytest.raises(dipa_bench.UserError, match=message) as caught:
        study(**given)
    assert "\n" not in str(caught.value)
    assert not (place / "mlruns").exists()


def test_images_of_many_kinds_are_the_same_images() -> None:
    pixels = pictures()
    expected = _splits(pixels)
    pairs = [(one, k) for k, one in enumerate(pixels)]
    for images in (pixels.numpy(), pixels[:, 0], pairs, list(pixels.double())):
        found = _splits(images)
        assert torch.equal(found.train.pixels, expected.train.pixels)
        assert found.test("").names == expected.test("").names
    parts = {part.names for part in (expected.train, expected.validation, expected.test(""))}
    assert len({name for names in parts for name in names}) == len(pixels)
    spun = np.exp(0.3j) * pixels[:, 0].numpy()
    real = _splits(spun).train.pixels
    assert real.shape[1] == 2
    torch.testing.assert_close(real.norm(dim=1), expected.train.pixels[:, 0])


@pytest.mark.parametrize(
    ("images", "dataset"),
    [("digits", "digits"), ("folder:there", "folder:there"), (Path("there"), "folder:there")],
)
def test_images_by_name_or_folder(images: str | Path, dataset: str) -> None:
    asked = LiveStudy(None, "sr", None, ["seed=1"], LiveParts(images=images))
    assert asked.sets == [f'problem.dataset="{dataset}"', "seed=1"]
    assert not asked.live


def test_given_splits_are_kept() -> None:
    pixels = pictures()
    found = _splits({"train": pixels[:10], "validation": pixels[10:12], "test": pixels[12:]})
    assert torch.equal(found.train.pixels, pixels[:10])
    assert torch.equal(found.test("").pixels, pixels[12:])
