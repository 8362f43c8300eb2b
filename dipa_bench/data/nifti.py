"""Axial slices of NIfTI volumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dipa_bench.errors import UserError, brief


def axial(path: Path) -> np.ndarray:
    """The axial slices of a volume, from the lowest to the highest.

    Args:
        path: a `.nii` or `.nii.gz` file.

    Returns:
        Z x H x W, in the file's units: anterior is up, the subject's right is on the right.

    Raises:
        UserError: not readable, or not three-dimensional.
    """
    import nibabel

    try:
        image = nibabel.as_closest_canonical(nibabel.load(path))
        volume = np.asarray(image.dataobj)
    except Exception as error:
        raise UserError(
            f"volume {path} cannot be read ({brief(error)}): mend or remove it"
        ) from None
    if volume.ndim > 3 and volume.size == np.prod(volume.shape[:3]):
        volume = volume.reshape(volume.shape[:3])
    if volume.ndim != 3:
        raise UserError(f"volume {path} has shape {volume.shape}: give one 3-D volume in a file")
    return volume.transpose(2, 1, 0)[:, ::-1]  # x to the right, y up
