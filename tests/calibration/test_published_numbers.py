"""Our operators, solvers and the published weights give the published PSNRs.

A part of the table on few images; `tests/soak/calibration.py` has all that docs/calibration.md has.
"""

from __future__ import annotations

import pytest
from published_runs import CS, SR, digits, faces, pooled

pytestmark = pytest.mark.exhaustive
IMAGES = 12


@pytest.mark.parametrize(("solver", "label", "published", "tolerance"), [CS[0], CS[3], CS[5]])
def test_single_pixel_digits(solver, label, published, tolerance, published_weights):
    _, clipped = pooled(digits(solver), label, IMAGES)
    assert clipped == pytest.approx(published, abs=tolerance)


def test_super_resolution_of_faces(published_weights):
    solver, label, published, tolerance = SR[1]
    plain, _ = pooled(faces(solver), label, IMAGES // 3)
    assert plain == pytest.approx(published, abs=tolerance)
