# SPDX-License-Identifier: Apache-2.0
"""Losses that networks of several papers can be trained with and that MONAI does not have."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["WeightedBCELoss", "class_balance_weight"]

# no voxel of the rarer class weighs more than 19 where it is the foreground, or 99 where it is the background
MIN_FOREGROUND, MAX_FOREGROUND = 0.05, 0.99


class WeightedBCELoss(nn.Module):
    """Binary cross entropy on logits, in which the rarer class of every block and channel weighs more.

    The mean is over all voxels and samples, not over the sum of the weights; channels are added. Computed in float32,
    whatever the precision of the logits.

    Args:
        channel_weights: factor of every channel's loss; all 1 if not given.

    Shapes:
        logits and target ``(B, C, ...)`` with target in [0, 1]; the loss is a scalar.

    Raises:
        ValueError: shapes of logits and target differ, or there are not as many factors as channels.

    Source: 2104.07961, weighted binary cross entropy for mask and boundary, as :func:`class_balance_weight` reads it.
    """

    def __init__(self, channel_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.channel_weights = None if channel_weights is None else tuple(channel_weights)

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        channels = logits.shape[1]
        factors = self.channel_weights or (1.0,) * channels
        if len(factors) != channels:
            raise ValueError(f"channel_weights needs one value a channel, {channels}. Received: {factors}.")
        target = target.float()
        loss = F.binary_cross_entropy_with_logits(
            logits.float(), target, weight=class_balance_weight(target), reduction="none"
        )
        per_channel = loss.transpose(0, 1).flatten(1).mean(dim=1)
        return (per_channel * per_channel.new_tensor(factors)).sum()


def class_balance_weight(target: torch.Tensor) -> torch.Tensor:
    """Weight of every voxel by which both classes of a block and channel count about the same.

    With f the fraction of foreground, clipped to [0.05, 0.99], the rarer class has the weight (1 - f) / f or, where it
    is the background, f / (1 - f); the other class has 1. A target that is the same everywhere has weight 1.

    The article prints f / (1 - f) for a foreground that is rare, which would make it count even less; this is the
    form of the released code.

    Args:
        target: ``(B, C, ...)`` with values in [0, 1].

    Returns:
        weights, float32, of the same shape.

    Source: 2104.07961, weighted binary cross entropy.
    """
    target = target.float()
    axes = tuple(range(2, target.ndim))
    fraction = target.mean(dim=axes, keepdim=True).clamp(MIN_FOREGROUND, MAX_FOREGROUND)
    ratio = (1 - fraction) / fraction
    constant = target.amin(dim=axes, keepdim=True) == target.amax(dim=axes, keepdim=True)
    foreground = ratio.clamp(min=1).masked_fill(constant, 1)
    background = (1 / ratio).clamp(min=1).masked_fill(constant, 1)
    return foreground * target + background * (1 - target)
