# SPDX-License-Identifier: Apache-2.0
"""Run a 2-D network on every slice of a volume."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["SliceWise"]


class SliceWise(nn.Module):
    """Apply a 2-D network to each slice along Z, as the paper's 2D U-Net baseline does.

    Args:
        network: takes ``(N, C, X, Y)`` and returns ``(N, C', X, Y)``.

    Shapes:
        input ``(B, C, X, Y, Z)``, output ``(B, C', X, Y, Z)``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, channels, *plane, slices = x.shape
        flat = x.permute(0, 4, 1, 2, 3).reshape(batch * slices, channels, *plane)  # (B * Z, C, X, Y)
        flat = self.network(flat)
        return flat.reshape(batch, slices, -1, *plane).permute(0, 2, 3, 4, 1)  # (B, C', X, Y, Z)
