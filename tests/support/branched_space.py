"""A space of which a choice decides what is drawn."""

from __future__ import annotations

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from dipa_bench.parameters import When

BRANCHES = {
    "kind": CategoricalDistribution(("a", "b", "c")),
    "rate": FloatDistribution(0.0, 1.0),
    "a.width": IntDistribution(1, 8),
    "a.only": CategoricalDistribution((5,)),
    "b.width": FloatDistribution(0.1, 10.0, log=True),
}
CONDITIONS = {
    "a.width": When("kind", "a"),
    "a.only": When("kind", "a"),
    "b.width": When("kind", "b"),
}
COUNTS = {  # parameters of a draw, by kind
    "a": {"kind", "rate", "a.width", "a.only"},
    "b": {"kind", "rate", "b.width"},
    "c": {"kind", "rate"},
}
