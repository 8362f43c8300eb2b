"""`celeba`: the CelebA faces, from disk or downloaded, as torchvision reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dipa_bench.data.images import DatasetSpec, ImageRequest, ImageSet, Splits, square, stack
from dipa_bench.data.sources import as_requested, data_home, download, evenly, missing
from dipa_bench.errors import UserError, brief

CAPS = (5000, 200, 500)  # at most so many train, validate and test, spread evenly
PARTITION = "list_eval_partition.txt"
TABLES = (
    PARTITION,
    "identity_CelebA.txt",
    "list_attr_celeba.txt",
    "list_bbox_celeba.txt",
    "list_landmarks_align_celeba.txt",
)


def load(request: ImageRequest) -> Splits:
    """The official splits; who is in an earlier split is left out of the later ones.

    Raises:
        UserError: no files there, or damaged ones.
    """
    place = request.root or data_home()
    if request.root is None and not _complete(place):
        from torchvision.datasets import CelebA

        download("celeba", place, lambda: CelebA(place, download=True))
    if not _complete(place):
        layout = "celeba/img_align_celeba/*.jpg and celeba/" + ", ".join(TABLES)
        raise missing("celeba", place, layout, "no path to download it")
    try:
        dataset = _unzipped()(place, split="all", target_type="identity")
        names = dataset.filename
        people = dataset.identity[:, 0].numpy()
        partition = dataset._load_csv(PARTITION).data[:, 0].numpy()
        if not len(names) == len(people) == len(partition):
            raise ValueError("the tables differ in length")
    except Exception as error:
        raise UserError(
            f"the tables in {place / 'celeba'} cannot be read ({brief(error)}): fetch them again"
        ) from None

    parts, seen = [], np.array([], int)
    for split, cap in enumerate(CAPS):
        rows = np.flatnonzero((partition == split) & ~np.isin(people, seen))
        seen = np.union1d(seen, people[rows])
        chosen = [int(rows[i]) for i in evenly(len(rows), cap)]
        if not chosen:
            raise UserError(f"split {split} in {place / 'celeba' / PARTITION} is empty: mend it")
        parts.append(
            ImageSet(
                stack([_picture(dataset, row, request) for row in chosen]),
                tuple(names[row] for row in chosen),
                tuple(f"person {people[row]}" for row in chosen),
            )
        )
    return Splits(*parts)


def _complete(place: Path) -> bool:
    folder = place / "celeba"
    return (folder / "img_align_celeba").is_dir() and all(
        (folder / name).is_file() for name in TABLES
    )


def _unzipped() -> type:
    from torchvision.datasets import CelebA

    class Unzipped(CelebA):
        """CelebA that is there, whatever its checksums: a part of it will do."""

        def _check_integrity(self) -> bool:
            return True  # `_complete` has looked

    return Unzipped


def _picture(dataset, row: int, request: ImageRequest) -> np.ndarray:
    try:
        values = np.asarray(dataset[row][0].convert("RGB"))
    except Exception as error:
        raise UserError(
            f"image {dataset.filename[row]} of celeba in {dataset.root} cannot be read "
            f"({brief(error)}): fetch it again"
        ) from None
    return square(as_requested(values, request), request.size)


SPEC = DatasetSpec(
    name="celeba",
    title="CelebA faces",
    summary="celeba or celeba:PATH, aligned faces, gray or colour, official splits: at most "
    "{} train, {} validate, {} test; a subject is a person".format(*CAPS),
    load=load,
    embedded=False,
)
