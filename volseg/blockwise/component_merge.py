# SPDX-License-Identifier: Apache-2.0
"""Components of single blocks joined to those of the whole volume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from volseg.blockwise.block_grid import Block, BlockGrid
from volseg.blockwise.finished_blocks import FinishedBlocks
from volseg.errors import UserError

__all__ = ["SharedVoxels", "merge_components"]

MAX_ID = np.iinfo(np.int32).max  # what the watershed's markers hold


@dataclass(frozen=True)
class SharedVoxels:
    """Finds which numbers two blocks give to one voxel, from the planes that :class:`LocalComponents` kept.

    The manifest gets ``pairs``, int64 (N, 3): a number of this block, the neighbour, and its number for the same voxel.

    Args:
        grid: the blocks.
        finished: the manifest.
        components: name of the stage of :class:`LocalComponents`.
    """

    grid: BlockGrid
    finished: FinishedBlocks
    components: str

    def __call__(self, block: Block) -> Mapping[str, np.ndarray]:
        found = [np.zeros((0, 3), np.int64)]
        for neighbour in self.grid.upper_neighbours(block):
            offset = [there - here for there, here in zip(neighbour.position, block.position, strict=True)]
            axis = offset.index(1)
            # along the plane's two axes: what the block and its neighbour have in common
            rest = [other for other in range(3) if other != axis]
            ours = tuple(slice(block.shape[k], None) if offset[k] else slice(0, block.shape[k]) for k in rest)
            theirs = tuple(slice(0, 1) if offset[k] else slice(None) for k in rest)
            (upper,) = self.finished.read(self.components, block, f"upper_{axis}")
            (lower,) = self.finished.read(self.components, neighbour, f"lower_{axis}")
            found.append(_pairs(upper[ours], lower[theirs], neighbour.number))
        return {"pairs": np.concatenate(found)}


def merge_components(grid: BlockGrid, finished: FinishedBlocks, components: str, pairs: str, merged: str) -> int:
    """Number the components of the whole volume, in the order of their first voxels: 1, 2, ...

    The numbers are those that :func:`scipy.ndimage.label` gives to the whole volume at once.

    Memory: about 60 bytes for each component of each block.

    Args:
        grid: the blocks.
        finished: the manifest.
        components: name of the stage of :class:`LocalComponents`.
        pairs: name of the stage of :class:`SharedVoxels`.
        merged: name of the stage to write: ``ids``, uint32, from a block's number of a component to that of the volume.

    Returns:
        the number of components.

    Raises:
        UserError: more than 2 147 483 647 components; the manifest cannot be read or written.
    """
    first_parts = [finished.read(components, block, "first_voxels")[0] for block in grid]
    # of number 1 of each block, when those of all blocks stand in one row
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in first_parts])])
    edges = [np.zeros((0, 2), np.int64)]
    for block in grid:
        (shared,) = finished.read(pairs, block, "pairs")
        own, neighbour, theirs = shared.T
        edges.append(np.stack([own - 1 + offsets[block.number], theirs - 1 + offsets[neighbour]], axis=1))
    rows, columns = np.concatenate(edges).T
    graph = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(offsets[-1], offsets[-1]))
    count, groups = connected_components(graph, directed=False)
    if count > MAX_ID:
        raise UserError(
            f"{finished.folder}: {count} connected seeds, at most {MAX_ID} can be numbered; raise mask_threshold"
        )
    first = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(first, groups, np.concatenate(first_parts))
    ids = np.empty(count, np.uint32)
    ids[np.argsort(first)] = np.arange(1, count + 1, dtype=np.uint32)
    for block in grid:
        own_groups = groups[offsets[block.number] : offsets[block.number + 1]]
        finished.write(merged, block, {"ids": np.concatenate([np.zeros(1, np.uint32), ids[own_groups]])})
    return count


def _pairs(ours: np.ndarray, theirs: np.ndarray, neighbour: int) -> np.ndarray:
    """The distinct pairs of numbers that two planes of the same voxels have above 0, with the neighbour between."""
    in_both = (ours > 0) & (theirs > 0)
    packed = np.unique(ours[in_both].astype(np.uint64) << np.uint64(32) | theirs[in_both])
    own, other = packed >> np.uint64(32), packed & np.uint64(2**32 - 1)
    return np.stack([own, np.full_like(own, neighbour), other], axis=1).astype(np.int64)
