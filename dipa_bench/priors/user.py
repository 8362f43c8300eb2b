"""A user's own denoiser: ``module:function``, or a file of weights."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dipa_bench import imports, registry
from dipa_bench.errors import UserError, brief
from dipa_bench.priors.base import SCALE, SIGMA, Prior, Scaled, probe

SUFFIXES = (".safetensors", ".pth", ".pt")


def build(name: str) -> Prior:
    """A prior by registered name, ``module:function`` or path of a weights file.

    A function takes ``(noisy)`` or ``(noisy, sigma)``; one that takes no sigma has the strength s
    of s D(v/s). Its attributes ``channels`` (1, 3, or None for any; else 1) and ``differentiable``
    (else True) mean what they mean in a `PriorSpec`. A weights file holds either the shipped
    network's tensors (``.safetensors`` with its metadata) or those of deepinv's gray DnCNN.

    Raises:
        UserError: unknown name, unreadable file, a denoiser that changes the shape, or one with
            another value of these attributes.
    """
    if name.endswith(SUFFIXES):
        prior = _from_file(Path(name))
    elif ":" in name:
        prior = _from_function(name)
    else:
        return registry.get("priors", name).build()
    try:
        probe(prior)
    except Exception as error:
        raise UserError(
            f"prior {name!r} is no {'colour' if prior.channels == 3 else 'gray'} denoiser: "
            f"on a 2 x {prior.channels or 1} x 16 x 16 batch in [0, 1], "
            f"{brief(error, kind=not isinstance(error, ValueError))}"
        ) from None
    return prior


def _from_function(name: str) -> Prior:
    found = imports.attribute(name, "prior")
    denoiser = found() if inspect.isclass(found) else found
    if not callable(denoiser):
        raise UserError(f"prior {name!r} is a {type(found).__name__}, not a function: name one")
    return Prior(
        name,
        SIGMA if _takes_sigma(denoiser) else SCALE,
        denoiser if _takes_sigma(denoiser) else Scaled(denoiser),
        channels=_attribute(name, denoiser, "channels", (1, 3, None)),
        identity=imports.source_digest(denoiser),
        differentiable=_attribute(name, denoiser, "differentiable", (True, False)),
    )


def _attribute(name: str, denoiser: Callable, attribute: str, valid: tuple) -> Any:
    """What a denoiser says of itself; the first valid value where it says nothing."""
    value = getattr(denoiser, attribute, valid[0])
    if not any(value is other for other in valid):
        shown = " ".join(repr(value).split())[:40]
        choices = " or ".join(map(str, valid))
        raise UserError(f"prior {name!r} has {attribute} = {shown}: set it to {choices}")
    return value


def _takes_sigma(denoiser: Callable) -> bool:
    target = denoiser.forward if isinstance(denoiser, nn.Module) else denoiser
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return False
    return sum(parameter.kind in kinds for parameter in parameters) >= 2


def _from_file(path: Path) -> Prior:
    if not path.is_file():
        raise UserError(f"no prior weights at {path}: give a path that exists")
    identity = hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        if path.suffix == ".safetensors":
            from dipa_bench.priors.dncnn_small import load_dncnn_small

            return Prior(path.name, SIGMA, load_dncnn_small(path), identity=identity)
        network = _load_dncnn(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"prior weights {path} cannot be read ({first}): give the shipped network's "
            ".safetensors or a state_dict of deepinv's gray DnCNN"
        ) from None
    return Prior(path.name, SCALE, Scaled(network), identity=identity)


def _load_dncnn(state: dict[str, Tensor]) -> nn.Module:
    from deepinv.models import DnCNN

    depth = 2 + len({key.split(".")[1] for key in state if key.startswith("conv_list.")})
    network = DnCNN(
        in_channels=1,
        out_channels=1,
        depth=depth,
        nf=state["in_conv.weight"].shape[0],
        bias="in_conv.bias" in state,
        pretrained=None,
    )
    network.load_state_dict(state)
    return network
