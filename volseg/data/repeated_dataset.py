# SPDX-License-Identifier: Apache-2.0
"""A data set whose epochs are as long as one wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from monai.data import Dataset

__all__ = ["RepeatedDataset"]


class RepeatedDataset(Dataset):
    """Cases take turns until an epoch is full: for transforms that crop at random from volumes of any number.

    Args:
        data: cases.
        transform: applied to a case each time its turn comes.
        num_items: of an epoch.
    """

    def __init__(self, data: Sequence[Any], transform: Callable[..., Any], num_items: int) -> None:
        super().__init__(data, transform)
        self.num_items = num_items

    def __len__(self) -> int:
        return self.num_items

    def _transform(self, index: int) -> Any:
        return super()._transform(index % len(self.data))
