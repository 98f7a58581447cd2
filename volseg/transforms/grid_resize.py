# SPDX-License-Identifier: Apache-2.0
"""Resample volumes to a fixed grid, with one small matrix per axis: average where it is coarser, else interpolate.

Matrix products are fast for large CT volumes on a CPU. Area weights are exact for any ratio of sizes, unlike
``F.interpolate(mode="area")``, whose cells begin and end at whole voxels and overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform
from monai.transforms.utils import scale_affine
from monai.utils import convert_to_tensor

from volseg.transforms.entries import EachEntryd

Weights = Callable[[int, int], torch.Tensor]


def area_average(volume: torch.Tensor, spatial_size: Sequence[int]) -> torch.Tensor:
    """Average ``(X, Y, Z)`` over the cells of another grid; a voxel in two cells counts in each by its share."""
    return resample(volume, spatial_size, area_weights)


def resample(volume: torch.Tensor, spatial_size: Sequence[int], weights: Weights) -> torch.Tensor:
    """Apply a weight matrix along each axis whose size changes.

    Args:
        volume: ``(X, Y, Z)``.
        spatial_size: size of the result.
        weights: returns the matrix ``(size out, size in)`` for ``size in, size out``.

    Returns:
        float32 ``spatial_size``.
    """
    # use memory order, which a reoriented volume keeps: products along other orders would copy it first
    order = sorted(range(3), key=volume.stride, reverse=True)
    volume, sizes = volume.float().permute(order), [spatial_size[axis] for axis in order]
    # start with the axis that shrinks most, which leaves less work for the others
    for axis in sorted(range(3), key=lambda a: sizes[a] / volume.shape[a]):
        size, new_size = volume.shape[axis], sizes[axis]
        if size == new_size:
            continue
        matrix = weights(size, new_size).to(volume)
        if axis == 0:  # (X', X) @ (X, Y * Z)
            volume = (matrix @ volume.reshape(size, -1)).reshape(new_size, *volume.shape[1:])
        elif axis == 1:  # (Y', Y) @ (X, Y, Z)
            volume = matrix @ volume
        else:  # (X, Y, Z) @ (Z, Z')
            volume = volume @ matrix.T
    return volume.permute([order.index(axis) for axis in range(3)])


def area_weights(size: int, new_size: int) -> torch.Tensor:
    """Return the fraction of each new cell that each voxel fills, ``(new_size, size)``; rows sum to 1."""
    start = torch.arange(new_size, dtype=torch.float64)[:, None] * size / new_size
    voxel = torch.arange(size, dtype=torch.float64)[None]
    overlap = torch.minimum(start + size / new_size, voxel + 1) - torch.maximum(start, voxel)
    return overlap.clamp(min=0) * new_size / size


def linear_weights(size: int, new_size: int) -> torch.Tensor:
    """Return weights of linear interpolation between voxel centres, ``(new_size, size)``.

    Beyond the end centres the end voxels' values are constant, as in
    ``F.interpolate(mode="linear", align_corners=False)``.
    """
    centre = (torch.arange(new_size, dtype=torch.float64) + 0.5) * size / new_size - 0.5
    distance = (centre.clamp(0, size - 1)[:, None] - torch.arange(size, dtype=torch.float64)[None]).abs()
    return (1 - distance).clamp(min=0)


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


class SoftTargetd(EachEntryd):
    """Convert label maps to the exact volume fraction of every class on another grid.

    Args:
        keys: entries with label maps ``(1, X, Y, Z)``; each becomes ``(num_classes, *spatial_size)``.
        num_classes: labels run from 0 to ``num_classes - 1``.
        spatial_size: the grid of the target.
    """

    def __init__(
        self, keys: KeysCollection, num_classes: int, spatial_size: Sequence[int], allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.num_classes = num_classes
        self.spatial_size = tuple(spatial_size)

    def change(self, entry: torch.Tensor) -> torch.Tensor:
        return soft_target(convert_to_tensor(entry, track_meta=False)[0], self.num_classes, self.spatial_size)


def soft_target(label: torch.Tensor, num_classes: int, spatial_size: Sequence[int]) -> torch.Tensor:
    """Return volume fractions ``(num_classes, *spatial_size)`` of a label map ``(X, Y, Z)``; each cell sums to 1."""
    # one class at a time: a one-hot CT would take gigabytes
    return torch.stack([area_average((label == c).float(), spatial_size) for c in range(num_classes)])
