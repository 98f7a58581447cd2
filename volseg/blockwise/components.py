# SPDX-License-Identifier: Apache-2.0
"""Connected components of the seeds: within one block, joined to those of the whole volume, and read for any region."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from volseg.blockwise.block_grid import Block, BlockGrid, Region, inner_region
from volseg.blockwise.finished_blocks import FinishedBlocks
from volseg.blockwise.zarr_array import VoxelArray, read_region, write_region
from volseg.errors import UserError
from volseg.instances.decoding import Decoding

__all__ = ["GlobalComponents", "LocalComponents", "SharedVoxels", "first_voxels", "merge_components"]

NO_HALO = (0, 0, 0)
UPPER_PLANES = (1, 1, 1)
MAX_ID = np.iinfo(np.int32).max  # what the watershed's markers hold


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
