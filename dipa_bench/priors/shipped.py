"""`dncnn-small`: the project's own denoiser, whose weights come with the package."""

from __future__ import annotations

from torch import nn

from dipa_bench.errors import UserError, brief
from dipa_bench.priors.base import SIGMA, PriorSpec


def build() -> nn.Module:
    """The shipped noise-level-conditioned gray denoiser.

    Raises:
        UserError: the weights are missing or damaged.
    """
    from dipa_bench.priors.dncnn_small import load_dncnn_small

    try:
        return load_dncnn_small()
    except Exception as error:  # safetensors and torch raise their own kinds
        raise UserError(
            f"the prior 'dncnn-small' has no weights ({brief(error)}): install dipa-bench again, "
            "or use --set problem.prior=tv"
        ) from None


SPEC = PriorSpec(
    name="dncnn-small",
    title="DnCNN-small (shipped)",
    summary="small gray denoiser that takes the noise level; comes with the package",
    strength=SIGMA,
    denoiser=build,
)
