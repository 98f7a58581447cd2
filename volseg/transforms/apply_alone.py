# SPDX-License-Identifier: Apache-2.0
"""Run a pipeline on some entries of a dictionary and hide the others from it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.transforms import Transform
from monai.utils import ensure_tuple

__all__ = ["ApplyAlone"]


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
