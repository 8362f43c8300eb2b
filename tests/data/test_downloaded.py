"""`mnist`, `celeba` and `bsds500`, from small copies in their layout on disk."""

import gzip
import logging
import struct

import numpy as np
import pytest
from PIL import Image

from dipa_bench.data import sources
from dipa_bench.data.load import load
from dipa_bench.errors import UserError

RNG = np.random.default_rng(0)


def parts(splits):
    return (splits.train, splits.validation, splits._test)


def idx(values):
    """The bytes of an IDX file of unsigned bytes."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


@pytest.fixture
def mnist(tmp_path):
    """36 training and 7 test digits; their pictures and the root."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pictures = {}
    for part, count in (("train", 36), ("t10k", 7)):
        pictures[part] = RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(pictures[part]))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return pictures, tmp_path


def test_mnist(mnist):
    """The last sixth of the training part validates; values are those of the files."""
    pictures, root = mnist
    splits = load(f"mnist:{root}", 28)
    assert [len(part) for part in parts(splits)] == [30, 6, 7]
    expected = (pictures["train"][:30], pictures["train"][30:], pictures["t10k"])
    for part, values in zip(parts(splits), expected, strict=True):
        np.testing.assert_allclose(part.pixels[:, 0], values / 255, atol=1e-6)


def test_mnist_compressed(mnist):
    """The .gz files do as well, and nothing is written beside them."""
    _, root = mnist
    plain = load("mnist", 28, root=str(root)).digest
    for path in list((root / "MNIST" / "raw").iterdir()):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    before = sorted(root.rglob("*"))
    assert load(f"mnist:{root}", 28).digest == plain
    assert sorted(root.rglob("*")) == before


def test_mnist_is_capped_evenly(mnist, monkeypatch):
    """First and last stay."""
    monkeypatch.setattr("dipa_bench.data.mnist.TRAIN", 3)
    assert load(f"mnist:{mnist[1]}", 8).train.names == ("train/00000", "train/00014", "train/00029")


def test_mnist_damaged(mnist):
    """A file cut short is an error of the user's data."""
    path = mnist[1] / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match="fetch it again") as caught:
        load(f"mnist:{mnist[1]}", 8)
    assert str(path.parent) in str(caught.value)


def tables(folder, people, partition):
    """The five tables of CelebA for these identities and splits."""
    names = [f"{number:06d}.jpg" for number in range(1, len(people) + 1)]
    rows = {
        "list_eval_partition.txt": ([], partition),
        "identity_CelebA.txt": ([], people),
        "list_attr_celeba.txt": (["12", "Bald Young"], ["-1  1"] * len(names)),
        "list_bbox_celeba.txt": (["12", "image_id x_1 y_1 width height"], ["1 2 3 4"] * 12),
        "list_landmarks_align_celeba.txt": (["12", "lefteye_x lefteye_y"], ["69 109"] * 12),
    }
    for name, (head, values) in rows.items():
        lines = head + [f"{image} {value}" for image, value in zip(names, values, strict=True)]
        (folder / name).write_text("\n".join(lines) + "\n")
    return names


@pytest.fixture
def celeba(tmp_path):
    """12 faces of 218 x 178, each of one colour: 6, 3 and 3 in the official splits."""
    folder = tmp_path / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    people = [1, 1, 2, 3, 3, 4, 5, 2, 6, 7, 5, 8]  # 2 and 5 are in two official splits
    for number, name in enumerate(tables(folder, people, [0] * 6 + [1] * 3 + [2] * 3)):
        values = np.full((218, 178, 3), (10 * number, 100, 200), np.uint8)
        values[:20] = values[-20:] = 255  # cropped away
        Image.fromarray(values).save(folder / "img_align_celeba" / name, quality=95)
    return tmp_path


def test_celeba(celeba):
    """Official splits; nobody is in two; colour as in the files, gray is its luminance."""
    splits = load(f"celeba:{celeba}", 16, color=True)
    assert [part.names for part in parts(splits)] == [
        tuple(f"{number:06d}.jpg" for number in numbers)
        for numbers in (range(1, 7), (7, 9), (10, 12))
    ]
    assert splits.train.subjects[:3] == ("person 1", "person 1", "person 2")
    assert splits.validation.subjects == ("person 5", "person 6")
    assert splits._test.subjects == ("person 7", "person 8")
    gray = load(f"celeba:{celeba}", 16)
    for part, shades in zip(parts(splits), parts(gray), strict=True):
        for name, pixels, shade in zip(part.names, part.pixels, shades.pixels, strict=True):
            colour = np.array([10 * (int(name[:6]) - 1), 100, 200]) / 255
            np.testing.assert_allclose(pixels.mean((1, 2)), colour, atol=0.02)
            np.testing.assert_allclose(shade.mean(), colour @ [0.2125, 0.7154, 0.0721], atol=0.02)
            assert shade.std() < 0.01


def test_celeba_with_one_image_in_a_split(celeba):
    """The smallest possible part."""
    tables(celeba / "celeba", list(range(12)), [0] * 10 + [1, 2])
    assert [len(part) for part in parts(load(f"celeba:{celeba}", 8))] == [10, 1, 1]


@pytest.mark.parametrize("content", ["", "000001.jpg x\n", "000001.jpg 0\n"])
def test_celeba_damaged_tables(celeba, content):
    """Empty, not numbers, or too short."""
    (celeba / "celeba" / "list_eval_partition.txt").write_text(content)
    with pytest.raises(UserError, match="cannot be read") as caught:
        load(f"celeba:{celeba}", 8)
    assert str(celeba / "celeba") in str(caught.value)


