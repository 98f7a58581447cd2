# SPDX-License-Identifier: Apache-2.0
"""Base class of dictionary transforms that look at one entry at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping
from typing import Any

from monai.transforms import MapTransform

__all__ = ["EachEntryd"]


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
