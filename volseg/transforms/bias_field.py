# SPDX-License-Identifier: Apache-2.0
"""Correct the bias field of MRI with N4 (Tustison 2010), V-Net's first step (arXiv 1606.04797)."""

from __future__ import annotations

from collections.abc import Sequence

import itk
import numpy as np
import torch
from monai.config import KeysCollection
from monai.utils import convert_to_dst_type, convert_to_tensor

from volseg.transforms.entries import EachEntryd
from volseg.transforms.grid_resize import area_average, linear_weights, resample

__all__ = ["N4BiasCorrectd"]

IMAGE = itk.Image[itk.F, 3]
MASK = itk.Image[itk.UC, 3]

# N4 fits a field to the brightness of tissue. Voxels below this fraction of the mean are air, whose noise must not be
# fitted. Otsu's threshold, the usual choice, takes the side away from an endorectal coil for air
BACKGROUND = 0.25
# Without air in view, a scan's darkest tissue has up to this fraction of the range of its intensities
OFFSET = 0.2


class N4BiasCorrectd(EachEntryd):
    """Divide each volume by the smooth bias field that N4 estimates from a downsampled copy.

    The transform is deterministic, so caches of preprocessed cases may keep its result.

    Args:
        keys: entries with images ``(1, X, Y, Z)``; each gets its own field.
        shrink_factor: voxels averaged per axis for the downsampled copy. Bias fields are smooth, and N4's time grows
            with the number of voxels.
        fitting_levels: each doubles the field's spline mesh, starting from one piece per axis.
        max_iterations: per level, unless it converges earlier.
    """

    def __init__(
        self,
        keys: KeysCollection,
        shrink_factor: Sequence[int] = (4, 4, 1),
        fitting_levels: int = 4,
        max_iterations: int = 50,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.shrink_factor = tuple(shrink_factor)
        self.fitting_levels = fitting_levels
        self.max_iterations = max_iterations

    def change(self, entry: torch.Tensor) -> torch.Tensor:
        """Correct a volume ``(1, X, Y, Z)``.

        A field multiplies, so it matters where 0 lies. A file with negative intensities, or with none near 0, has an
        offset: its lowest intensity becomes 0.

        Returns:
            the image's shape, metadata and device; its dtype, or float32 for an integer dtype. A constant volume is
            returned unchanged.
        """
        voxels = convert_to_tensor(entry, track_meta=False)[0]
        dtype = voxels.dtype if voxels.is_floating_point() else torch.float32
        low, high = float(voxels.min()), float(voxels.max())
        if low == high:
            return entry
        if low < 0 or low > OFFSET * (np.percentile(voxels.cpu(), 99) - low):
            # before rounding to float32: a large offset would take the digits of the contrast
            voxels = (voxels.double() - low).to(dtype)
        # N4 refuses a volume of a single slice, so double it
        size = [max(2, round(n / factor)) for n, factor in zip(voxels.shape, self.shrink_factor, strict=True)]
        bias = self._bias_field(area_average(voxels.cpu(), size).numpy())
        corrected = voxels / resample(torch.from_numpy(bias), voxels.shape, linear_weights).to(voxels.device)
        return convert_to_dst_type(corrected[None], dst=entry, dtype=dtype)[0]

    def _bias_field(self, volume: np.ndarray) -> np.ndarray:
        """Return the field on the grid of the downsampled copy."""
        positive = volume > 0
        tissue = volume > BACKGROUND * volume[positive].mean()
        # outside the mask any positive value serves: the field is its quotient with the result
        volume = np.where(positive, volume, np.float32(1))
        n4 = itk.N4BiasFieldCorrectionImageFilter[IMAGE, MASK, IMAGE].New()
        n4.SetInput(itk.image_from_array(volume))
        n4.SetMaskImage(itk.image_from_array(tissue.astype(np.uint8)))
        n4.SetNumberOfFittingLevels([self.fitting_levels] * 3)
        n4.SetMaximumNumberOfIterations([self.max_iterations] * self.fitting_levels)
        n4.Update()
        return volume / itk.array_from_image(n4.GetOutput())
