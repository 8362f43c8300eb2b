"""N-DIPA: networks distilled from a teacher, each architecture under a name of its own."""

from __future__ import annotations

from dataclasses import replace

from dipa_bench.learning.distillation import DISTILLED
from dipa_bench.methods import Method
from dipa_bench.preconditioners import OperatorSpec
from dipa_bench.preconditioners.networks import SPECS, chosen


def _ndipa(operator: OperatorSpec, name: str, title: str) -> Method:
    """The cell OPERATOR+distilled under the paper's name."""
    summary = f"P = {operator.summary}, distilled from a better-conditioned teacher by unrolling"
    return replace(DISTILLED.method(operator), name=name, title=title, summary=summary)


def _fixed(operator: OperatorSpec) -> Method:
    return _ndipa(operator, f"ndipa/{operator.name}", f"N-DIPA, {operator.title}")


ANY = _ndipa(chosen.SPEC, "ndipa", "N-DIPA, architecture searched")
MLP, CNN, CNN_ATTENTION, UNET, MULTISCALE, INDIUNET, VIT, CONVNEXT = map(_fixed, SPECS)
