# SPDX-License-Identifier: Apache-2.0
"""What a network is at a moment, in short: to notice what is out of date or wrong."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = ["agrees", "digest", "fingerprint"]

# of bfloat16 or float16 through many layers; V-Net in bfloat16: 0.01
ROUNDING = 0.1
_SETTINGS = (bool, int, float, str, tuple, type(None))


def fingerprint(network: nn.Module) -> tuple[Any, ...]:
    """What changes, within a process, when weights are loaded, replaced or updated: 1 ms for PDV-Net.

    The sums are there for updates through ``.data``, which PyTorch does not count as a version.
    """
    tensors = [tensor.detach() for _, tensor in _tensors(network)]
    return tuple((t.data_ptr(), -1 if t.is_inference() else t._version, float(t.sum()).hex()) for t in tensors)


def digest(network: nn.Module, *versions: str) -> str:
    """SHA-256 of all that a converted network depends on but the shape: weights, architecture, code, versions.

    ``versions`` are those of the programs that convert it; PyTorch's is always among them.
    """
    found = hashlib.sha256(f"{type(network).__qualname__} {torch.__version__} {' '.join(versions)}".encode())
    files = set()
    for name, module in network.named_modules():
        settings = {k: v for k, v in vars(module).items() if k != "training" and isinstance(v, _SETTINGS)}
        found.update(f"{name} {type(module).__qualname__} {module.extra_repr()} {settings}".encode())
        files.add(inspect.getmodule(type(module)))
    paths = {getattr(module, "__file__", None) or "" for module in files}
    for path in sorted(paths):
        if path.endswith(".py"):
            found.update(Path(path).read_bytes())
    for name, tensor in _tensors(network):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def agrees(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = ROUNDING) -> bool:
    """Whether the root mean square of a difference is within a part of that of the output; never so for NaN."""
    return actual.shape == expected.shape and bool((actual - expected).norm() <= tolerance * expected.norm())


def _tensors(network: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    return chain(network.named_parameters(), network.named_buffers())
