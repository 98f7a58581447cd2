# SPDX-License-Identifier: Apache-2.0
"""An array that a stage wrote by blocks, with the manifest that says which of them are finished."""

from __future__ import annotations

from typing import Any

from volseg.blockwise.block_grid import BlockGrid, Region
from volseg.blockwise.finished_blocks import FinishedBlocks
from volseg.data.volume_formats.zarr_volume import ZARR_ERRORS

__all__ = ["BlockArray"]


class BlockArray:
    """A Zarr array that is read and written as usual, and knows how to mend a damaged chunk.

    Can be pickled.

    Args:
        array: Zarr array (D, H, W).
        grid: the blocks that it was written by, aligned to its chunks.
        finished: the manifest.
        stage: that wrote it.
    """

    def __init__(self, array: Any, grid: BlockGrid, finished: FinishedBlocks, stage: str) -> None:
        self.array, self.grid, self.finished, self.stage = array, grid, finished, stage
        self.shape, self.dtype, self.store_path = tuple(array.shape), array.dtype, array.store_path

    def __getitem__(self, region: Any) -> Any:
        return self.array[region]

    def __setitem__(self, region: Any, voxels: Any) -> None:
        self.array[region] = voxels

    def how_to_mend(self, region: Region) -> str:
        """What to do about chunks of a region that cannot be read, in one sentence."""
        damaged = [block for block in self.grid.intersecting(region) if not self._is_readable(block.core)]
        files = ", ".join(self.finished.file(self.stage, block) for block in damaged)
        return (
            f"remove {files or f'{self.finished.folder}/{self.stage}'} and run again to process the block again; do "
            "not remove only the chunk: a missing chunk reads as zero"
        )

    def _is_readable(self, region: Region) -> bool:
        try:
            self.array[region]
        except ZARR_ERRORS:
            return False
        return True
