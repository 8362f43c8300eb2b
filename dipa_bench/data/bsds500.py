"""`bsds500`: the Berkeley segmentation photographs, from disk or downloaded, through deepinv."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dipa_bench.data.images import DatasetSpec, ImageRequest, ImageSet, Splits, square, stack
from dipa_bench.data.sources import as_requested, data_home, download, missing
from dipa_bench.errors import UserError, brief

PARTS = ("train", "val", "test")
LAYOUTS = ("BSDS500-master/BSDS500/data/images", "BSDS500/data/images", "data/images")


def load(request: ImageRequest) -> Splits:
    """The official splits; the central square of each photograph.

    Raises:
        UserError: no files there, or damaged ones.
    """
    place = request.root or data_home() / "BSDS500"
    images = _images(place)
    if images is None and request.root is None:
        from deepinv.datasets import BSDS500

        download("bsds500", place, lambda: BSDS500(place, download=True, use_dict_output=True))
        images = _images(place)
    if images is None:
        layout = f"{LAYOUTS[0]}/{{train,val,test}}/*.jpg"
        raise missing("bsds500", place, layout, f"empty {place} and give no path to download it")
    return Splits(*(_part(images, part, request) for part in PARTS))


def _images(place: Path) -> Path | None:
    for layout in LAYOUTS:
        if all(any((place / layout / part).glob("*.jpg")) for part in PARTS):
            return place / layout
    return None


def _part(images: Path, part: str, request: ImageRequest) -> ImageSet:
    dataset = _unzipped(sorted((images / part).glob("*.jpg")))
    names = tuple(f"{part}/{path.stem}" for path in dataset.file_list)
    pictures = []
    for index, path in enumerate(dataset.file_list):
        try:
            values = np.asarray(dataset[index]["x"])
        except Exception as error:
            raise UserError(
                f"image {path} cannot be read ({brief(error)}): fetch it again"
            ) from None
        pictures.append(square(as_requested(values, request), request.size))
    return ImageSet(stack(pictures), names, names)


def _unzipped(paths: list[Path]):
    """deepinv's dataset of these files; it asks for the zip beside them, which may be gone."""
    from deepinv.datasets import BSDS500
    from deepinv.datasets.base import ImageDataset

    class Unzipped(BSDS500):
        def __init__(self) -> None:
            ImageDataset.__init__(self, use_dict_output=True)
            self.rotate, self.transforms, self.file_list = False, None, paths

    return Unzipped()


SPEC = DatasetSpec(
    name="bsds500",
    title="BSDS500 photographs",
    summary="bsds500 or bsds500:PATH, 481 x 321 photographs, gray or colour; central squares, "
    "official splits: 200 train, 100 validate, 200 test",
    load=load,
    embedded=False,
)
