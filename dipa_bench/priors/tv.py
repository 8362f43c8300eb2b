"""`tv`: total variation, the prior without weights."""

from __future__ import annotations

from torch import Tensor

from dipa_bench.priors.base import THRESHOLD, Prior, PriorSpec

ITERATIONS = 40


def _denoise(noisy: Tensor, threshold: float | Tensor) -> Tensor:
    """argmin_x 1/2 ||x - v||^2 + threshold ||Dx||_(1,2), B x C x H x W.

    A new `TVDenoiser` each time and no stopping rule: its warm start would let one call change the
    next, its criterion is a norm over the whole batch, and both would break the solver's promise to
    treat each image by itself.
    """
    from deepinv.models import TVDenoiser

    return TVDenoiser(tau=0.25, n_it_max=ITERATIONS, crit=0.0)(noisy, threshold)


SPEC = PriorSpec(
    name="tv",
    title="Total variation",
    summary=f"isotropic TV by {ITERATIONS} Chambolle-Pock iterations (deepinv); no weights",
    build=lambda: Prior("tv", THRESHOLD, _denoise),
)
