"""`pointwise`: a diagonal operator per iteration, learned greedily; the cell pointwise+greedy."""

from dataclasses import replace

from dipa_bench.learning.greedy import RULE
from dipa_bench.preconditioners.spec import POINTWISE

METHOD = replace(
    RULE.method(POINTWISE),
    name="pointwise",
    title="Pointwise (greedy)",
    summary="one diagonal per iteration, minimising the next data term (or, objective=distance, "
    "the distance to the truth) on training images",
)
