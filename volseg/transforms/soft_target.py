# SPDX-License-Identifier: Apache-2.0
"""Compute soft targets: the fraction of each coarse cell that each class fills."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.config import KeysCollection
from monai.utils import convert_to_tensor

from volseg.transforms.each_entry import EachEntryd
from volseg.transforms.separable import area_average

__all__ = ["SoftTargetd", "soft_target"]


class SoftTargetd(EachEntryd):
    """Convert label maps to the exact volume fraction of every class on another grid.

    Args:
        keys: entries with label maps ``(1, X, Y, Z)``; each becomes ``(num_classes, *spatial_size)``.
        num_classes: labels run from 0 to ``num_classes - 1``.
        spatial_size: the grid of the target.
    """

    def __init__(
        self, keys: KeysCollection, num_classes: int, spatial_size: Sequence[int], allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.num_classes = num_classes
        self.spatial_size = tuple(spatial_size)

    def change(self, entry: torch.Tensor) -> torch.Tensor:
        return soft_target(convert_to_tensor(entry, track_meta=False)[0], self.num_classes, self.spatial_size)


def soft_target(label: torch.Tensor, num_classes: int, spatial_size: Sequence[int]) -> torch.Tensor:
    """Return volume fractions ``(num_classes, *spatial_size)`` of a label map ``(X, Y, Z)``; each cell sums to 1."""
    # one class at a time: a one-hot CT would take gigabytes
    return torch.stack([area_average((label == c).float(), spatial_size) for c in range(num_classes)])
