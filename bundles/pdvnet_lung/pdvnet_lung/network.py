# SPDX-License-Identifier: Apache-2.0
"""Progressive Dense V-Network (arXiv 1902.06362).

Three dense feature blocks work at a half, a quarter and an eighth of the input's resolution. Each passes its features
on through a skip convolution. The skips of the deeper blocks are upsampled to the half grid and added one by one, so
that each of three outputs refines the previous one::

    input ─┬─ conv 5x5x5 /2 ─┬─ dense 1 ── skip 1 ─┬──────────── m1 ── output 1
           └─ average pool ──┘              down 1 ┤              │
                                     dense 2 ── skip 2 ─ up x2 ─ (+) m2 ── output 2
                                            down 2 ┤              │
                                     dense 3 ── skip 3 ─ up x4 ─ (+) m3 ── output 3

Comments in ``forward`` give the shapes for the paper's input of 512 x 512 x 64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from volseg.blocks import ConvBlock, DenseBlock, check_size
from volseg.errors import UserError

__all__ = ["PDVNet"]

SKIP_CHANNELS = 24
SIZE_DIVISOR = 8


class PDVNet(nn.Module):
    """PDV-Net: progressive dense V-network.

    Where the sources disagree or are silent, this network has

    - growth rates 4, 8, 16, which the figure's channel counts 45, 104, 184 require (a text source gives 4, 6, 8);
    - features merged by addition, as the circled plus in the figure indicates;
    - a skip convolution after each block, from which the next block starts with stride 2;
    - logits computed on the half grid and interpolated linearly to the input's size.

    Args:
        in_channels: channels of the image.
        out_channels: classes, including background.
        growth_rates: channels added by each layer of dense blocks 1, 2, 3.
        num_layers: layers of dense blocks 1, 2, 3.
        merge: ``"sum"`` adds the features of the three resolutions, ``"concat"`` concatenates them.
        dropout: probability of dropout after each dense layer except the last of a block.
        checkpointing: recompute dense layers in the backward pass instead of storing their activations.

    Shapes:
        input: ``(B, in_channels, X, Y, Z)``, sizes multiples of 8. Output in training: a tuple of three logits
        ``(B, out_channels, X/2, Y/2, Z/2)``, coarse to fine, for deep supervision; in evaluation: the last logits
        ``(B, out_channels, X, Y, Z)``.

    Raises:
        ValueError: a size is not a multiple of 8, or an argument is invalid.
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
            raise UserError(f"merge must be 'sum' or 'concat', got {merge!r}")
        if len(growth_rates) != 3 or len(num_layers) != 3:
            raise UserError(f"growth_rates and num_layers must have 3 values, got {growth_rates} and {num_layers}")
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
        if not torch.jit.is_scripting():  # TorchScript cannot compile the check
            check_size(x, SIZE_DIVISOR, "PDVNet")
        stem = torch.cat([self.stem(x), F.avg_pool3d(x, 2)], dim=1)  # (B, 25, 256, 256, 32)
        skip1 = self.skip1(self.dense1(stem))  # dense (B, 45, 256, 256, 32), skip (B, 24, ...)
        skip2 = self.skip2(self.dense2(self.down1(skip1)))  # dense (B, 104, 128, 128, 16), skip (B, 24, ...)
        skip3 = self.skip3(self.dense3(self.down2(skip2)))  # dense (B, 184, 64, 64, 8), skip (B, 24, ...)

        merged1 = skip1  # (B, 24, 256, 256, 32), as the next two (48 and 72 channels if concatenated)
        merged2 = self._merge(merged1, _upsample(skip2, 2))
        merged3 = self._merge(merged2, _upsample(skip3, 4))
        if self.training:
            return self.output1(merged1), self.output2(merged2), self.output3(merged3)
        return _upsample(self.output3(merged3), 2)  # (B, 6, 512, 512, 64)

    def _merge(self, fine: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
        return fine + coarse if self.merge == "sum" else torch.cat([fine, coarse], dim=1)


def _upsample(x: torch.Tensor, factor: int) -> torch.Tensor:
    """Upsample ``(B, C, X, Y, Z)`` by a factor along X, Y and Z, with linear interpolation."""
    return F.interpolate(x, scale_factor=float(factor), mode="trilinear", align_corners=False)
