# SPDX-License-Identifier: Apache-2.0
"""Res-UNet-R and Res-UNet-H (arXiv 2104.07961).

Sections of electron microscopy are several times thicker than the pixels within them, so both networks halve and
double the resolution within sections only: every feature map has as many sections as the input. Features of encoder
and decoder are merged by addition. Res-UNet-R has one decoder with a head of two channels; Res-UNet-H has one decoder
for the mask and one for the boundary, which need different features::

    x ─ embedding ─ E0 ─────────────── (+) ─ D0 ── head ── mask and boundary (R), mask (H)
                     └ down ─ E1 ───── (+) ─ D1 ─ up ┘
                               └ down ─ E2 ─ up ┘             two of five levels are left out here;
                                                              H: the same once more for the boundary

Every E and D is an anisotropic convolution block. The sources disagree in places; what is built here is the figure of
the paper. The released code differs from it and between its two networks: norms, padding, pooling, the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from volseg.blocks import AnisotropicConvBlock, ResidualConvBlock
from volseg.errors import UserError

__all__ = ["Decoder", "Encoder", "ResUNetH", "ResUNetR", "initialise"]

CHANNELS = (28, 36, 48, 64, 80)
Block = AnisotropicConvBlock | ResidualConvBlock
# grey values of tissue, of which the range is 0 to 1, lie around this and spread by about that
GREY_MEAN, GREY_DEVIATION = 0.5, 0.2
# of the deviations that keep signals alive: for what ends a residual and for what a sigmoid takes
RESIDUAL_SCALE, HEAD_SCALE = 0.1, 0.1
BLOCKS: dict[str, type[Block]] = {"anisotropic": AnisotropicConvBlock, "residual": ResidualConvBlock}


class ResUNetR(nn.Module):
    """Res-UNet-R: one decoder predicts mask and boundary together. 1.53 million parameters.

    Args:
        in_channels: channels of the image.
        channels: of the levels, from the full resolution down.
        block: ``"anisotropic"``, the paper's block, or ``"residual"``, the plain one that it is compared with.
        activation_after_sum: where the last activation of a block stands, see
            :class:`~volseg.blocks.AnisotropicConvBlock`; ``False`` is the paper's figure, ``True`` the released code.
        dropout: probability to zero an element of a block's output in training; not in the paper.

    Shapes:
        input ``(B, in_channels, D, H, W)``, any D, H and W multiples of 16 for five levels.
        Output: logits ``(B, 2, D, H, W)``, channel 0 mask, channel 1 boundary, in training and in evaluation.

    Raises:
        ValueError: no such block; H or W cannot be halved as often as there are levels below the first.

    Source: 2104.07961, section on the networks and architecture figure.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = CHANNELS,
        block: str = "anisotropic",
        activation_after_sum: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.divisor = 2 ** (len(channels) - 1)
        self.encoder = Encoder(in_channels, channels, block, activation_after_sum, dropout)
        self.decoder = Decoder(channels, 2, block, activation_after_sum, dropout)
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_scripting():  # the check is no TorchScript
            _check_section_size(x, self.divisor, "Res-UNet-R")
        return self.decoder(self.encoder(x))


