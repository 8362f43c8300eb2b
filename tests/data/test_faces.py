"""The ORL faces: counts and a split by person."""

import numpy as np
import pytest

from dipa_bench.data import faces
from dipa_bench.data.load import load


@pytest.fixture(scope="module")
def splits():
    return load("faces", 16)


def parts(splits):
    return {"train": splits.train, "validation": splits.validation, "test": splits._test}


def test_counts(splits):
    """400 pictures: ten each of 28, 4 and 8 people."""
    found = {name: (len(part), len(set(part.subjects))) for name, part in parts(splits).items()}
    assert found == {"train": (280, 28), "validation": (40, 4), "test": (80, 8)}


def test_nobody_is_in_two_splits(splits):
    """Disjoint people; names and pictures are unique over all splits."""
    people = [set(part.subjects) for part in parts(splits).values()]
    assert len(set.union(*people)) == sum(map(len, people)) == 40
    names = [name for part in parts(splits).values() for name in part.names]
    assert len(set(names)) == 400
    pictures = np.concatenate([part.pixels.numpy() for part in parts(splits).values()])
    assert len({picture.tobytes() for picture in pictures}) > 395


def test_names_tell_the_subject(splits):
    """s3/7 shows s3."""
    for part in parts(splits).values():
        assert all(
            name.split("/")[0] == who for name, who in zip(part.names, part.subjects, strict=True)
        )


def test_pixels(splits):
    """N x 1 x 16 x 16 float32 in [0, 1], neither black nor saturated."""
    for part in parts(splits).values():
        assert part.pixels.shape[1:] == (1, 16, 16)
        assert str(part.pixels.dtype) == "torch.float32"
        assert 0.2 < part.pixels.mean() < 0.7
        assert (part.pixels.flatten(1).std(1) > 0.05).all()


def test_a_face_is_the_area_mean_of_its_file(splits):
    """The 16 x 16 version is close to block averages of the central square of the PGM file."""
    from skimage.io import imread
    from skimage.transform import resize_local_mean

    picture = imread(faces.folder() / "s1" / "1.pgm") / 255
    top = (picture.shape[0] - 92) // 2
    expected = resize_local_mean(picture[top : top + 92, :92], (16, 16))
    found = splits.train.pixels[splits.train.names.index("s1/1"), 0].numpy()
    assert np.abs(found - expected).mean() < 0.03
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.98


def test_loading_is_repeatable(splits):
    """The same digest again; another size has another."""
    assert load("faces", 16).digest == splits.digest
    assert load("faces", 17).digest != splits.digest
