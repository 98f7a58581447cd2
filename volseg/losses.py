# SPDX-License-Identifier: Apache-2.0
"""Losses that several papers' networks use and that MONAI lacks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from volseg.errors import UserError

__all__ = ["WeightedBCELoss", "class_balance_weight"]

# a voxel of the rarer class weighs at most 19 as foreground and 99 as background
MIN_FOREGROUND, MAX_FOREGROUND = 0.05, 0.99


class WeightedBCELoss(nn.Module):
    """Binary cross entropy on logits that gives more weight to the rarer class of each block and channel.

    The loss is averaged over all voxels and samples, not over the sum of the weights; channels are summed. It is
    computed in float32, whatever the precision of the logits.

    Args:
        channel_weights: factor per channel; all 1 if not given.

    Shapes:
        logits and target ``(B, C, ...)`` with target in [0, 1]; the loss is a scalar.

    Raises:
        ValueError: shapes of logits and target differ, or the number of factors is not that of channels.

    Source: 2104.07961, weighted binary cross entropy for mask and boundary; :func:`class_balance_weight` interprets it.
    """

    def __init__(self, channel_weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.channel_weights = None if channel_weights is None else tuple(channel_weights)

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        channels = logits.shape[1]
        factors = self.channel_weights or (1.0,) * channels
        if len(factors) != channels:
            raise UserError(f"channel_weights must have one value per channel ({channels}), got {factors}")
        target = target.float()
        loss = F.binary_cross_entropy_with_logits(
            logits.float(), target, weight=class_balance_weight(target), reduction="none"
        )
        per_channel = loss.transpose(0, 1).flatten(1).mean(dim=1)
        return (per_channel * per_channel.new_tensor(factors)).sum()


def class_balance_weight(target: torch.Tensor) -> torch.Tensor:
    """Return voxel weights that balance the two classes of each block and channel.

    Let f be the foreground fraction, clipped to [0.05, 0.99]. The rarer class has the weight (1 - f) / f if it is the
    foreground and f / (1 - f) if it is the background; the other class has 1. A constant target has weight 1.

    The article prints f / (1 - f) for a rare foreground, which would reduce its weight even further; this is the form
    of the released code.

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
