"""`dncnn-small`: the project's own denoiser, whose weights come with the package."""

from __future__ import annotations

from dipa_bench.priors.base import SIGMA, Prior, PriorSpec


def build() -> Prior:
    """The shipped noise-level-conditioned gray denoiser; strength is sigma."""
    from dipa_bench.priors.dncnn_small import load_dncnn_small

    return Prior("dncnn-small", SIGMA, load_dncnn_small())


SPEC = PriorSpec(
    name="dncnn-small",
    title="DnCNN-small (shipped)",
    summary="small gray denoiser that takes the noise level; comes with the package",
    build=build,
)
