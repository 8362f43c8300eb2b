"""`convolutional`: a circular convolution per iteration, learned greedily; convolution+greedy."""

from dataclasses import replace

from dipa_bench.learning.greedy import RULE
from dipa_bench.preconditioners.spec import CONVOLUTION

METHOD = replace(
    RULE.method(CONVOLUTION),
    name="convolutional",
    title="Convolutional (greedy)",
    summary="one small circular kernel per iteration, minimising the next data term (or, "
    "objective=distance, the distance to the truth) on training images",
)
