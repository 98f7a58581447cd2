# SPDX-License-Identifier: Apache-2.0
"""A data set with epochs of any length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from monai.data import Dataset

__all__ = ["RepeatedDataset"]


class RepeatedDataset(Dataset):
    """Cycle through the cases until an epoch is full, for transforms that crop at random from any number of volumes.

    Args:
        data: cases.
        transform: applied to a case each time it is drawn.
        num_items: items per epoch.
    """

    def __init__(self, data: Sequence[Any], transform: Callable[..., Any], num_items: int) -> None:
        super().__init__(data, transform)
        self.num_items = num_items

    def __len__(self) -> int:
        return self.num_items

    def _transform(self, index: int) -> Any:
        return super()._transform(index % len(self.data))
