# SPDX-License-Identifier: Apache-2.0
"""V-Net (arXiv 1606.04797).

Five encoder stages see the volume at its own and at a half, a quarter, an eighth and a sixteenth of its resolution;
four decoder stages lead back. A stage adds its input to what its convolutions make of it, and each decoder stage takes
in the output of the encoder stage at its resolution (Figure 2 of the paper)::

    x ── L1 ─────────────────────── skip ─────────────────────── R1 ── head ── logits
          └ down ─ L2 ───────────── skip ───────────── R2 ─ up ──┘
                    └ down ─ L3 ─── skip ─── R3 ─ up ──┘
                              └ down ─ L4 ─ R4 ─ up ┘
                                        └ L5 ┘

Where the text of the paper leaves the wiring open, it is that of the released model definition: the activation that
ends a stage follows the sum, and in the decoder the whole concatenation of upsampled features and skip is the residual.
Read literally, Figure 2 has an activation before the sum and none after it, and only the upsampled features as
residual. Other ports apply both activations, or have other numbers of convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from volseg.blocks import check_size
from volseg.errors import UserError

__all__ = ["Stage", "VNet", "parameter_groups"]

NORMS = {"batch": nn.BatchNorm3d, "instance": nn.InstanceNorm3d}


class VNet(nn.Module):
    """V-Net with the numbers of convolutions of the paper's Table 1, which give its receptive fields.

    Convolutions are 5x5x5 with zero padding, changes of resolution 2x2x2 with stride 2, activations PReLU with a slope
    per channel. There is no normalisation and no dropout unless asked for, and every convolution has a bias.

    Args:
        in_channels: channels of the input; see :class:`Stage` for how more than one enter the first sum.
        out_channels: classes, background included.
        channels: of the encoder stages L1 to L5. A decoder stage has twice those of the encoder stage beside it.
        encoder_convs: convolutions in the stages L1 to L5. (1, 1, 2, 3, 3) are those of the released model definition.
        decoder_convs: convolutions in the stages R4 to R1. (3, 2, 1, 1) are those of the released model definition.
        norm: ``"batch"``, ``"instance"`` (with learnt scale and shift) or ``None``; before every activation but the
            one that ends a stage, where it comes before the sum.
        dropout: probability to zero an element of a stage's output in training.
        head_kernel_size: 1 for a single 1x1x1 convolution as in the paper; 5 for a 5x5x5 convolution with PReLU and
            then one of 1x1x1, as in the released model definition.

    Shapes:
        input ``(B, in_channels, X, Y, Z)`` with sizes that are multiples of 16 for five stages (128x128x64 in the
        paper), output: logits ``(B, out_channels, X, Y, Z)``.

    Raises:
        ValueError: a size that cannot be halved four times, or arguments that do not fit each other.

    Source: 1606.04797, section 2, Figure 2 and Table 1.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        encoder_convs: Sequence[int] = (1, 2, 3, 3, 3),
        decoder_convs: Sequence[int] = (3, 3, 2, 1),
        norm: str | None = None,
        dropout: float = 0.0,
        head_kernel_size: int = 1,
    ) -> None:
        super().__init__()
        if not len(channels) == len(encoder_convs) == len(decoder_convs) + 1:
            raise ValueError(
                "channels and encoder_convs must have one entry per stage, decoder_convs one less, "
                f"got {len(channels)}, {len(encoder_convs)} and {len(decoder_convs)}"
            )
        self.divisor = 2 ** len(decoder_convs)
        self.encoder = nn.ModuleList()
        self.down = nn.ModuleList()
        for level, (width, convs) in enumerate(zip(channels, encoder_convs, strict=True)):
            if level > 0:
                self.down.append(_activated(nn.Conv3d(channels[level - 1], width, 2, stride=2), width, norm))
            self.encoder.append(Stage(width if level > 0 else in_channels, width, convs, norm, dropout))
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        below = channels[-1]
        for width, convs in zip(channels[-2::-1], decoder_convs, strict=True):
            self.up.append(_activated(nn.ConvTranspose3d(below, width, 2, stride=2), width, norm))
            below = 2 * width  # upsampled features and skip
            self.decoder.append(Stage(below, below, convs, norm, dropout))
        self.head = _head(below, out_channels, head_kernel_size, norm)
        self.apply(_initialise)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_scripting():
            check_size(x, self.divisor, "V-Net")
        skips: list[torch.Tensor] = []
        for stage, down in zip(self.encoder, self.down):  # noqa: B905  TorchScript has no strict; the last has no down
            skips.append(stage(x))
            x = down(skips[-1])
        x = self.encoder[-1](x)
        for up, stage in zip(self.up, self.decoder):  # noqa: B905
            x = stage(torch.cat([up(x), skips.pop()], dim=1))
        return self.head(x)


