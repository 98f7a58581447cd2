# SPDX-License-Identifier: Apache-2.0
"""Progressive Dense V-Network (arXiv 1902.06362).

Three dense feature blocks work at a half, a quarter and an eighth of the input's resolution. Each hands its features
on through a skip convolution; the skips of the deeper blocks are brought up to the half grid and added one after the
other, so that each of three outputs refines the one before it::

    input ─┬─ conv 5x5x5 /2 ─┬─ dense 1 ── skip 1 ─┬──────────── m1 ── output 1
           └─ average pool ──┘              down 1 ┤              │
                                     dense 2 ── skip 2 ─ up x2 ─ (+) m2 ── output 2
                                            down 2 ┤              │
                                     dense 3 ── skip 3 ─ up x4 ─ (+) m3 ── output 3

The comments at ``forward`` give the shapes for the paper's input of 512 x 512 x 64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from volseg.blocks import ConvBlock, DenseBlock, check_size

__all__ = ["PDVNet"]

SKIP_CHANNELS = 24
SIZE_DIVISOR = 8


class PDVNet(nn.Module):
    """PDV-Net: progressive dense V-network.

    The sources disagree or are silent in places; what is built here:

    - growth rates 4, 8, 16: the figure's channel counts 45, 104, 184 need them (a text source gives 4, 6, 8);
    - features are merged by addition, as the figure's circled plus says;
    - a block is left through its skip convolution, and the next block starts from that skip with stride 2;
    - logits are computed on the half grid and interpolated linearly to the input's size.

    Args:
        in_channels: channels of the image.
        out_channels: classes, background among them.
        growth_rates: channels that a layer of dense block 1, 2, 3 adds.
        num_layers: layers of dense block 1, 2, 3.
        merge: ``"sum"`` adds the features of the three resolutions, ``"concat"`` stacks them.
        dropout: probability of dropout after each dense layer but the last of a block.
        checkpointing: compute dense layers again in the backward pass instead of keeping their activations.

    Shapes:
        input ``(B, in_channels, X, Y, Z)`` with each size a multiple of 8.
        In training a tuple of three logit tensors ``(B, out_channels, X/2, Y/2, Z/2)``, coarse to fine, for deep
        supervision; in evaluation one logit tensor ``(B, out_channels, X, Y, Z)`` from the last output.

    Raises:
        ValueError: a size is no multiple of 8.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 6,
        growth_rates: Sequence[int] = (4, 8, 16),
        num_layers: Sequence[int] = (5, 10, 10),
        merge: Literal["sum", "concat"] = "sum",
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if merge not in ("sum", "concat"):
            raise ValueError(f"merge must be 'sum' or 'concat', got {merge!r}")
        if len(growth_rates) != 3 or len(num_layers) != 3:
            raise ValueError(f"growth_rates and num_layers must have 3 values, got {growth_rates} and {num_layers}")
        self.merge = merge

        def dense(block: int, channels: int) -> DenseBlock:
            return DenseBlock(channels, growth_rates[block], num_layers[block], dropout, checkpointing)

        self.stem = ConvBlock(in_channels, SKIP_CHANNELS, kernel_size=5, stride=2)
        self.dense1 = dense(0, SKIP_CHANNELS + in_channels)
        self.dense2 = dense(1, SKIP_CHANNELS)
        self.dense3 = dense(2, SKIP_CHANNELS)
        self.skip1 = ConvBlock(self.dense1.out_channels, SKIP_CHANNELS)
        self.skip2 = ConvBlock(self.dense2.out_channels, SKIP_CHANNELS)
        self.skip3 = ConvBlock(self.dense3.out_channels, SKIP_CHANNELS)
        self.down1 = ConvBlock(SKIP_CHANNELS, SKIP_CHANNELS, stride=2)
        self.down2 = ConvBlock(SKIP_CHANNELS, SKIP_CHANNELS, stride=2)
        merged = [SKIP_CHANNELS * (i if merge == "concat" else 1) for i in (1, 2, 3)]
        self.output1, self.output2, self.output3 = (nn.Conv3d(c, out_channels, 3, padding=1) for c in merged)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if not torch.jit.is_scripting():  # the check is no TorchScript
            check_size(x, SIZE_DIVISOR, "PDVNet")
        stem = torch.cat([self.stem(x), F.avg_pool3d(x, 2)], dim=1)  # (B, 25, 256, 256, 32)
        skip1 = self.skip1(self.dense1(stem))  # dense (B, 45, 256, 256, 32), skip (B, 24, ...)
        skip2 = self.skip2(self.dense2(self.down1(skip1)))  # dense (B, 104, 128, 128, 16), skip (B, 24, ...)
        skip3 = self.skip3(self.dense3(self.down2(skip2)))  # dense (B, 184, 64, 64, 8), skip (B, 24, ...)

        merged1 = skip1  # (B, 24, 256, 256, 32), also the two below (48 and 72 channels when stacked)
        merged2 = self._merge(merged1, _upsample(skip2, 2))
        merged3 = self._merge(merged2, _upsample(skip3, 4))
        if self.training:
            return self.output1(merged1), self.output2(merged2), self.output3(merged3)
        return _upsample(self.output3(merged3), 2)  # (B, 6, 512, 512, 64)

    def _merge(self, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        return fine + coarse if self.merge == "sum" else torch.cat([fine, coarse], dim=1)


def _upsample(x: torch.Tensor, factor: int) -> torch.Tensor:
    """Enlarge ``(B, C, X, Y, Z)`` by a factor along X, Y and Z, linearly."""
    return F.interpolate(x, scale_factor=float(factor), mode="trilinear", align_corners=False)
