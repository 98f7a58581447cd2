# SPDX-License-Identifier: Apache-2.0
"""Instances that were decoded on the grid of a network, on the grid of their volume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volseg.blockwise.block_grid import BlockGrid, Region, inner_region
from volseg.blockwise.zarr_array import read_region
from volseg.data.blank import find_blank_in
from volseg.data.resampling import resampled, source_region, taps
from volseg.instances.decoding import Decoding

__all__ = ["labels_in_volume", "labels_of_volume"]

SLAB_VOXELS = 2**26  # of a whole volume, that are looked at at once
TILE = (16, 128, 128)  # stays in the processor's cache; those without an instance cost nothing


def labels_in_volume(labels: Any, mask: Any, decoding: Decoding, volume: Any, region: Region) -> NDArray[np.uint32]:
    """Instances in a region of a volume, with smooth outlines: not the ids are interpolated, but what they lie in.

    With watershed that is the mask probability, against the threshold of the foreground; with connected components,
    which grow regardless of it, what has an id. A voxel inside gets the id of the nearest voxel inside among those of
    the network's grid that it is interpolated from. Blank voxels of the volume get none.

    Memory: about 8 bytes per voxel of the region.

    Args:
        labels: ids on the network's grid, read by slices.
        mask: probability of being inside an object on that grid, floating point or uint8.
        decoding: how they were decoded.
        volume: the volume, read by slices.
        region: slices with a start and a stop inside the volume.

    Returns:
        uint32 (d, h, w).
    """
    shape = tuple(labels.shape)
    source = source_region(shape, volume.shape, region)
    ids = read_region(labels, source).astype(np.uint32, copy=False)
    inside, threshold = ids > 0, 0.5
    if decoding.is_watershed:
        inside, threshold = read_region(mask, source), decoding.foreground_threshold
        if inside.dtype == np.uint8:
            threshold = int(255 * threshold) + 0.5  # between the bytes that are foreground and those that are not
    found = np.zeros([along.stop - along.start for along in region], np.uint32)
    for tile in BlockGrid(found.shape, TILE):
        z, y, x = (slice(a.start + b.start, a.stop + b.start) for a, b in zip(tile.core, region, strict=True))
        seen = source_region(shape, volume.shape, (z, y, x))
        here = inner_region(seen, source)
        if ids[here].any():
            starts = [along.start for along in seen]
            found[tile.core] = _tile(ids[here], inside[here], threshold, starts, shape, volume.shape, (z, y, x))
    if found.any():
        found[find_blank_in(volume, region)] = 0
    return found


def _tile(
    ids: NDArray[np.uint32],
    inside: NDArray[Any],
    threshold: float,
    starts: Sequence[int],
    shape: Sequence[int],
    new_shape: Sequence[int],
    region: Region,
) -> NDArray[np.uint32]:
    """Ids in a region of the volume, from those on the network's grid from ``starts`` on."""
    found = ids
    for axis, along in enumerate(region):
        n, new = shape[axis], new_shape[axis]
        found = found.take((2 * np.arange(along.start, along.stop) + 1) * n // (2 * new) - starts[axis], axis)
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
