# SPDX-License-Identifier: Apache-2.0
"""Bring the arbitrary intensities of MRI to one scale."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

__all__ = ["ZScored", "z_score"]


# Of the range of intensities, what may be rounding of the lowest one by the resampling before.
ROUNDING = 1e-5


def z_score(image: torch.Tensor) -> torch.Tensor:
    """Subtract mean and divide by standard deviation of the voxels above the lowest one.

    The voxels at the lowest intensity (air that a scanner sets to 0) do not count, but are scaled like all others.
    MONAI's ``NormalizeIntensity(nonzero=True)`` would leave them at 0, in the middle of the new scale. No offset and
    no positive factor changes the result, so pad afterwards: padding has an intensity of its own.

    Args:
        image: of any shape and dtype; a constant one becomes 0.

    Returns:
        the image in float32, or float64 if it is that.

    Source: the released code of 1606.04797, which scales to 0..1 first; that changes nothing here.
    """
    # before rounding to float32: a large offset would take the digits of the contrast
    image = (image.double() - image.min()).to(torch.float64 if image.dtype == torch.float64 else torch.float32)
    inside = image[image > ROUNDING * image.max()]
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
