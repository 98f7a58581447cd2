# SPDX-License-Identifier: Apache-2.0
"""Normalise the arbitrary intensities of MRI."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.config import KeysCollection
from monai.utils import convert_to_dst_type
from scipy import ndimage

from volseg.transforms.entries import EachEntryd

__all__ = ["LocalContrastd", "ZScored", "local_contrast", "z_score"]


# Of the range of intensities, what may be rounding of the lowest one by the resampling before.
ROUNDING = 1e-5
# Of the mean intensity: what keeps noise in air from being taken for contrast.
FLOOR = 0.1


def z_score(image: torch.Tensor) -> torch.Tensor:
    """Subtract the mean and divide by the standard deviation of the voxels above the minimum.

    Voxels at the minimum (air that the scanner sets to 0) do not count, but are scaled like all others. MONAI's
    ``NormalizeIntensity(nonzero=True)`` would leave them at 0, in the middle of the new scale. No offset and no
    positive factor changes the result. Pad afterwards, because padding has an intensity of its own.

    Args:
        image: image of any shape and dtype; a constant one becomes 0.

    Returns:
        the image in float32, or float64 if it is that.

    Source: released code of 1606.04797, which first scales to 0..1, without effect on the result.
    """
    # before rounding to float32: a large offset would take the digits of the contrast
    image = (image.double() - image.min()).to(torch.float64 if image.dtype == torch.float64 else torch.float32)
    inside = image[image > ROUNDING * image.max()]
    if inside.numel() == 0:
        return image
    deviation = inside.std(correction=0)
    return (image - inside.mean()) / (deviation if deviation > 0 else 1)


class ZScored(EachEntryd):
    """Dictionary form of :func:`z_score`.

    Args:
        keys: entries with images ``(1, X, Y, Z)``.
    """

    def change(self, entry: torch.Tensor) -> torch.Tensor:
        return z_score(entry)


def local_contrast(image: torch.Tensor, sigma_voxels: Sequence[float]) -> torch.Tensor:
    """Divide an image ``(1, X, Y, Z)`` by its surroundings, so that tissue near a coil is as bright as elsewhere.

    Unlike N4, it takes milliseconds and evens out an endorectal coil, whose sensitivity falls tenfold within a gland.

    Args:
        image: no offset and no positive factor changes the result; a constant one becomes 0.
        sigma_voxels: standard deviation of the Gaussian that weighs the surroundings, along each axis.
    """
    voxels = np.asarray(image[0], dtype=np.float64)
    # a few voxels beside a coil must not outshine the scan
    voxels = np.minimum(voxels, np.percentile(voxels, 99.5)) - voxels.min()
    surroundings = ndimage.gaussian_filter(voxels, sigma_voxels, mode="nearest", truncate=3)
    surroundings += FLOOR * voxels.mean()
    even = np.divide(voxels, surroundings, out=np.zeros_like(voxels), where=surroundings > 0)
    return convert_to_dst_type(even[None].astype(np.float32), dst=image, dtype=torch.float32)[0]


class LocalContrastd(EachEntryd):
    """Dictionary form of :func:`local_contrast`.

    Args:
        keys: entries with images ``(1, X, Y, Z)``.
        sigma_mm: of the Gaussian that weighs the surroundings.
        spacing_mm: of the images, along each axis.
    """

    def __init__(
        self, keys: KeysCollection, sigma_mm: float, spacing_mm: Sequence[float], allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.sigma_voxels = [sigma_mm / s for s in spacing_mm]

    def change(self, entry: torch.Tensor) -> torch.Tensor:
        return local_contrast(entry, self.sigma_voxels)
