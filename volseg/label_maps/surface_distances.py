# SPDX-License-Identifier: Apache-2.0
"""Distances between the surfaces of two binary masks, in millimetres.

The convention is the one of MONAI 1.6.1, because published tools disagree on voxels that are not cubes: the surface of
a mask is its border voxels, those that a binary erosion with the 6-neighbour cross removes (outside the volume counts
as background); distances run between voxel centres, and every border voxel has the same weight.

Nothing here calls MONAI: its three functions extract the borders and search the distances once each, from one-hot
float tensors of the whole volume. The results are equal (tested), at a fraction of the time and memory.
"""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.spatial import KDTree

from volseg.errors import UserError

_SAMPLE_SIZE = 256
_TRANSFORM_S_PER_VOXEL = 0.2e-6  # SciPy's feature transform of 4 to 67 million voxels: 0.14 to 0.21 microseconds each


class SurfaceDistances(NamedTuple):
    """Three measures of one pair of masks.

    Attributes:
        hausdorff_95_mm: the larger of the two directed 95th percentiles of the distance, as
            ``monai.metrics.compute_hausdorff_distance(percentile=95)``; not the percentile of the pooled distances.
        average_symmetric_mm: mean of all distances of both directions pooled, as
            ``monai.metrics.compute_average_surface_distance(symmetric=True)``.
        surface_dice: share of the border voxels of both masks that are no farther than the tolerance from the other
            border, as ``monai.metrics.compute_surface_dice(use_subvoxels=False)``.
    """

    hausdorff_95_mm: float
    average_symmetric_mm: float
    surface_dice: float


def surface_distances(
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing_mm: tuple[float, float, float],
    tolerance_mm: float,
) -> SurfaceDistances:
    """Measure how far apart the surfaces of two masks are; the order of the masks does not matter.

    Args:
        prediction: mask (X, Y, Z); what is not 0 is the object.
        truth: mask of the same shape.
        spacing_mm: voxel size along X, Y and Z.
        tolerance_mm: distance up to which a border voxel counts as right in the surface Dice.

    Returns:
        The measures. Both masks empty: all NaN. One mask empty: both distances are infinite, the surface Dice is 0.

    Raises:
        UserError: if the shapes differ, the masks are not three-dimensional, a spacing is not positive or the tolerance
            is negative.
    """
    prediction, truth = np.asarray(prediction) != 0, np.asarray(truth) != 0
    _check(prediction, truth, spacing_mm, tolerance_mm)
    box = bounding_box(prediction | truth)
    if box is None:
        return SurfaceDistances(math.nan, math.nan, math.nan)
    predicted_border, true_border = border_voxels(prediction[box]), border_voxels(truth[box])
    if not predicted_border.any() or not true_border.any():
        return SurfaceDistances(math.inf, math.inf, 0.0)
    directed = (
        _directed_distances_mm(predicted_border, true_border, spacing_mm),
        _directed_distances_mm(true_border, predicted_border, spacing_mm),
    )
    pooled = np.concatenate(directed)
    return SurfaceDistances(
        hausdorff_95_mm=max(float(np.percentile(distances, 95)) for distances in directed),
        average_symmetric_mm=float(pooled.mean(dtype=np.float64)),
        surface_dice=float(np.mean(pooled <= np.float32(tolerance_mm))),
    )


def bounding_box(mask: np.ndarray) -> tuple[slice, ...] | None:
    """Smallest box that holds all true voxels of a boolean array of any dimension; None if there are none."""
    box = []
    for axis in range(mask.ndim):
        occupied = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if occupied.size == 0:
            return None
        box.append(slice(int(occupied[0]), int(occupied[-1]) + 1))
    return tuple(box)


def border_voxels(mask: np.ndarray) -> np.ndarray:
    """Voxels of a boolean mask with a face neighbour outside it, the same shape.

    Equal to ``mask ^ scipy.ndimage.binary_erosion(mask)`` and several times faster. Beyond the array is outside, so a
    crop to the bounding box needs no margin.
    """
    mask = np.ascontiguousarray(mask)  # arrays of different memory order are slow to combine
    padded = np.pad(mask, 1)
    interior = mask.copy()
    for axis, size in enumerate(mask.shape):
        for start in (0, 2):
            window = [slice(1, -1)] * mask.ndim
            window[axis] = slice(start, start + size)
            interior &= padded[tuple(window)]
    return mask ^ interior


def _directed_distances_mm(
    from_border: np.ndarray, to_border: np.ndarray, spacing_mm: tuple[float, float, float]
) -> np.ndarray:
    """Distance of every voxel of one border to the nearest voxel of the other, (number of voxels,) float32, unordered.

    A k-d tree visits border voxels only and is some ten times faster than a distance transform of the box where the
    masks are alike; where they are far apart, as those of an untrained network, a query may have to visit most of the
    tree, and the transform wins by as much. How much of the tree it is depends on the shapes, so a timed sample of the
    queries decides. Both find the same distances.

    Distances are rounded to float32, as MONAI does, so that one that equals the tolerance is within it whatever the
    last bits of the spacing.
    """
    distances = np.zeros(np.count_nonzero(from_border), dtype=np.float32)
    voxels = np.argwhere(from_border & ~to_border)  # what both borders share keeps its distance of 0
    if len(voxels) == 0:
        return distances
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    points = voxels * spacing
    tree = KDTree(np.argwhere(to_border) * spacing, leafsize=32)
    sample = points[:: math.ceil(len(points) / _SAMPLE_SIZE)]
    start_s = time.thread_time()  # not the clock's time, which other processes lengthen
    tree.query(sample)
    tree_s = (time.thread_time() - start_s) * len(points) / len(sample)
    if tree_s > to_border.size * _TRANSFORM_S_PER_VOXEL:
        distances[: len(voxels)] = _transform_distances_mm(voxels, to_border, spacing)
    else:
        distances[: len(voxels)] = tree.query(points)[0]
    return distances


def _transform_distances_mm(voxels: np.ndarray, border: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Distance of each of the voxels (N, 3) to the border, (N,), by the feature transform of the whole box.

    The transform's nearest voxels are looked up where they are asked for: its own distances of all voxels take several
    times the memory.
    """
    nearest = distance_transform_edt(~border, sampling=spacing, return_distances=False, return_indices=True)
    offsets = nearest[:, voxels[:, 0], voxels[:, 1], voxels[:, 2]].T - voxels
    return np.linalg.norm(offsets * spacing, axis=1)


def _check(
    prediction: np.ndarray, truth: np.ndarray, spacing_mm: tuple[float, float, float], tolerance_mm: float
) -> None:
    if prediction.shape != truth.shape or prediction.ndim != 3:
        raise UserError(f"masks must have one shape (X, Y, Z), got {prediction.shape} and {truth.shape}")
    if len(spacing_mm) != 3 or not all(0 < size < math.inf for size in spacing_mm):
        raise UserError(f"spacing_mm must be three voxel sizes > 0 in mm, got {spacing_mm}")
    if not 0 <= tolerance_mm < math.inf:
        raise UserError(f"tolerance_mm must be a distance >= 0 in mm, got {tolerance_mm}")
