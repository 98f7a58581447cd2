# SPDX-License-Identifier: Apache-2.0
"""Components as the whole volume numbers them, read for any region."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from volseg.blockwise.block_grid import BlockGrid, Region, inner_region
from volseg.blockwise.finished_blocks import FinishedBlocks
from volseg.blockwise.zarr_array import read_region

__all__ = ["GlobalComponents"]


@dataclass(frozen=True)
class GlobalComponents:
    """``components[region]``: ids of the whole volume, uint32 (D, H, W), 0 for no component.

    Memory: 4 bytes per voxel of the region, and 12 of its part in one block at a time.

    Args:
        grid: the blocks.
        components: numbers within each block, a Zarr array (D, H, W).
        finished: the manifest.
        merged: name of the stage that :func:`merge_components` wrote.

    Raises:
        UserError: from reading, a damaged chunk or file of the manifest.
    """

    grid: BlockGrid
    components: Any
    finished: FinishedBlocks
    merged: str

    def __getitem__(self, region: Region) -> np.ndarray:
        z, y, x = region
        ids = np.zeros((z.stop - z.start, y.stop - y.start, x.stop - x.start), np.uint32)
        for block in self.grid.intersecting(region):
            z, y, x = (
                slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(block.core, region, strict=True)
            )
            (table,) = self.finished.read(self.merged, block, "ids")
            ids[inner_region((z, y, x), region)] = table[read_region(self.components, (z, y, x))]
        return ids