class ResUNetH(nn.Module):
    """Res-UNet-H: mask and boundary have a decoder each on one encoder. 2.08 million parameters.

    Arguments, shapes, errors and source are those of :class:`ResUNetR`.
    """

    def __init__(
        self,
        in_channels: int = 1,
        channels: Sequence[int] = CHANNELS,
        block: str = "anisotropic",
        activation_after_sum: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.divisor = 2 ** (len(channels) - 1)
        self.encoder = Encoder(in_channels, channels, block, activation_after_sum, dropout)
        self.mask_decoder = Decoder(channels, 1, block, activation_after_sum, dropout)
        self.boundary_decoder = Decoder(channels, 1, block, activation_after_sum, dropout)
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_scripting():
            _check_section_size(x, self.divisor, "Res-UNet-H")
        features = self.encoder(x)
        return torch.cat([self.mask_decoder(features), self.boundary_decoder(features)], dim=1)


class Encoder(nn.Module):
    """Embedding, then a block a level; strided convolutions between them halve H and W.

    A strided convolution keeps the number of channels; the block after it widens.

    Shapes:
        input ``(B, in_channels, D, H, W)``, output: one tensor a level, ``(B, channels[l], D, H / 2^l, W / 2^l)``.
    """

    def __init__(
        self, in_channels: int, channels: Sequence[int], block: str, activation_after_sum: bool, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.embedding = _activated(nn.Conv3d(in_channels, channels[0], (1, 5, 5), padding=(0, 2, 2)))
        self.blocks = nn.ModuleList()
        self.down = nn.ModuleList()
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        above = channels[0]
        for level, width in enumerate(channels):
            if level > 0:
                conv = nn.Conv3d(above, above, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
                self.down.append(_activated(conv))
            self.blocks.append(_block(block)(above, width, activation_after_sum))
            above = width

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        x = self.embedding(x)  # (B, 28, 32, 256, 256), with the paper's block of 32 x 256 x 256
        features: list[torch.Tensor] = []
        for block, down in zip(self.blocks, self.down):  # noqa: B905  TorchScript has no strict; the last has no down
            features.append(
                self.dropout(block(x))
            )  # (B, 28, 32, 256, 256), (B, 36, 32, 128, 128) ... (B, 64, 32, 32, 32)
            x = down(features[-1])
        features.append(self.dropout(self.blocks[-1](x)))  # (B, 80, 32, 16, 16)
        return features


class Decoder(nn.Module):
    """From the deepest features up: enlarge, add the encoder's features of that level, block; a head at the end.

    Shapes:
        input: the encoder's output; output: logits ``(B, out_channels, D, H, W)``.
    """

    def __init__(
        self, channels: Sequence[int], out_channels: int, block: str, activation_after_sum: bool, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.up = nn.ModuleList()
        self.blocks = nn.ModuleList()
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()
        below = channels[-1]
        for width in channels[-2::-1]:
            # to fewer channels first: the linear interpolation then has less to do
            conv = _activated(nn.Conv3d(below, width, 1))
            enlarge = nn.Upsample(scale_factor=(1.0, 2.0, 2.0), mode="trilinear", align_corners=False)
            self.up.append(nn.Sequential(conv, enlarge))
            self.blocks.append(_block(block)(width, width, activation_after_sum))
            below = width
        self.head = nn.Conv3d(below, out_channels, (1, 5, 5), padding=(0, 2, 2))

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        x = features[-1]  # (B, 80, 32, 16, 16)
        level = len(features) - 1
        for up, block in zip(self.up, self.blocks):  # noqa: B905  TorchScript has no strict
            level -= 1
            x = self.dropout(block(up(x) + features[level]))  # (B, 64, 32, 32, 32) ... (B, 28, 32, 256, 256)
        return self.head(x)


def initialise(network: nn.Module) -> None:
    """Draw the weights so that the network, which has no normalisation, learns from the first iterations on.

    Convolutions keep the variance of their input (He et al. with a gain of 1); those that end a residual and the heads
    begin at a tenth of that, so that a block begins near its first convolution and the probabilities near a half.
    PyTorch's own initialisation keeps a third of the variance with every convolution: little is left of what passed the
    bottleneck. The embedding begins as if grey values had been brought to mean 0 and deviation 1; in the range 0 to 1,
    as the paper has them, all features begin alike.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv3d) and module.bias is not None:
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)
            with torch.no_grad():
                if name.endswith("residual.2"):
                    module.weight *= RESIDUAL_SCALE
                elif name.endswith("head"):
                    module.weight *= HEAD_SCALE
                elif name.endswith("embedding.0"):
                    module.weight /= GREY_DEVIATION
                    module.bias -= GREY_MEAN * module.weight.sum(dim=(1, 2, 3, 4))


def _block(name: str) -> type[Block]:
    if name not in BLOCKS:
        raise UserError(f"block must be one of {', '.join(BLOCKS)}, got {name!r}")
    return BLOCKS[name]


def _activated(conv: nn.Module) -> nn.Sequential:
    # in place: nothing else reads the convolution's output, and the backward pass needs the activation's output only
    return nn.Sequential(conv, nn.ELU(inplace=True))


def _check_section_size(x: torch.Tensor, divisor: int, network: str) -> None:
    """Refuse an input ``(B, C, D, H, W)`` whose sections cannot be halved often enough; D is never halved."""
    for axis, size in zip("HW", x.shape[3:], strict=True):
        if size % divisor:
            raise UserError(
                f"{network}: H and W must be multiples of {divisor}, got {size} along {axis} of {tuple(x.shape)}; pad "
                "the image or choose another spatial_size"
            )
