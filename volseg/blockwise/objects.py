# SPDX-License-Identifier: Apache-2.0
"""Objects that grow from their seeds, block by block: by a window, or by a marker watershed with a halo."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from volseg.blockwise.block_grid import Block, BlockGrid, Region, inner_region
from volseg.blockwise.components import GlobalComponents
from volseg.blockwise.finished_blocks import FinishedBlocks
from volseg.blockwise.zarr_array import VoxelArray, read_region, write_region
from volseg.instances.decoding import (
    OUTLINE_REACH,
    Decoding,
    blank_voxels,
    flood_piece,
    foreground_pieces,
    grow_instances,
    outline_support,
)
from volseg.instances.table import extents

__all__ = ["InstanceGrowth", "ObjectOutlines", "SeededWatershed", "objects_without_outline"]


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


@dataclass(frozen=True)
class SeededWatershed:
    """Floods the connected pieces of seeds and foreground that reach into a block, each in its own bounding box.

    A block is looked at with a halo. A piece that does not touch the halo's outer face (but where that is the volume's)
    is flooded exactly as in the whole volume. A piece that does may go on beyond: it is cut there, and within it

    - ids are still those of the whole volume: no object gets a second one;
    - a voxel may go to another of the piece's markers than in the whole volume, or stay background where the marker
      that reaches it lies beyond the halo;
    - two blocks may decide differently, so that the border of two objects may follow the border of the blocks.

    Memory: 19 bytes per voxel of block and halo for probabilities as uint8, 22 for float32, and 40 to 80 bytes per
    voxel of the bounding box of the largest piece.

    Args:
        grid: the blocks.
        mask: probability of being inside an object (D, H, W), floating point or uint8.
        boundary: probability of being on an outline, as ``mask``.
        components: markers with the ids of the whole volume.
        decoding: its thresholds and halo.
        labels: the Zarr array to write to, uint32 (D, H, W).

    The manifest gets what :func:`volseg.instances.table.extents` counts in the block, and ``cut``, int64 (2,): pieces
    that were cut, and voxels of theirs in the block.
    """

    grid: BlockGrid
    mask: VoxelArray
    boundary: VoxelArray
    components: GlobalComponents
    decoding: Decoding
    labels: Any

    def __call__(self, block: Block) -> Mapping[str, np.ndarray]:
        region = self.grid.extended(block, self.decoding.halo, self.decoding.halo)
        core = inner_region(block.core, region)
        mask, boundary = read_region(self.mask, region), read_region(self.boundary, region)
        pieces, boxes = foreground_pieces(mask, boundary, self.decoding)
        del boundary
        markers = self.components[region]
        labels = np.zeros(block.shape, np.uint32)
        cut_pieces, cut_voxels = 0, 0
        for number, box in enumerate(boxes, start=1):
            common = _intersection(box, core)
            if common is None:
                continue
            in_piece = pieces[box] == number
            in_core = in_piece[inner_region(common, box)]
            if not in_core.any():
                continue
            if self._is_cut(box, region):
                cut_pieces += 1
                cut_voxels += int(np.count_nonzero(in_core))
            own_markers = np.where(in_piece, markers[box], 0).astype(np.int32)
            if own_markers.any():
                flooded = flood_piece(mask[box], own_markers, in_piece, self.decoding.foreground_threshold)
                np.copyto(
                    labels[inner_region(common, core)],
                    flooded[inner_region(common, box)],
                    where=in_core,
                    casting="unsafe",
                )
        write_region(self.labels, block.core, labels)
        counted = extents(labels, [along.start for along in block.core])
        return counted._asdict() | {"cut": np.array([cut_pieces, cut_voxels])}

    def _is_cut(self, box: Region, region: Region) -> bool:
        """Whether a piece touches a face of the region that is not one of the volume."""
        return any(
            (part.start == 0 and along.start > 0) or (part.stop == along.stop - along.start and along.stop < n)
            for part, along, n in zip(box, region, self.grid.shape, strict=True)
        )


@dataclass(frozen=True)
class ObjectOutlines:
    """Sums up the boundary probability along the outlines of objects, as the whole volume would.

    Memory: 6 bytes per voxel of the block for uint8, 9 for float32.

    Args:
        grid: the blocks.
        labels: ids, uint32 (D, H, W).
        boundary: probability of being on an outline (D, H, W), floating point or uint8.

    The manifest gets ``ids``, ``lengths`` and ``support``: pixels on each outline in the block, and the sum of
    :func:`volseg.instances.decoding.outline_support` over them.
    """

    grid: BlockGrid
    labels: VoxelArray
    boundary: VoxelArray

    def __call__(self, block: Block) -> Mapping[str, np.ndarray]:
        halo = (0, OUTLINE_REACH, OUTLINE_REACH)
        region = self.grid.extended(block, halo, halo)
        labels, boundary = read_region(self.labels, region), read_region(self.boundary, region)
        core = inner_region(block.core, region)[1:]
        parts = []
        for section in zip(labels, boundary, strict=True):
            ids, support = outline_support(*section, core)
            parts.append(_summed(ids, np.ones(len(ids), np.int64), support))
        return dict(zip(("ids", "lengths", "support"), _joined(parts), strict=True))


def objects_without_outline(grid: BlockGrid, finished: FinishedBlocks, summed: str, threshold: float) -> np.ndarray:
    """The ids whose outlines have a mean boundary probability below a threshold, ascending.

    Args:
        grid: the blocks.
        finished: the manifest.
        summed: name of the stage of :class:`ObjectOutlines`.
        threshold: 0 to 1.
    """
    ids, lengths, support = _joined([finished.read(summed, block, "ids", "lengths", "support") for block in grid])
    return ids[support < threshold * lengths]


def _joined(parts: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Ids with the sums of their columns over all parts."""
    return _summed(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _summed(ids: np.ndarray, *columns: np.ndarray) -> list[np.ndarray]:
    """Each id once, ascending, with the sums of its entries in the columns."""
    every_id, places = np.unique(ids, return_inverse=True)
    return [every_id, *(np.bincount(places, weights=column, minlength=len(every_id)) for column in columns)]


def _intersection(a: Region, b: Region) -> Region | None:
    z, y, x = (slice(max(s.start, t.start), min(s.stop, t.stop)) for s, t in zip(a, b, strict=True))
    return (z, y, x) if all(along.start < along.stop for along in (z, y, x)) else None
