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
"""Of a method's first seed; they stand for the method."""

MATCHED = "matched"
"""The setting that winners were tuned at, in the table of `SHIFTS`."""
