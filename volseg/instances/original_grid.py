# SPDX-License-Identifier: Apache-2.0
"""Instances that were decoded on the grid of a network, on the grid of their volume."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volseg.blockwise.zarr_array import read_region
from volseg.data.blank import find_blank_in
from volseg.data.resampling import resampled, source_region, taps
from volseg.instances.decoding import Decoding

__all__ = ["labels_in_volume", "labels_of_volume"]

Region = tuple[slice, slice, slice]

SLAB_VOXELS = 2**24


def labels_in_volume(labels: Any, mask: Any, decoding: Decoding, volume: Any, region: Region) -> NDArray[np.uint32]:
    """Instances in a region of a volume, with smooth outlines: not the ids are interpolated, but what they lie in.

    With watershed that is the mask probability, against the threshold of the foreground; with connected components,
    which grow regardless of it, what has an id. A voxel inside gets the id of the nearest voxel inside among those of
    the network's grid that it is interpolated from. Blank voxels of the volume get none.

    Memory: about 24 bytes per voxel of the region.

    Args:
        labels: ids on the network's grid, read by slices.
        mask: probability of being inside an object on that grid, floating point or uint8.
        decoding: how they were decoded.
        volume: the volume, read by slices.
        region: slices with a start and a stop inside the volume.

    Returns:
        uint32 (d, h, w).
    """
    shape, new_shape = tuple(labels.shape), tuple(volume.shape)
    source = source_region(shape, new_shape, region)
    starts = [along.start for along in source]
    ids = read_region(labels, source).astype(np.uint32)
    if not ids.any():
        return np.zeros([along.stop - along.start for along in region], np.uint32)
    inside, threshold = ids > 0, 0.5
    if decoding.is_watershed:
        inside, threshold = read_region(mask, source), decoding.foreground_threshold
        if inside.dtype == np.uint8:
            threshold = int(255 * threshold) + 0.5  # between the bytes that are foreground and those that are not
    nearest = [
        ((2 * np.arange(along.start, along.stop) + 1) * n // (2 * new)) - start
        for along, n, new, start in zip(region, shape, new_shape, starts, strict=True)
    ]
    found = ids[np.ix_(*nearest)]
    is_inside = resampled(inside, starts, shape, new_shape, region) > threshold
    found[~is_inside] = 0
    # inside, though the nearest voxel is not: the nearest of those that are
    at = np.nonzero(is_inside & (found == 0))
    kernels = [taps(n, new, along) for n, new, along in zip(shape, new_shape, region, strict=True)]
    largest = np.zeros(len(at[0]), np.float32)
    chosen = np.zeros(len(at[0]), np.uint32)
    for columns in product(*(range(weights.shape[1]) for _, weights in kernels)):
        one = list(zip(kernels, at, columns, starts, strict=True))
        voxel = tuple(index[places, column] - start for (index, _), places, column, start in one)
        weight = math.prod(weights[places, column] for (_, weights), places, column, _ in one)
        is_nearer = (weight > largest) & (inside[voxel] > threshold)
        largest[is_nearer], chosen[is_nearer] = weight[is_nearer], ids[voxel][is_nearer]
    found[at] = chosen
    if found.any():
        found[find_blank_in(volume, region)] = 0
    return found


def labels_of_volume(labels: Any, mask: Any, decoding: Decoding, volume: Any) -> NDArray[np.uint32]:
    """:func:`labels_in_volume` for a whole volume, some sections at a time."""
    depth, height, width = volume.shape
    found = np.empty((depth, height, width), np.uint32)
    step = max(1, SLAB_VOXELS // (height * width))
    for start in range(0, depth, step):
        z = slice(start, min(start + step, depth))
        found[z] = labels_in_volume(labels, mask, decoding, volume, (z, slice(0, height), slice(0, width)))
    return found
