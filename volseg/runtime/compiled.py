# SPDX-License-Identifier: Apache-2.0
"""A network through ``torch.compile``."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

__all__ = ["compile_network"]


def compile_network(network: nn.Module, cache_dir: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """A network as PyTorch's Inductor compiles it, with the weights that it has at the moment.

    Inductor keeps it on disk, where ``TORCHINDUCTOR_CACHE_DIR`` says, which is set for the whole process if it is not.
    """
    folder = cache_dir / "inductor"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
    return torch.no_grad()(torch.compile(network))
