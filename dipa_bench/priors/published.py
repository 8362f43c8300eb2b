"""`dncnn`: deepinv's DnCNN with the weights that DIPA's published runs used."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from dipa_bench.errors import UserError
from dipa_bench.priors.base import SCALE, PriorSpec, Scaled

WEIGHTS = "dncnn_sigma2_gray.pth"


def weights_path() -> Path:
    """Where torch keeps the downloaded weights (below ``TORCH_HOME``)."""
    return Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS


def build() -> nn.Module:
    """The gray DnCNN (20 layers x 64, trained for sigma = 2/255), as s D(v / s).

    deepinv would unpickle whatever lies there; here the file can hold tensors only.

    Raises:
        UserError: the weights are neither on this machine nor to be downloaded.
    """
    from deepinv.models import DnCNN
    from deepinv.models.utils import get_weights_url

    path = weights_path()
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            url = get_weights_url(model_name="dncnn", file_name=WEIGHTS)
            torch.hub.download_url_to_file(url, str(path), progress=False)
        network = DnCNN(in_channels=1, out_channels=1, pretrained=None)
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # urllib, ssl, torch and pickle errors alike
        raise UserError(
            f"the prior 'dncnn' has no weights: {weights_path()} cannot be read or downloaded "
            f"({type(error).__name__}); set TORCH_HOME to a folder with hub/checkpoints/{WEIGHTS}, "
            "or use --set problem.prior=dncnn-small"
        ) from None
    return Scaled(network)


SPEC = PriorSpec(
    name="dncnn",
    title="DnCNN (deepinv, sigma = 2/255)",
    summary="20 layers x 64, gray, no noise level: strength s of s D(v/s); weights downloaded",
    strength=SCALE,
    denoiser=build,
)
