# SPDX-License-Identifier: Apache-2.0
"""Data sets: epochs of any length, and a hash of a case by which a cache notices changed files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.data import Dataset
from monai.data.utils import pickle_hashing

__all__ = ["RepeatedDataset", "case_hash"]


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


def case_hash(case: Mapping[str, str]) -> bytes:
    """Hash a case for ``PersistentDataset`` by its paths and the size and modification time of its files.

    MONAI's own hash uses only the paths: after an annotator corrects a label, training would keep using the old one.
    """
    found = {}
    for key, value in case.items():
        path = Path(str(value))
        status = path.stat() if path.exists() else None
        found[key] = (str(value), status and (status.st_size, status.st_mtime_ns))
    return pickle_hashing(found)
