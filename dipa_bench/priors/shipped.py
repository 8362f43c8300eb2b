"""`dncnn-small`: the project's own denoiser, whose weights come with the package."""

from __future__ import annotations

from dipa_bench.errors import UserError, brief
from dipa_bench.priors.base import SIGMA, Prior, PriorSpec


def build() -> Prior:
    """The shipped noise-level-conditioned gray denoiser; strength is sigma.

    Raises:
        UserError: the weights are missing or damaged.
    """
    from dipa_bench.priors.dncnn_small import load_dncnn_small

    try:
        network = load_dncnn_small()
    except Exception as error:  # safetensors and torch raise their own kinds
        raise UserError(
            f"the prior 'dncnn-small' has no weights ({brief(error)}): install dipa-bench again, "
            "or use --set problem.prior=tv"
        ) from None
    return Prior("dncnn-small", SIGMA, network)


SPEC = PriorSpec(
    name="dncnn-small",
    title="DnCNN-small (shipped)",
    summary="small gray denoiser that takes the noise level; comes with the package",
    build=build,
)
