"""Users' own operators: checked, named in the digest, and studied like any task."""

import sys
import textwrap

import pytest
import torch

from dipa_bench.errors import UserError
from dipa_bench.tasks.base import Geometry
from dipa_bench.tasks.custom import SPEC, CustomOptions
from dipa_bench.testing.problems import synthetic_splits

OPERATORS = """
import torch
from deepinv.physics import Blur, Inpainting, LinearPhysics

from dipa_bench.tasks.base import Operators, TeacherSpec


def holes(geometry, share):
    generator = torch.Generator().manual_seed(geometry.seed)
    mask = (torch.rand(geometry.shape[1:], generator=generator) < share).to(geometry.dtype)
    return Inpainting(geometry.shape, mask=mask, device=geometry.device)


def pair(geometry):
    return holes(geometry, 0.3), holes(geometry, 0.8)


def family(geometry):
    teachers = tuple(
        TeacherSpec(share, lambda share=share: holes(geometry, share)) for share in (0.6, 0.9)
    )
    return Operators(holes(geometry, 0.3), teachers, axis="share", facts={"share": 0.3})


class Wrong(LinearPhysics):
    def A(self, x, **kwargs):
        return x.flip(-1).cumsum(-1)

    def A_adjoint(self, y, **kwargs):
        return y.cumsum(-1).flip(-1)


class Mixing(LinearPhysics):
    def A(self, x, **kwargs):
        return x - x.mean(0, keepdim=True)

    A_adjoint = A


class Shifted(LinearPhysics):
    def A(self, x, **kwargs):
        return x + 0.01

    def A_adjoint(self, y, **kwargs):
        return y


class Dark(LinearPhysics):
    def A(self, x, **kwargs):
        return 0 * x

    A_adjoint = A


def shifted(geometry):
    return Shifted(), Shifted()


def dark(geometry):
    return Dark(), Dark()


def wrong(geometry):
    return Wrong(), Wrong()


def mixing(geometry):
    return Mixing(), Mixing()


def alone(geometry):
    return holes(geometry, 0.3)


def nothing(geometry):
    return 1, 2


def broken(geometry):
    raise RuntimeError("no lens")


def crashing(geometry):
    kernel = torch.ones(1, 1, 99, 99)
    return Blur(kernel, padding="valid"), Blur(kernel, padding="valid")
"""


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    """`optics`, importable from the working directory."""
    (tmp_path / "optics.py").write_text(textwrap.dedent(OPERATORS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "optics", raising=False)
    yield
    sys.modules.pop("optics", None)


def made(name, shape=(1, 16, 16)):
    return SPEC.operators(CustomOptions(operators=f"optics:{name}"), Geometry(shape))


def test_a_pair_of_physics():
    """Student and teacher as returned; one teacher, labelled 1."""
    operators = made("pair")
    x = torch.rand(2, 1, 16, 16)
    assert [teacher.label for teacher in operators.teachers] == [1.0]
    kept = (operators.student.A(x) != 0).float().mean().item()
    assert kept == pytest.approx(0.3, abs=0.1)
    assert (operators.teachers[0].build().A(x) != 0).float().mean().item() > 0.6


def test_a_family_of_teachers_keeps_its_labels_and_facts():
    operators = made("family")
    assert [teacher.label for teacher in operators.teachers] == [0.6, 0.9]
    assert operators.axis == "share"
    assert operators.facts == {"share": 0.3}


def test_the_source_is_part_of_the_identity(tmp_path):
    """Changing the module changes what caches and records call these operators."""
    before = made("pair").identity
    assert before == made("pair").identity
    sys.modules.pop("optics")
    (tmp_path / "optics.py").write_text(OPERATORS.replace("0.3", "0.30001"))
    assert made("pair").identity != before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "no operators: name them, --set problem.options.operators"),
        ("optics:pairs", "cannot be imported.*module:function"),
        ("optics", "cannot be imported.*no colon"),
        ("optics:broken", "fail .RuntimeError: no lens"),
        ("optics:alone", "gave a Inpainting: return"),
        ("optics:nothing", "student of 'optics:nothing' is a int: give a deepinv LinearPhysics"),
        ("optics:wrong", "not the adjoint of A.*relative"),
        ("optics:mixing", "depends on the others of its batch"),
        ("optics:shifted", "not linear"),
        ("optics:dark", "zero or not finite"),
        ("optics:crashing", r"fails on images of shape \(1, 16, 16\)"),
    ],
)
def test_what_is_no_operator_is_refused_in_one_line(name, message):
    with pytest.raises(UserError, match=message) as caught:
        SPEC.operators(CustomOptions(operators=name), Geometry((1, 16, 16)))
    assert "\n" not in str(caught.value)


def test_complex_images_on_request():
    """Gray images become complex ones of the same magnitude."""
    splits = synthetic_splits((1, 16, 16))
    assert SPEC.prepare(splits, CustomOptions()).shape == (1, 16, 16)
    found = SPEC.prepare(splits, CustomOptions(images="complex"))
    assert found.shape == (2, 16, 16)
    size = found.train.pixels.square().sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(size, splits.train.pixels)
