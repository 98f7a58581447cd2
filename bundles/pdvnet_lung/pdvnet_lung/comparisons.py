# SPDX-License-Identifier: Apache-2.0
"""Networks that PDV-Net is compared with: a dense V-Net, and a two-dimensional one run slice by slice."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from volseg.blocks import ConvBlock, DenseBlock, check_size

__all__ = ["DenseVNet", "SliceWise"]


class DenseVNet(nn.Module):
    """Dense V-Net: the dense feature blocks of PDV-Net without its progressive outputs.

    PDV-Net adds the skips one by one and supervises each sum. This network concatenates them with the image and
    computes a single output. Each block starts from the dense block above it, not from that block's skip. The channel
    counts are those of NiftyNet's DenseVNet, without its learned spatial prior and its affine augmentation.

    Args:
        in_channels, out_channels, growth_rates, num_layers, dropout, checkpointing: see
            :class:`pdvnet_lung.network.PDVNet`.
        skip_channels: channels of the three skips.

    Shapes:
        input: ``(B, in_channels, X, Y, Z)``, sizes multiples of 8; output: logits, ``(B, out_channels, X/2, Y/2, Z/2)``
        in training, ``(B, out_channels, X, Y, Z)`` in evaluation.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 6,
        growth_rates: Sequence[int] = (4, 8, 16),
        num_layers: Sequence[int] = (5, 10, 10),
        skip_channels: Sequence[int] = (12, 24, 24),
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.stem = ConvBlock(in_channels, 24, kernel_size=5, stride=2)
        self.dense, self.skips, self.downs = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        channels = 24 + in_channels
        for growth_rate, layers, skip in zip(growth_rates, num_layers, skip_channels, strict=True):
            block = DenseBlock(channels, growth_rate, layers, dropout, checkpointing)
            self.dense.append(block)
            self.skips.append(ConvBlock(block.out_channels, skip))
            if len(self.dense) < len(growth_rates):
                self.downs.append(ConvBlock(block.out_channels, 24, stride=2))
            channels = 24
        self.output = nn.Conv3d(sum(skip_channels) + in_channels, out_channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_scripting():  # TorchScript cannot compile the check
            check_size(x, 8, "DenseVNet")
        image = F.avg_pool3d(x, 2)  # (B, 1, X/2, Y/2, Z/2)
        stacked = [image]
        features = torch.cat([self.stem(x), image], dim=1)
        for i, (dense, skip) in enumerate(zip(self.dense, self.skips, strict=True)):
            features = dense(self.downs[i - 1](features) if i else features)
            stacked.append(
                F.interpolate(skip(features), scale_factor=2.0**i, mode="trilinear", align_corners=False)
            )  # (B, 12 or 24, X/2, Y/2, Z/2)
        logits = self.output(torch.cat(stacked, dim=1))  # from 61 channels
        if self.training:
            return logits
        return F.interpolate(logits, scale_factor=2.0, mode="trilinear", align_corners=False)


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