class Stage(nn.Module):
    """Convolutions at one resolution, whose result is added to the stage's input.

    Every convolution is followed by an activation; that of the last one comes after the sum. An input with fewer
    channels than the stage enters the sum repeated (one channel: broadcast), or through a 1x1x1 convolution where the
    numbers of channels do not divide.

    Args:
        in_channels: channels of the input.
        channels: of the convolutions.
        num_convs: number of convolutions, at least one.
        norm: see :class:`VNet`.
        dropout: see :class:`VNet`.

    Shapes:
        input ``(B, in_channels, X, Y, Z)``, output ``(B, channels, X, Y, Z)``.
    """

    def __init__(
        self, in_channels: int, channels: int, num_convs: int, norm: str | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(num_convs):
            conv = nn.Conv3d(channels if i > 0 else in_channels, channels, 5, padding=2)
            layers += [_activated(conv, channels, norm)] if i < num_convs - 1 else [conv, *_norm(channels, norm)]
        self.convs = nn.Sequential(*layers)
        self.shortcut: nn.Module = nn.Identity()
        self.repeats = channels // in_channels if in_channels > 1 else 1
        if channels % in_channels:
            self.repeats = 1
            self.shortcut = nn.Conv3d(in_channels, channels, 1)
        self.activation = nn.PReLU(channels)
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.shortcut(x)
        if self.repeats > 1:
            residual = residual.repeat(1, self.repeats, 1, 1, 1)
        return self.dropout(self.activation(self.convs(x) + residual))


def parameter_groups(network: nn.Module, learning_rate: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters for an optimiser as in the released solver: biases learn twice as fast and do not decay.

    Returns:
        the groups of biases and of all others (convolution weights, PReLU slopes, scales of norms).
    """
    biases = [p for name, p in network.named_parameters() if name.endswith("bias")]
    others = [p for name, p in network.named_parameters() if not name.endswith("bias")]
    return [
        {"params": others, "lr": learning_rate, "weight_decay": weight_decay},
        {"params": biases, "lr": 2 * learning_rate, "weight_decay": 0.0},
    ]


def _activated(conv: nn.Module, channels: int, norm: str | None) -> nn.Sequential:
    return nn.Sequential(conv, *_norm(channels, norm), nn.PReLU(channels))


def _norm(channels: int, norm: str | None) -> Iterator[nn.Module]:
    """The normalisation, or nothing at all."""
    if norm is None:
        return
    if not isinstance(norm, str) or norm not in NORMS:
        raise UserError(f"norm must be None, {' or '.join(map(repr, NORMS))}, got {norm!r}")
    yield NORMS[norm](channels, affine=True)


def _head(in_channels: int, out_channels: int, kernel_size: int, norm: str | None) -> nn.Module:
    if kernel_size == 1:
        return nn.Conv3d(in_channels, out_channels, 1)
    return nn.Sequential(
        _activated(nn.Conv3d(in_channels, out_channels, kernel_size, padding=kernel_size // 2), out_channels, norm),
        nn.Conv3d(out_channels, out_channels, 1),
    )


def _initialise(module: nn.Module) -> None:
    """As the released definition: normal weights of variance 2 over the mean of fan in and fan out, biases 0."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.xavier_normal_(module.weight, gain=math.sqrt(2))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
