"""File names and words in tables that more than one module uses."""

from __future__ import annotations

IMAGES = "images.parquet"
CURVES = "curves.parquet"
SHIFTS = "shifts.parquet"
PICTURES = "pictures.safetensors"
MATRIX = "matrix.safetensors"
LINEARISATION = "linearisation.safetensors"
OPERATOR = "operator.safetensors"
SETTINGS = "settings.json"
SHOWN = (PICTURES, MATRIX, LINEARISATION)
"""Of a winner's test; they lie in the method's folder."""

QUALITY = (
    *("ssim", "lpips", "nmse", "range_error", "null_error"),
    *("psnr_best", "psnr_stopped", "stopped_at"),
)
"""Scores of images beside PSNR: structural similarity; perceptual distance; squared error relative
to the image's energy (of complex images of the magnitudes), and its part that A sees and the part
that it does not (of the complex images themselves); PSNR [dB] of the best iteration, image by
image; PSNR [dB] and number of the iteration at which a stopping rule ends.
"""

MATCHED = "matched"
"""The setting that winners were tuned at, in the table of `SHIFTS`."""
