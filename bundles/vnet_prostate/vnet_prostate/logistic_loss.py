# SPDX-License-Identifier: Apache-2.0
"""The loss that the paper compares with its Dice loss."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["WeightedLogisticLoss"]


class WeightedLogisticLoss(nn.Module):
    """Multinomial logistic loss that gives all classes of a batch the same weight, however few voxels they have.

    The paper names the loss and states that samples are weighted to counter imbalance. It does not give the weights;
    ours are the inverse of each class's share of the batch. Classes absent from the batch have weight 0.

    Shapes:
        input: logits ``(B, C, X, Y, Z)``; target: integer labels below C ``(B, 1, X, Y, Z)`` of any dtype; output:
        scalar.

    Source: 1606.04797, section 5 and Table 2, "V-Net + multinomial logistic loss".
    """

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        labels = target[:, 0].long()
        voxels = torch.bincount(labels.flatten(), minlength=input.shape[1]).to(input.dtype)
        weights = torch.where(voxels > 0, 1 / voxels.clamp(min=1), 0)
        return F.cross_entropy(input, labels, weight=weights)
