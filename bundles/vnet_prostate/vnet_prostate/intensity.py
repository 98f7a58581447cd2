# SPDX-License-Identifier: Apache-2.0
"""Normalise the arbitrary intensities of MRI."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

__all__ = ["ZScored", "z_score"]


def z_score(image: torch.Tensor) -> torch.Tensor:
    """Subtract the mean and divide by the standard deviation of the voxels above the minimum.

    Voxels at the minimum (air that the scanner sets to 0, padding) do not count, but are scaled like all others.
    MONAI's ``NormalizeIntensity(nonzero=True)`` would leave them at 0, in the middle of the new scale.

    Args:
        image: image of any shape; a constant one becomes 0.

    Source: released code of 1606.04797, which first scales to 0..1, without effect on the result.
    """
    image = image - image.min()
    inside = image[image > 0]
    if inside.numel() == 0:
        return image
    deviation = inside.std(correction=0)
    return (image - inside.mean()) / (deviation if deviation > 0 else 1)


class ZScored(MapTransform):
    """Dictionary form of :func:`z_score`.

    Args:
        keys: entries with images ``(1, X, Y, Z)``.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = z_score(d[key])
        return d
