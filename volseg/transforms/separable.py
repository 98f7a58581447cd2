# SPDX-License-Identifier: Apache-2.0
"""Resample between grids that share an outline, with one small matrix per axis.

Matrix products are fast for large CT volumes on a CPU. Area weights are exact for any ratio of sizes, unlike
``F.interpolate(mode="area")``, whose cells begin and end at whole voxels and overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

__all__ = ["area_average", "area_weights", "linear_weights", "resample"]

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
