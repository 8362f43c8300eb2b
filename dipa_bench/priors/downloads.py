"""Published weights: where torch keeps them, how they get there, and what is said without them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from dipa_bench.errors import UserError


def location(file: str) -> Path:
    """Where torch keeps a downloaded file (below ``TORCH_HOME``)."""
    return Path(torch.hub.get_dir()) / "checkpoints" / file


def load(network: nn.Module, *, prior: str, model: str, file: str) -> nn.Module:
    """The network with deepinv's published weights, which are downloaded unless they are there.

    deepinv would unpickle whatever lies there; here the file can hold tensors only.

    Args:
        network: takes the tensors; it may lie on the meta device, so that no time goes into a
            random start.
        prior: its name, for the message.
        model: deepinv's name for the folder of the weights.
        file: the name of the file.

    Returns:
        `network`, in float32 on the CPU.

    Raises:
        UserError: the weights are damaged, or neither on this machine nor to be downloaded.
    """
    from deepinv.models.utils import get_weights_url

    path = location(file)
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            url = get_weights_url(model_name=model, file_name=file)
            torch.hub.download_url_to_file(url, str(path), progress=False)
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state, assign=True)
    except Exception as error:  # urllib, ssl, torch and pickle errors alike
        raise UserError(
            f"the prior {prior!r} has no weights: {path} cannot be read or downloaded "
            f"({type(error).__name__}); set TORCH_HOME to a folder with hub/checkpoints/{file}, "
            "or use --set problem.prior=dncnn-small"
        ) from None
    return network.float()
