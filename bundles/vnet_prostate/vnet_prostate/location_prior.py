# SPDX-License-Identifier: Apache-2.0
"""What a network must beat: a mask that never looks at the image."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["LocationPrior"]

logger = logging.getLogger(__name__)

THRESHOLDS = torch.arange(0.05, 1, 0.05)


class LocationPrior(nn.Module):
    """The places that belong to most glands of a training, whatever the image; stands in for a network.

    Of the mean of the masks, what lies above a threshold is the gland: the threshold of :data:`THRESHOLDS` with the
    best mean Dice on these masks.

    Args:
        masks: cases with ``label`` (1, X, Y, Z), 0 or 1, on the network's grid; at least one gland.

    Shapes:
        input ``(B, 1, X, Y, Z)``, output: logits ``(B, 2, X, Y, Z)``, the same for every input.
    """

    logits: torch.Tensor

    def __init__(self, masks: Iterable[Mapping[str, Any]]) -> None:
        super().__init__()
        glands = torch.stack([torch.as_tensor(case["label"]).detach()[0] > 0.5 for case in masks])
        frequency = glands.float().mean(0)
        dice = torch.stack([_dice(frequency > threshold, glands).mean() for threshold in THRESHOLDS])
        threshold = THRESHOLDS[dice.argmax()]
        logger.info(
            "location prior of %d masks: threshold %.2f, Dice %.3f on themselves", len(glands), threshold, dice.max()
        )
        logit = 10 * (frequency - threshold)
        self.register_buffer("logits", torch.stack([torch.zeros_like(logit), logit])[None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(x), -1, -1, -1, -1)


def _dice(mask: torch.Tensor, glands: torch.Tensor) -> torch.Tensor:
    """Dice of a mask ``(X, Y, Z)`` with each of ``(N, X, Y, Z)``."""
    axes = (1, 2, 3)
    return 2 * (mask & glands).sum(axes) / (mask.sum() + glands.sum(axes)).clamp(min=1)
