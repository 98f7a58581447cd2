# SPDX-License-Identifier: Apache-2.0
"""Find the part of a volume that was scanned."""

from __future__ import annotations

import torch

__all__ = ["scanned_box"]


def scanned_box(image: torch.Tensor) -> torch.Tensor:
    """Tell planes that were scanned from blank ones, such as other programs add around a volume.

    What is blank would count as dark tissue where grey values are scaled. Used as ``select_fn`` of MONAI's
    ``CropForeground``, which keeps the smallest box that holds all of the mask.

    Args:
        image: image ``(1, X, Y, Z)``.

    Returns:
        mask ``(1, X, Y, Z)``: false in each plane, along any axis, that has a single value; true everywhere if there is
        nothing else.
    """
    mask = torch.ones_like(image, dtype=torch.bool)
    for axis in (1, 2, 3):
        across = [other for other in (1, 2, 3) if other != axis]
        mask &= image.amax(across, keepdim=True) != image.amin(across, keepdim=True)
    return mask if mask.any() else torch.ones_like(mask)