def test_celeba_without_a_picture(celeba):
    """The file is named."""
    (celeba / "celeba" / "img_align_celeba" / "000003.jpg").unlink()
    with pytest.raises(UserError, match=r"000003\.jpg .* cannot be read"):
        load(f"celeba:{celeba}", 8)


@pytest.fixture
def bsds500(tmp_path):
    """3, 2 and 4 photographs, upright and lying, dark outside the central square."""
    for part, count in (("train", 3), ("val", 2), ("test", 4)):
        folder = tmp_path / "BSDS500-master" / "BSDS500" / "data" / "images" / part
        folder.mkdir(parents=True)
        for number in range(count):
            values = np.zeros((321, 481, 3), np.uint8)
            values[:, 72:409] = (200, 50 + 40 * number, 20 * len(part))
            values = values.swapaxes(0, 1) if number % 2 else values
            Image.fromarray(values).save(folder / f"{number}.jpg", quality=95)
        (folder / "Thumbs.db").write_bytes(b"no picture")
    return tmp_path


def test_bsds500(bsds500):
    """Official splits; the central square in colour or gray."""
    for color, luminance in ((True, np.eye(3)), (False, np.array([[0.2125, 0.7154, 0.0721]]))):
        splits = load(f"bsds500:{bsds500}", 16, color=color)
        assert [len(part) for part in parts(splits)] == [3, 2, 4]
        for part, name in zip(parts(splits), ("train", "val", "test"), strict=True):
            for number, pixels in enumerate(part.pixels):
                assert part.names[number] == f"{name}/{number}"
                colour = np.array([200, 50 + 40 * number, 20 * len(name)]) / 255
                np.testing.assert_allclose(pixels.mean((1, 2)), luminance @ colour, atol=0.02)


def test_bsds500_inside_the_repository(bsds500):
    """A path one folder deeper does as well; deepinv's own zip is not asked for."""
    inner = load(f"bsds500:{bsds500 / 'BSDS500-master'}", 8)
    assert inner.digest == load(f"bsds500:{bsds500}", 8).digest


def test_bsds500_damaged(bsds500):
    """The file is named."""
    path = next(bsds500.rglob("val")) / "1.jpg"
    path.write_bytes(b"no picture")
    with pytest.raises(UserError, match="cannot be read") as caught:
        load(f"bsds500:{bsds500}", 8)
    assert str(path) in str(caught.value)


LAYOUTS = {
    "mnist": "MNIST/raw/train-images-idx3-ubyte",
    "celeba": "celeba/img_align_celeba/",
    "bsds500": "BSDS500-master/BSDS500/data/images/",
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("made", [True, False])
def test_a_wrong_root_is_not_downloaded_into(name, made, tmp_path):
    """The message holds the path, the layout and the cure; nothing is written."""
    place = tmp_path / "data"
    if made:
        place.mkdir()
    with pytest.raises(UserError, match=f"give {name}:PATH") as caught:
        load(f"{name}:{place}", 8)
    message = str(caught.value)
    assert str(place) in message
    assert LAYOUTS[name] in message
    assert "\n" not in message
    assert place.exists() == made
    assert not any(tmp_path.rglob("*.*"))


CLASSES = {
    "mnist": "torchvision.datasets.MNIST",
    "celeba": "torchvision.datasets.CelebA",
    "bsds500": "deepinv.datasets.BSDS500",
}


@pytest.mark.parametrize("name", CLASSES)
def test_a_download_that_fails_is_a_user_error(name, tmp_path, monkeypatch):
    """Without a path the library's download runs in the data home; its failure is one line."""
    asked = []

    def library(root, download=False, **others):
        asked.append((str(root), download))
        raise RuntimeError("Error downloading it:\nTried a mirror")

    monkeypatch.setenv(sources.HOME_VARIABLE, str(tmp_path / "home"))
    monkeypatch.setattr(CLASSES[name], library)
    with pytest.raises(UserError, match="could not be downloaded") as caught:
        load(name, 8)
    message = str(caught.value)
    assert str(tmp_path / "home") in message
    assert f"{name}:PATH" in message
    assert "\n" not in message
    assert len(asked) == 1
    assert asked[0][1]
    assert asked[0][0].startswith(str(tmp_path / "home"))


def test_what_lies_in_the_data_home_is_not_downloaded(mnist, monkeypatch, caplog):
    """No path, but the files are there."""
    monkeypatch.setenv(sources.HOME_VARIABLE, str(mnist[1]))
    with caplog.at_level(logging.WARNING):
        assert load("mnist", 8).digest == load(f"mnist:{mnist[1]}", 8).digest
    assert "download" not in caplog.text


def test_the_data_home(monkeypatch):
    """The variable, else a folder of the user's cache."""
    monkeypatch.setenv(sources.HOME_VARIABLE, "~/pictures")
    assert sources.data_home().name == "pictures"
    assert sources.data_home().is_absolute()
    monkeypatch.delenv(sources.HOME_VARIABLE)
    assert sources.data_home().parts[-2:] == (".cache", "dipa-bench")


def test_mnist_refuses_colour(mnist):
    """It is gray."""
    with pytest.raises(UserError, match=r"leave out problem\.color"):
        load(f"mnist:{mnist[1]}", 8, color=True)
