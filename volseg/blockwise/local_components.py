# SPDX-License-Identifier: Apache-2.0
"""Connected components of the seeds within one block, and what joins them with those of its neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from volseg.blockwise.block_grid import Block, BlockGrid
from volseg.blockwise.zarr_array import VoxelArray, read_region, write_region
from volseg.instances.decoding import Decoding

__all__ = ["LocalComponents", "first_voxels"]

NO_HALO = (0, 0, 0)
UPPER_PLANES = (1, 1, 1)


@dataclass(frozen=True)
class LocalComponents:
    """Numbers the components of each block by themselves: 1, 2, ... in the order of their first voxels.

    A block is looked at with one plane more on its upper side along every axis. Two neighbouring voxels, by a face, an
    edge or a corner, then lie together in the block that holds the lowest z, y and x of them, so that joining what two
    blocks call one voxel joins all that belongs together.

    Memory: 12 bytes per voxel of the block for probabilities as uint8, 18 for float32.

    Args:
        grid: the blocks.
        mask: probability of being inside an object (D, H, W), floating point or uint8.
        boundary: probability of being on an outline, as ``mask``.
        components: the Zarr array to write to, uint32 (D, H, W): numbers within the block.
        decoding: what a seed is, and which neighbours join.

    The manifest gets ``first_voxels``, int64, the index into the flattened volume of each component's first voxel (of
    what this block sees of it), and for each axis ``upper_AXIS``, the numbers on the plane beyond the block where there
    is one, and ``lower_AXIS``, those on its own first plane.
    """

    grid: BlockGrid
    mask: VoxelArray
    boundary: VoxelArray
    components: Any
    decoding: Decoding

    def __call__(self, block: Block) -> Mapping[str, np.ndarray]:
        region = self.grid.extended(block, NO_HALO, UPPER_PLANES)
        mask, boundary = read_region(self.mask, region), read_region(self.boundary, region)
        labels = np.empty(mask.shape, np.uint32)
        for section, inside, outline in zip(labels, mask, boundary, strict=True):
            section[:] = self.decoding.seeds(inside, outline)
        del mask, boundary
        count = ndimage.label(labels, self.decoding.neighbours, output=labels)
        depth, height, width = block.shape
        core = labels[:depth, :height, :width]
        write_region(self.components, block.core, core)
        kept: dict[str, np.ndarray] = {
            "first_voxels": first_voxels(labels, count, [along.start for along in region], self.grid.shape)
        }
        for axis, length in enumerate(block.shape):
            if labels.shape[axis] > length:
                kept[f"upper_{axis}"] = np.take(labels, length, axis)
            kept[f"lower_{axis}"] = np.take(core, 0, axis)
        return kept


def first_voxels(labels: np.ndarray, count: int, start: list[int], shape: tuple[int, ...]) -> np.ndarray:
    """Where each label of a block occurs first, in the order of the whole volume.

    Args:
        labels: (D, H, W) of the block, every number from 1 to ``count`` at least once.
        count: the highest label.
        start: z, y, x of the block's first voxel in the volume.
        shape: (D, H, W) of the volume.

    Returns:
        indices into the flattened volume, int64 (count,).
    """
    first = np.zeros(count + 1, np.int64)
    # backwards, since of several values for one place the last stays
    for z in reversed(range(len(labels))):
        places = np.flatnonzero(labels[z])[::-1]
        y, x = np.divmod(places, labels.shape[2])
        voxels = ((start[0] + z) * shape[1] + start[1] + y) * shape[2] + start[2] + x
        first[labels[z].ravel()[places]] = voxels
    return first[1:]
