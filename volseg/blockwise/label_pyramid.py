# SPDX-License-Identifier: Apache-2.0
"""Labels as OME-Zarr 0.5 with levels of lower resolution, written block by block, without objects below a size.

The format: https://ngff.openmicroscopy.org/0.5/
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from volseg.blockwise.block_grid import Block, BlockGrid, Position
from volseg.blockwise.finished_blocks import FinishedBlocks
from volseg.blockwise.zarr_array import (
    VoxelArray,
    block_chunks,
    node_store,
    open_or_create_array,
    read_region,
    write_region,
)
from volseg.data.ome_zarr import AXES, axes_and_levels, create_multiscale_group
from volseg.data.volume_formats.zarr_volume import ZARR_ERRORS
from volseg.errors import UserError
from volseg.instances.table import Extents, joined_extents

PENDING_ROWS = 2**18
SMALLEST_PIXELS = 256


def filter_objects(
    grid: BlockGrid,
    finished: FinishedBlocks,
    counted: str,
    filtered: str,
    min_size: int,
    without_outline: np.ndarray | None = None,
) -> tuple[Extents, dict[str, int]]:
    """Sum up what the blocks counted, and say of each block which of its objects are to be removed.

    Ids keep their numbers, so that they may have gaps.

    Memory: about 250 bytes for each object.

    Args:
        grid: the blocks.
        finished: the manifest.
        counted: name of the stage whose blocks hold :class:`volseg.instances.table.Extents`.
        filtered: name of the stage to write.
        min_size: voxels of the smallest object that is kept.
        without_outline: ids that are not kept either, ascending.

    Returns:
        the objects that are kept, in the order of their ids; how many are ``removed_below_min_size``, and how many that
        are large enough ``removed_without_outline``.
    """
    parts, rows, rows_joined = [], 0, 0
    for block in grid:
        parts.append(Extents(*finished.read(counted, block, *Extents._fields)))
        rows += len(parts[-1].ids)
        if rows > PENDING_ROWS + 2 * rows_joined:
            parts = [joined_extents(parts)]
            rows = rows_joined = len(parts[0].ids)
    objects = joined_extents(parts)
    too_small = objects.sums[:, 0] < min_size
    kept = ~too_small
    if without_outline is not None:
        kept &= ~np.isin(objects.ids, without_outline)
    removed = objects.ids[~kept]
    for block in grid:
        (ids,) = finished.read(counted, block, "ids")
        finished.write(filtered, block, {"removed": np.intersect1d(ids, removed, assume_unique=True)})
    small = int(np.count_nonzero(too_small))
    counts = {"removed_below_min_size": small, "removed_without_outline": len(removed) - small}
    return Extents(*(column[kept] for column in objects)), counts


def remove_ids(labels: np.ndarray, removed: np.ndarray) -> None:
    """Set the voxels of some ids to 0, in place.

    Args:
        labels: uint32 (D, H, W).
        removed: ids, ascending.
    """
    if not len(removed):
        return
    for section in labels:
        inside = section > 0
        ids = section[inside]
        places = np.minimum(np.searchsorted(removed, ids), len(removed) - 1)
        ids[removed[places] == ids] = 0
        section[inside] = ids


@dataclass(frozen=True)
class PyramidLevel:
    """A level of a pyramid.

    Attributes:
        shape: (D, H, W).
        step: voxels of the previous level per voxel of this one, along z, y, x.
        scale: voxels of the full resolution per voxel of this one, along z, y, x.
    """

    shape: Position
    step: Position
    scale: Position


def pyramid_levels(
    shape: Sequence[int], voxel_size_nm: Sequence[float] | None, smallest_pixels: int = SMALLEST_PIXELS
) -> list[PyramidLevel]:
    """The levels from full resolution down to sections of about ``smallest_pixels``.

    Sections are halved along y and x; z is from where that makes voxels more even: where they are not more than the
    square root of 2 longer along z.

    Args:
        shape: (D, H, W).
        voxel_size_nm: along z, y, x; None keeps all sections.
        smallest_pixels: no level is made of one that is not larger along y or x.

    Returns:
        the levels, full resolution first.
    """
    depth, height, width = (int(n) for n in shape)
    levels = [PyramidLevel((depth, height, width), (1, 1, 1), (1, 1, 1))]
    while max(levels[-1].shape[1:]) > smallest_pixels:
        last = levels[-1]
        step_z = 1
        if voxel_size_nm is not None and last.shape[0] > 1:
            z_nm, y_nm, x_nm = (edge * scale for edge, scale in zip(voxel_size_nm, last.scale, strict=True))
            step_z = 2 if z_nm <= math.sqrt(2) * max(y_nm, x_nm) else 1
        step = (step_z, 2, 2)
        depth, height, width = (-(-n // by) for n, by in zip(last.shape, step, strict=True))
        z, y, x = (scale * by for scale, by in zip(last.scale, step, strict=True))
        levels.append(PyramidLevel((depth, height, width), step, (z, y, x)))
    return levels


def create_level(location: str, number: int, grid: BlockGrid, is_begun: bool) -> Any:
    """The array of a level for writing by the blocks of a grid; one that exists is continued.

    Args:
        location: path or URL of the pyramid.
        number: of the level.
        grid: its blocks.
        is_begun: blocks of it are already finished, so it must exist.

    Raises:
        UserError: another array exists there, or it cannot be written.
    """
    return open_or_create_array(
        f"{location}/{number}", grid.shape, np.uint32, block_chunks(grid.block_shape), is_begun, dimension_names=AXES
    )


@dataclass(frozen=True)
class FinalLabels:
    """Writes the full resolution: labels without the objects that :func:`filter_objects` removed.

    Memory: 9 bytes per voxel of the block.

    Args:
        labels: before the removal, uint32 (D, H, W).
        finished: the manifest.
        filtered: name of the stage that :func:`filter_objects` wrote.
        level: the Zarr array to write to.
    """

    labels: VoxelArray
    finished: FinishedBlocks
    filtered: str
    level: Any

    def __call__(self, block: Block) -> Mapping[str, np.ndarray]:
        voxels = read_region(self.labels, block.core)
        (removed,) = self.finished.read(self.filtered, block, "removed")
        remove_ids(voxels, removed)
        write_region(self.level, block.core, voxels)
        return {}


@dataclass(frozen=True)
class CoarserLevel:
    """Writes a level from the one before: the first of every few voxels, so that ids stay ids.

    Memory: 6 bytes per voxel of the block.

    Args:
        finer: the Zarr array of the level before.
        step: see :class:`PyramidLevel`.
        level: the Zarr array to write to.
    """

    finer: VoxelArray
    step: Position
    level: Any

    def __call__(self, block: Block) -> Mapping[str, np.ndarray]:
        z, y, x = (
            slice(along.start * by, (along.stop - 1) * by + 1, by)
            for along, by in zip(block.core, self.step, strict=True)
        )
        write_region(self.level, block.core, read_region(self.finer, (z, y, x)))
        return {}


def write_pyramid_metadata(
    location: str,
    levels: Sequence[PyramidLevel],
    voxel_size_nm: Sequence[float] | None,
    is_labels: bool = False,
    origin_nm: Sequence[float] | None = None,
) -> None:
    """Make the folder of the levels an OME-Zarr image; call it last, so that an unfinished one does not count.

    Args:
        location: path or URL.
        levels: all of them.
        voxel_size_nm: along z, y, x; None writes scales without a unit.
        is_labels: the voxels are ids, which viewers then colour individually.
        origin_nm: where the first voxel, of each level, lies (z, y, x).

    Raises:
        UserError: it cannot be written.
    """
    scales = [level.scale for level in levels]
    multiscale = axes_and_levels(voxel_size_nm, scales, origin_nm) | {"type": "nearest"}
    try:
        create_multiscale_group(node_store(location), Path(location).name, multiscale, is_labels)
    except ZARR_ERRORS as error:
        raise UserError(f"{location}: cannot be written: {error}; check the free space and permissions") from error
