# SPDX-License-Identifier: Apache-2.0
"""V-Net (arXiv 1606.04797).

Five encoder stages process the volume at full, half, quarter, eighth and sixteenth resolution; four decoder stages lead
back. Each stage adds its input to the output of its convolutions. Each decoder stage also receives the output of the
encoder stage at its resolution (Figure 2 of the paper)::

    x ── L1 ─────────────────────── skip ─────────────────────── R1 ── head ── logits
          └ down ─ L2 ───────────── skip ───────────── R2 ─ up ──┘
                    └ down ─ L3 ─── skip ─── R3 ─ up ──┘
                              └ down ─ L4 ─ R4 ─ up ┘
                                        └ L5 ┘

Where the text leaves the wiring open, this module follows the released model definition: the last activation of a stage
follows the sum, and in the decoder the residual is the whole concatenation of upsampled features and skip. Read
literally, Figure 2 has an activation before the sum and none after it, and only the upsampled features as residual.
Other ports apply both activations or use other numbers of convolutions.
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
    """V-Net with the numbers of convolutions of the paper's Table 1, which yield its receptive fields.

    Convolutions are 5x5x5 with zero padding and a bias. Changes of resolution are 2x2x2 with stride 2. Activations are
    PReLU with one slope per channel. By default there is neither normalisation nor dropout.

    Args:
        in_channels: input channels; see :class:`Stage` for how several channels enter the first sum.
        out_channels: classes, including background.
        channels: channels of the encoder stages L1 to L5; each decoder stage has twice those of its encoder stage.
        encoder_convs: convolutions in stages L1 to L5; (1, 1, 2, 3, 3) in the released model definition.
        decoder_convs: convolutions in stages R4 to R1; (3, 2, 1, 1) in the released model definition.
        norm: ``"batch"``, ``"instance"`` (both with learnt scale and shift) or ``None``. It precedes every activation;
            at the end of a stage it precedes the sum.
        dropout: probability of zeroing an element of a stage's output in training.
        head_kernel_size: 1 for a single 1x1x1 convolution, as in the paper; 5 for a 5x5x5 convolution with PReLU,
            followed by a 1x1x1 convolution, as in the released model definition.

    Shapes:
        input: ``(B, in_channels, X, Y, Z)``, sizes multiples of 16 for five stages (128x128x64 in the paper); output:
        logits ``(B, out_channels, X, Y, Z)``.

    Raises:
        ValueError: a size cannot be halved four times, or the arguments are inconsistent.

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
            raise UserError(
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
    """Convolutions at one resolution, whose output is added to the stage's input.

    Each convolution is followed by an activation; after the last one, the sum comes first. An input with fewer
    channels than the stage is repeated (a single channel is broadcast). If the numbers of channels do not divide, it
    passes through a 1x1x1 convolution instead.

    Args:
        in_channels: input channels.
        channels: channels of the convolutions.
        num_convs: number of convolutions, >= 1.
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
    """Group parameters for the optimiser as in the released solver: biases learn twice as fast and do not decay.

    Returns:
        all other parameters (convolution weights, PReLU slopes, norm scales), then the biases.
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
    """Yield the normalisation, if any."""
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
    """Initialise as the released definition: normal weights of variance 2 / mean(fan in, fan out), biases 0."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.xavier_normal_(module.weight, gain=math.sqrt(2))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
