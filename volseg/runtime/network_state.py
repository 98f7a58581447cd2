# SPDX-License-Identifier: Apache-2.0
"""What a network is at a moment, in short: to notice what is out of date or wrong."""

from __future__ import annotations

import hashlib
import inspect
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
    """What changes with the weights, within a process. Sums notice updates through ``.data``, which has no version."""
    tensors = [tensor.detach() for tensor in chain(network.parameters(), network.buffers())]
    return tuple((t.data_ptr(), -1 if t.is_inference() else t._version, float(t.sum()).hex()) for t in tensors)


def digest(network: nn.Module, *versions: str) -> str:
    """SHA-256 of all that a converted network depends on but the shape: weights, modules, code, PyTorch, versions."""
    found = hashlib.sha256(f"{type(network).__qualname__} {torch.__version__} {' '.join(versions)}".encode())
    paths = set()
    for name, module in network.named_modules():
        settings = {k: v for k, v in vars(module).items() if k != "training" and isinstance(v, _SETTINGS)}
        found.update(f"{name} {type(module).__qualname__} {module.extra_repr()} {settings}".encode())
        paths.add(getattr(inspect.getmodule(type(module)), "__file__", None) or "")
    for path in sorted(paths):
        if path.endswith(".py"):
            found.update(Path(path).read_bytes())
    for name, tensor in chain(network.named_parameters(), network.named_buffers()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def agrees(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = ROUNDING) -> bool:
    """Whether the root mean square of a difference is within a part of that of the output; never so for NaN."""
    return actual.shape == expected.shape and bool((actual - expected).norm() <= tolerance * expected.norm())
