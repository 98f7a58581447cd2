# SPDX-License-Identifier: Apache-2.0
"""Run a pipeline on some entries of a dictionary as if there were no others."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.transforms import Transform
from monai.utils import ensure_tuple

__all__ = ["ApplyAlone"]


class ApplyAlone(Transform):
    """Apply a transform to the named entries alone and put the result beside the others.

    MONAI Label hands over its whole request: MONAI 1.6's ``Spacingd`` takes every entry whose name begins with
    ``image_`` for meta data, ``image_path`` among them, and fails.

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
