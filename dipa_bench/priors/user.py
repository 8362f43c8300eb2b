"""A user's own denoiser: ``module:function``, or a file of weights."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from dipa_bench import registry
from dipa_bench.errors import UserError, brief
from dipa_bench.priors.base import SCALE, SIGMA, Prior, Scaled, probe

SUFFIXES = (".safetensors", ".pth", ".pt")


def build(name: str) -> Prior:
    """A prior by registered name, ``module:function`` or path of a weights file.

    A function takes ``(noisy)`` or ``(noisy, sigma)``; one that takes no sigma has the strength s
    of s D(v/s). A weights file holds either the shipped network's tensors (``.safetensors`` with
    its metadata) or those of deepinv's gray DnCNN.

    Raises:
        UserError: unknown name, unreadable file, or a denoiser that changes the shape.
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
            f"prior {name!r} is no gray denoiser: on a 2 x 1 x 16 x 16 batch in [0, 1], "
            f"{brief(error, kind=not isinstance(error, ValueError))}"
        ) from None
    return prior


def _from_function(name: str) -> Prior:
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (Exception, SystemExit) as error:
        raise UserError(
            f"prior {name!r} cannot be imported ({brief(error)}): give "
            "module:function, importable from this folder"
        ) from None
    finally:
        if added:
            sys.path.remove(here)
    denoiser = found() if inspect.isclass(found) else found
    if not callable(denoiser):
        raise UserError(f"prior {name!r} is a {type(found).__name__}, not a function: name one")
    return Prior(
        name,
        SIGMA if _takes_sigma(denoiser) else SCALE,
        denoiser if _takes_sigma(denoiser) else Scaled(denoiser),
        channels=getattr(denoiser, "channels", 1),
        identity=_source_digest(denoiser),
        differentiable=getattr(denoiser, "differentiable", True),
    )


def _takes_sigma(denoiser: Callable) -> bool:
    target = denoiser.forward if isinstance(denoiser, nn.Module) else denoiser
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return False
    return sum(parameter.kind in kinds for parameter in parameters) >= 2


def _source_digest(denoiser: Callable) -> str:
    target = type(denoiser) if isinstance(denoiser, nn.Module) else denoiser
    try:
        text = inspect.getsource(inspect.getmodule(target))
    except (OSError, TypeError):
        text = f"{target.__module__}.{getattr(target, '__qualname__', type(target))}"
    return hashlib.sha256(text.encode()).hexdigest()


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
