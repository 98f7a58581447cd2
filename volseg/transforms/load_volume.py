# SPDX-License-Identifier: Apache-2.0
"""Load the volumes of a case and check that they belong together."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from volseg.console.option_checks import number
from volseg.data.volume_reader import load_volume
from volseg.errors import UserError

__all__ = ["LoadImageVolumed"]


class LoadImageVolumed(MapTransform):
    """Load volumes of any supported format and check that all volumes of a case lie on one grid.

    Unlike MONAI's ``LoadImaged`` it distinguishes DICOM folders from files, accepts only 3-D volumes, and reports
    damaged input in one line.

    Args:
        keys: entries with paths; each becomes a ``MetaTensor`` ``(1, X, Y, Z)``.
        tolerance_mm: maximum distance between corresponding corner voxels of two volumes.

    Raises:
        UserError: a file cannot be used, or two volumes of the case lie on different grids.
    """

    def __init__(self, keys: KeysCollection, tolerance_mm: float = 0.1, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.tolerance_mm = number("tolerance_mm", tolerance_mm, 0, 100)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = load_volume(d[key])
        first, *others = [d[key] for key in self.key_iterator(d)]
        for other in others:
            _check_same_grid(first, other, self.tolerance_mm)
        return d


def _check_same_grid(first: MetaTensor, other: MetaTensor, tolerance_mm: float) -> None:
    names = f"{other.meta['filename_or_obj']}: not on the grid of {first.meta['filename_or_obj']}"
    if first.shape != other.shape:
        raise UserError(f"{names}: {_size(other)} and {_size(first)} voxels; resample the label to the image")
    corner_voxels = np.array(np.meshgrid(*[(0, n - 1) for n in first.shape[1:]], [1], indexing="ij")).reshape(4, -1)
    distance_mm = np.linalg.norm((np.asarray(first.affine - other.affine) @ corner_voxels)[:3], axis=0).max()
    if distance_mm > tolerance_mm:
        raise UserError(f"{names}: corners {distance_mm:.3g} mm apart; resample the label to the image")


def _size(volume: MetaTensor) -> str:
    return "x".join(str(n) for n in volume.shape[1:])
