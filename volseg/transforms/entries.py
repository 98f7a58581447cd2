# SPDX-License-Identifier: Apache-2.0
"""How transforms see the entries of a dictionary: each by itself, or some without the others."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform, Transform
from monai.utils import ensure_tuple

__all__ = ["ApplyAlone", "EachEntryd"]


class EachEntryd(MapTransform):
    """Changes each of its entries by itself, as :meth:`change` says."""

    @abstractmethod
    def change(self, entry: Any) -> Any:
        """What becomes of an entry."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.change(d[key])
        return d


class ApplyAlone(Transform):
    """Apply a transform to the named entries alone and merge its result with the others.

    MONAI Label passes its whole request to a pipeline. MONAI 1.6's ``Spacingd`` takes every entry that begins with
    ``image_`` for metadata and fails on ``image_path``.

    Args:
        keys: entries that the transform sees.
        transform: from a dictionary to a dictionary.
    """

    def __init__(
        self, keys: KeysCollection, transform: Callable[[dict[Hashable, Any]], Mapping[Hashable, Any]]
    ) -> None:
        self.keys = ensure_tuple(keys)
        self.transform = transform

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        return {**data, **self.transform({key: data[key] for key in self.keys})}
