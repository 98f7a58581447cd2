# SPDX-License-Identifier: Apache-2.0
"""The loss that the paper compares its Dice loss with."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["WeightedLogisticLoss"]


class WeightedLogisticLoss(nn.Module):
    """Multinomial logistic loss in which every class of a batch weighs the same, however few its voxels are.

    The paper names the loss and says that samples are weighted against the imbalance; the weights are ours: the inverse
    of each class's share of the batch. Classes that the batch lacks weigh nothing.

    Shapes:
        input: logits ``(B, C, X, Y, Z)``; target: labels ``(B, 1, X, Y, Z)``, whole numbers below C of any type;
        output: a scalar.

    Source: 1606.04797, section 5 and Table 2, "V-Net + multinomial logistic loss".
    """

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        labels = target[:, 0].long()
        voxels = torch.bincount(labels.flatten(), minlength=input.shape[1]).to(input.dtype)
        weights = torch.where(voxels > 0, 1 / voxels.clamp(min=1), 0)
        return F.cross_entropy(input, labels, weight=weights)
