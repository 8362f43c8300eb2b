"""`scalar`: one greedily learned step per iteration; the cell scalar+greedy.

The step of iteration k minimises the data term at the next iterate over the training images,
alpha_k = sum_j ||g_j||^2 / sum_j ||A g_j||^2 (or, objective ``distance``, the distance to the true
images), and the images are rolled forward with it.
"""

from dataclasses import replace

from dipa_bench.learning.greedy import RULE
from dipa_bench.preconditioners.spec import SCALAR

METHOD = replace(
    RULE.method(SCALAR),
    name="scalar",
    title="Scalar steps (greedy)",
    summary="one step per iteration, minimising the next data term (or, objective=distance, the "
    "distance to the truth) on training images",
)
