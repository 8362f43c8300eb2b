"""The example of operators of one's own: sparse-view CT through the task `custom`."""

import numpy as np
import pytest
import torch

from dipa_bench.config import study_file
from dipa_bench.config.problem import build_task
from dipa_bench.errors import UserError
from dipa_bench.tasks.base import Geometry
from dipa_bench.tasks.spectrum import matrix
from studies.sparse_view_ct import VIEWS, operators


@pytest.fixture(scope="module")
def task():
    """The task of the embedded study `ct`, smaller."""
    raw = study_file.read(None, "ct")
    study = study_file.resolve(raw, sets=["problem.size=16", "problem.iterations=3"])
    return build_task(study.task, study.problem)


def test_the_study_builds_its_operators(task):
    """12 views for the student, teachers of 24 and 60, a record of it."""
    assert task.name == "custom"
    assert task.student.A(task.pixels(task.images.train.first(2))).shape[-1] == VIEWS
    assert task.labels == (24.0, 60.0)
    assert task.notes["views"] == VIEWS


def test_projections_are_ill_conditioned_and_more_views_less_so(task):
    """So a preconditioner has something to do: the student's condition number is above 100."""
    like = torch.zeros(1)
    counts = []
    for physics in (task.student, task.teacher(60.0)):
        values = np.linalg.svd(matrix(physics, task.shape, like).double().numpy())[1] ** 2
        counts.append((values > 1e-6 * values[0]).sum())
    assert counts[0] < counts[1]
    values = np.linalg.svd(matrix(task.student, task.shape, like).double().numpy())[1] ** 2
    assert values[0] / values[values > 1e-6 * values[0]][-1] > 100
    assert task.norm_squared() == pytest.approx(1, rel=1e-3)


def test_a_projection_adds_up_the_image():
    """The first view of a single bright pixel has one bright spot, the whole mass of it."""
    made = operators(Geometry((1, 16, 16)))
    image = torch.zeros(1, 1, 16, 16)
    image[0, 0, 4, 9] = 1
    views = made.student.A(image)[0, 0]
    masses = views.sum(0)
    assert masses.std() / masses.mean() < 0.1
    assert (views[:, 0] > 0.01 * views[:, 0].max()).sum() <= 3


def test_oblong_images_are_refused():
    with pytest.raises(UserError, match="square images, not 16 x 20"):
        operators(Geometry((1, 16, 20)))
