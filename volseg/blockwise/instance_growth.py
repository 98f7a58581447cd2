# SPDX-License-Identifier: Apache-2.0
"""Objects that grow from their seeds by a window, block by block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from volseg.blockwise.block_grid import Block, BlockGrid, inner_region
from volseg.blockwise.global_components import GlobalComponents
from volseg.blockwise.zarr_array import VoxelArray, read_region, write_region
from volseg.instances.decoding import blank_voxels, grow_instances
from volseg.instances.table import extents

__all__ = ["InstanceGrowth"]


@dataclass(frozen=True)
class InstanceGrowth:
    """Grows as the whole volume would, since each block is looked at with a halo of half the window.

    Memory: 12 bytes per voxel of block and halo, and one per voxel of the block.

    Args:
        grid: the blocks.
        components: seeds with the ids of the whole volume.
        mask, boundary: probabilities (D, H, W), which say where there is no tissue to grow into.
        window: odd widths along z, y, x.
        labels: the Zarr array to write to, uint32 (D, H, W).

    The manifest gets what :func:`volseg.instances.table.extents` counts in the block.
    """

    grid: BlockGrid
    components: GlobalComponents
    mask: VoxelArray
    boundary: VoxelArray
    window: Sequence[int]
    labels: Any

    def __call__(self, block: Block) -> Mapping[str, np.ndarray]:
        # first, as its inputs and the growth do not fit into the memory at once
        blank = blank_voxels(read_region(self.mask, block.core), read_region(self.boundary, block.core))
        halo = [width // 2 for width in self.window]
        region = self.grid.extended(block, halo, halo)
        ids = self.components[region]
        grow_instances(ids, self.window)
        core = ids[inner_region(block.core, region)]
        core[blank] = 0
        write_region(self.labels, block.core, core)
        return extents(core, [along.start for along in block.core])._asdict()
