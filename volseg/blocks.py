# SPDX-License-Identifier: Apache-2.0
"""Building blocks that several papers' networks share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from volseg.errors import UserError

__all__ = ["AnisotropicConvBlock", "ConvBlock", "DenseBlock", "ResidualConvBlock", "check_size"]


class ConvBlock(nn.Sequential):
    """3D convolution, batch normalisation, PReLU with a slope per channel.

    The convolution pads with zeros ("same") and has no bias, because the normalisation that follows has one.

    Shapes:
        input ``(B, in_channels, X, Y, Z)``, output ``(B, out_channels, ceil(X / stride), ...)``.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv3d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False),
            nn.BatchNorm3d(out_channels),
            nn.PReLU(out_channels),
        )


class DenseBlock(nn.Module):
    """Densely connected layers: each takes the block's input and the outputs of all earlier layers.

    A layer is a 3x3x3 convolution, batch normalisation, PReLU (post-activation) and, except in the last layer,
    dropout. The block's output is its input followed by the outputs of its layers.

    Args:
        in_channels: channels of the block's input.
        growth_rate: channels that each layer adds.
        num_layers: number of layers.
        dropout: probability of zeroing an element of a layer's output in training.
        checkpointing: in training, recompute activations inside a layer in the backward pass. Gradients and running
            statistics stay the same; memory falls, and time grows by about a third.

    Shapes:
        input ``(B, in_channels, X, Y, Z)``, output ``(B, out_channels, X, Y, Z)`` with
        ``out_channels = in_channels + num_layers * growth_rate``.

    Source: 1902.06362, dense feature blocks of the architecture figure.
    """

    def __init__(
        self,
        in_channels: int,
        growth_rate: int,
        num_layers: int,
        dropout: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.out_channels = in_channels + num_layers * growth_rate
        self.checkpointing = checkpointing
        self.layers = nn.ModuleList(ConvBlock(in_channels + i * growth_rate, growth_rate) for i in range(num_layers))
        self.dropout = nn.Dropout(dropout) if dropout > 0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_scripting() and self.checkpointing and self.training and torch.is_grad_enabled():
            return self._forward_checkpointed(x)
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            new = layer(x)
            x = torch.cat([x, new if i == last else self.dropout(new)], dim=1)
        return x

    def _forward_checkpointed(self, x: torch.Tensor) -> torch.Tensor:
        last = len(self.layers) - 1
        features = [x]
        for i, layer in enumerate(self.layers):
            # concatenate inside the checkpoint: the result is the large tensor, 25 to 41 channels at full grid
            new = checkpoint(
                partial(_concatenate_and_apply, layer),
                *features,
                use_reentrant=False,
                context_fn=partial(_recomputation_contexts, layer),
            )
            features.append(new if i == last else self.dropout(new))
        return torch.cat(features, dim=1)


class AnisotropicConvBlock(nn.Module):
    """Anisotropic convolution block (ACB): a convolution within sections, then a residual of two across them.

    The output of a 1x3x3 convolution both enters the sum and passes through two 3x3x3 convolutions. Each convolution
    has a bias, pads with zeros ("same") and is followed by an ELU; there is no normalisation.

    Args:
        in_channels: channels of the block's input.
        out_channels: channels of all three convolutions.
        activation_after_sum: ``False`` applies the last ELU to the residual, as in the paper's figure. ``True`` applies
            it to the sum, as in the released code.

    Shapes:
        input ``(B, in_channels, D, H, W)``, output ``(B, out_channels, D, H, W)``.

    Source: 2104.07961, anisotropic convolution block of the architecture figure.
    """

    def __init__(self, in_channels: int, out_channels: int, activation_after_sum: bool = False) -> None:
        super().__init__()
        # in place: nothing reads what the activations overwrite, not even the backward pass
        self.conv = nn.Sequential(
            nn.Conv3d(in_channels, out_channels, (1, 3, 3), padding=(0, 1, 1)), nn.ELU(inplace=True)
        )
        self.residual = nn.Sequential(
            nn.Conv3d(out_channels, out_channels, 3, padding=1),
            nn.ELU(inplace=True),
            nn.Conv3d(out_channels, out_channels, 3, padding=1),
            nn.Identity() if activation_after_sum else nn.ELU(inplace=True),
        )
        self.activation = nn.ELU(inplace=True) if activation_after_sum else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return self.activation(x + self.residual(x))


class ResidualConvBlock(nn.Module):
    """Plain 3D residual block, the baseline for the anisotropic convolution block.

    Two 3x3x3 convolutions, each with an ELU, are added to the input. If the number of channels changes, a 1x1x1
    convolution adapts the input.

    Args:
        in_channels: channels of the block's input.
        out_channels: channels of its output.
        activation_after_sum: see :class:`AnisotropicConvBlock`.

    Shapes:
        input ``(B, in_channels, D, H, W)``, output ``(B, out_channels, D, H, W)``.
    """

    def __init__(self, in_channels: int, out_channels: int, activation_after_sum: bool = False) -> None:
        super().__init__()
        self.shortcut = nn.Conv3d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.residual = nn.Sequential(
            nn.Conv3d(in_channels, out_channels, 3, padding=1),
            nn.ELU(inplace=True),
            nn.Conv3d(out_channels, out_channels, 3, padding=1),
            nn.Identity() if activation_after_sum else nn.ELU(inplace=True),
        )
        self.activation = nn.ELU(inplace=True) if activation_after_sum else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.shortcut(x) + self.residual(x))


def _concatenate_and_apply(layer: nn.Module, *features: torch.Tensor) -> torch.Tensor:
    return layer(torch.cat(features, dim=1))


def _recomputation_contexts(layer: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Return the contexts of the first and the repeated forward pass of a checkpointed layer."""
    return nullcontext(), _kept_running_statistics(layer)


@contextmanager
def _kept_running_statistics(layer: nn.Module) -> Iterator[None]:
    """Let batch normalisation count a recomputed batch in copies of its running statistics."""
    # without statistics it would save other tensors for the backward pass, which checkpointing refuses
    kept = [(m, name, buffer) for m in layer.modules() for name, buffer in m.named_buffers(recurse=False)]
    for module, name, buffer in kept:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in kept:
            setattr(module, name, buffer)


def check_size(x: torch.Tensor, divisor: int, network: str) -> None:
    """Refuse an input ``(B, C, X, Y, Z)`` that a network cannot halve often enough.

    Args:
        x: input of the network.
        divisor: every size must be a multiple of it.
        network: its name.

    Raises:
        UserError: names the axis, its size and the divisor.
    """
    for axis, size in zip("XYZ", x.shape[2:], strict=True):
        if size % divisor:
            raise UserError(
                f"{network} needs sizes that are multiples of {divisor}, got {size} along {axis} "
                f"of {tuple(x.shape)}; pad the image or choose another spatial_size"
            )
