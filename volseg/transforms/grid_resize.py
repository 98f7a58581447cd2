# SPDX-License-Identifier: Apache-2.0
"""Resample volumes to a fixed grid: average where the grid is coarser, interpolate linearly where it is finer."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform
from monai.transforms.utils import scale_affine

from volseg.transforms.each_entry import EachEntryd
from volseg.transforms.separable import area_weights, linear_weights, resample

__all__ = ["GridResize", "GridResized"]


class GridResize(InvertibleTransform):
    """Rescale a volume to a fixed number of voxels per axis, whatever its spacing.

    Axes that shrink are averaged over exact areas; linear interpolation, as in MONAI's ``Resize``, would use only two
    of the five slices that fall into one. Axes that grow are interpolated linearly. The inverse interpolates linearly
    back to the original size.

    Args:
        spatial_size: voxels along each axis of the result.
    """

    def __init__(self, spatial_size: Sequence[int]) -> None:
        super().__init__()
        self.spatial_size = tuple(spatial_size)

    def __call__(self, img: MetaTensor) -> MetaTensor:
        """Rescale ``(1, X, Y, Z)`` to ``(1, *spatial_size)``."""
        size = tuple(img.shape[1:])
        trace = self.track_transform_meta(
            img,
            sp_size=self.spatial_size,
            affine=scale_affine(size, self.spatial_size),
            orig_size=size,
            transform_info=self.get_transform_info(),
        )
        resized = resample(img.as_tensor()[0], self.spatial_size, _weights)[None]
        return MetaTensor(resized).copy_meta_from(trace)

    def inverse(self, data: MetaTensor) -> MetaTensor:
        """Resample ``(1, *spatial_size)`` back to ``(1, X, Y, Z)``."""
        size = self.pop_transform(data)["orig_size"]
        resized = MetaTensor(resample(data.as_tensor()[0], size, linear_weights)[None]).copy_meta_from(data)
        resized.affine = data.affine @ torch.as_tensor(scale_affine(self.spatial_size, size)).to(data.affine)
        return resized


class GridResized(EachEntryd, InvertibleTransform):
    """Dictionary form of :class:`GridResize`.

    Args:
        keys: entries with volumes ``(1, X, Y, Z)``.
        spatial_size: voxels along each axis of the result.
    """

    def __init__(self, keys: KeysCollection, spatial_size: Sequence[int], allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.resize = GridResize(spatial_size)

    def change(self, entry: MetaTensor) -> MetaTensor:
        return self.resize(entry)

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = self.resize.inverse(d[key])
        return d


def _weights(size: int, new_size: int) -> torch.Tensor:
    return area_weights(size, new_size) if new_size < size else linear_weights(size, new_size)
