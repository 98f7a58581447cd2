# SPDX-License-Identifier: Apache-2.0
"""Grey values of electron microscopy as the network takes them, from 0 to 1."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform
from monai.utils import convert_to_numpy, convert_to_tensor

__all__ = ["ScaleGreyValuesd"]

logger = logging.getLogger(__name__)

PERCENTILES = (0.1, 99.9)
# about as many voxels at most are sorted for the percentiles
SAMPLE = 2**24
GREY_IN_COLORS = 0x010101


class ScaleGreyValuesd(MapTransform):
    """Divide 8-bit images by 255, as the paper's were; bring others from their percentiles 0.1 and 99.9 to 0 and 1.

    Images of 16 bits use an unknown part of their range, and floats have none. Values that are not finite become 0. The
    percentiles are those of the image that is given: of a crop, the crop's. Files in colour are read as ids of 24 bits:
    where all are shades of grey, they are 8-bit images.

    Args:
        keys: images ``(C, D, H, W)``; each becomes float32 with its meta data.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            image = convert_to_tensor(d[key], track_meta=True)
            if image.dtype == torch.uint8:
                d[key] = image.float().div_(255)
                continue
            if _is_grey_in_colors(image):
                d[key] = image.float().div_(255 * GREY_IN_COLORS)
                continue
            low, high = _percentiles(image)
            name = image.meta.get("filename_or_obj", key)
            logger.debug("%s: %s, grey values from %g to %g become 0 to 1", name, image.dtype, low, high)
            values = torch.nan_to_num(image.float(), nan=low, posinf=low, neginf=low)
            d[key] = values.sub_(low).div_(max(high - low, 1e-6)).clamp_(0, 1)
        return d


def _is_grey_in_colors(image: torch.Tensor) -> bool:
    """Whether each value is a red, a green and a blue byte that are equal."""
    if image.dtype != torch.int64 or not 0 < image.max() <= 255 * GREY_IN_COLORS:
        return False
    return bool(image.min() >= 0) and not bool((image % GREY_IN_COLORS).any())


def _percentiles(image: torch.Tensor) -> tuple[float, float]:
    """Percentiles of the finite values; 0 and 1 where there are none."""
    # an odd step does not stay in a few columns, as rows mostly have even lengths
    step = -(-image.numel() // SAMPLE) | 1
    sample = convert_to_numpy(image.flatten()[::step].float())
    sample = sample[np.isfinite(sample)]
    low, high = np.percentile(sample, PERCENTILES).tolist() if sample.size else (0.0, 1.0)
    return low, high
