# SPDX-License-Identifier: Apache-2.0
"""Resampling between grids that share an outline, as one small matrix an axis.

Matrix products suit the large volumes of CT on a CPU, and area weights are exact for any ratio of sizes, unlike
``F.interpolate(mode="area")``, whose cells begin and end at whole voxels and overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

__all__ = ["area_average", "area_weights", "linear_weights", "resample"]

Weights = Callable[[int, int], torch.Tensor]


def area_average(volume: torch.Tensor, spatial_size: Sequence[int]) -> torch.Tensor:
    """Mean of ``(X, Y, Z)`` over the cells of another grid; a voxel in two cells counts for each by its part."""
    return resample(volume, spatial_size, area_weights)


def resample(volume: torch.Tensor, spatial_size: Sequence[int], weights: Weights) -> torch.Tensor:
    """Apply a weight matrix along each axis whose size changes.

    Args:
        volume: ``(X, Y, Z)``.
        spatial_size: size of the result.
        weights: matrix ``(size out, size in)`` for a pair ``size in, size out``.

    Returns:
        float32 ``spatial_size``.
    """
    # in the order of memory, which a volume turned to another orientation has kept: products of others copy it first
    order = sorted(range(3), key=volume.stride, reverse=True)
    volume, sizes = volume.float().permute(order), [spatial_size[axis] for axis in order]
    # the axis that shrinks most goes first and leaves less to do for the others
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
    """Part of each new cell that each voxel fills, ``(new_size, size)``; rows add up to 1."""
    start = torch.arange(new_size, dtype=torch.float64)[:, None] * size / new_size
    voxel = torch.arange(size, dtype=torch.float64)[None]
    overlap = torch.minimum(start + size / new_size, voxel + 1) - torch.maximum(start, voxel)
    return overlap.clamp(min=0) * new_size / size


def linear_weights(size: int, new_size: int) -> torch.Tensor:
    """Linear interpolation between voxel centres, ``(new_size, size)``; the end voxels' values reach the outline.

    The same as ``F.interpolate(mode="linear", align_corners=False)``.
    """
    centre = (torch.arange(new_size, dtype=torch.float64) + 0.5) * size / new_size - 0.5
    distance = (centre.clamp(0, size - 1)[:, None] - torch.arange(size, dtype=torch.float64)[None]).abs()
    return (1 - distance).clamp(min=0)
