"""`full-linear`: an unconstrained matrix per iteration, learned greedily; the cell dense+greedy."""

from dataclasses import replace

from dipa_bench.learning.greedy import RULE
from dipa_bench.preconditioners.spec import DENSE

METHOD = replace(
    RULE.method(DENSE),
    name="full-linear",
    title="Full linear (greedy)",
    summary="one dense matrix per iteration, minimising the next data term (or, "
    "objective=distance, the distance to the truth) on training images, with a ridge",
)
