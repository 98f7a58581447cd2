# SPDX-License-Identifier: Apache-2.0
"""Building blocks that networks of several papers are made of."""

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

    "Same" zero padding; the convolution has no bias because the normalisation that follows has one.

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
    """Densely connected layers: each sees the block's input and the outputs of all layers before it.

    A layer is convolution 3x3x3, batch normalisation, PReLU (post-activation) and, but for the last layer of the
    block, dropout. The block's output holds its input, followed by the outputs of its layers.

    Args:
        in_channels: channels of the block's input.
        growth_rate: channels that each layer adds.
        num_layers: number of layers.
        dropout: probability to zero an element of a layer's output in training.
        checkpointing: in training, keep no activations inside a layer and compute them again in the backward pass.
            Gradients and running statistics are those of the plain block; memory falls, time grows by about a third.

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
            # the concatenation lies inside the checkpoint: it is the large tensor, 25 to 41 channels at full grid
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

    Convolution 1x3x3, whose output both enters the sum and goes through two convolutions 3x3x3. Each convolution is
    followed by an ELU, has a bias and "same" zero padding; there is no normalisation.

    Args:
        in_channels: channels of the block's input.
        out_channels: channels of all three convolutions.
        activation_after_sum: ``False``: the last ELU acts on the residual and the sum has none, as the paper's figure
            says. ``True``: the last convolution is bare and the ELU acts on the sum, as in the released code.

    Shapes:
        input ``(B, in_channels, D, H, W)``, output ``(B, out_channels, D, H, W)``.

    Source: 2104.07961, anisotropic convolution block of the architecture figure.
    """

    def __init__(self, in_channels: int, out_channels: int, activation_after_sum: bool = False) -> None:
        super().__init__()
        # in place: what the activations overwrite is read by nobody, also not in the backward pass
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
    """Plain 3D residual block, what the anisotropic convolution block is compared with.

    Two convolutions 3x3x3 with an ELU each, added to the input; where the number of channels changes, a convolution
    1x1x1 brings the input to it.

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
    """Contexts of the first and of the repeated forward pass of a checkpointed layer."""
    return nullcontext(), _kept_running_statistics(layer)


@contextmanager
def _kept_running_statistics(layer: nn.Module) -> Iterator[None]:
    """Let batch normalisation count a batch that is only recomputed in copies of its running statistics."""
    # without statistics it would keep other tensors for the backward pass, which checkpointing refuses
    kept = [(m, name, buffer) for m in layer.modules() for name, buffer in m.named_buffers(recurse=False)]
    for module, name, buffer in kept:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in kept:
            setattr(module, name, buffer)


def check_size(x: torch.Tensor, divisor: int, network: str) -> None:
    """Refuse an input ``(B, C, X, Y, Z)`` that a network cannot halve as often as it must.

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
                f"{network} needs sizes that are multiples of {divisor}. Received: {size} along {axis} "
                f"of {tuple(x.shape)}. Pad the image or choose another spatial_size."
            )
