"""Content digests: two things with the same digest are the same thing."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

# Part of every digest: raise it when what a digest stands for is computed differently.
VERSION = 1


def of(*parts: Any) -> str:
    """Hex SHA-256 (first 16 characters) of tensors and JSON-serialisable values, in order."""
    digest = hashlib.sha256(f"dipa-bench {VERSION}".encode())
    for part in parts:
        if isinstance(part, torch.Tensor):
            plain = part.detach().cpu().contiguous()
            digest.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
            digest.update(plain.numpy().tobytes())
        else:
            digest.update(json.dumps(part, sort_keys=True).encode())
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def seed(*parts: Any) -> int:
    """A 63-bit seed that depends on every part, e.g. ``seed(study_seed, method, trial)``."""
    return int(of("seed", *parts), 16) >> 1
