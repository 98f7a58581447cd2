# SPDX-License-Identifier: Apache-2.0
"""Objects below a size removed, by the sizes in the whole volume."""

from __future__ import annotations

import numpy as np

from volseg.blockwise.block_grid import BlockGrid
from volseg.blockwise.finished_blocks import FinishedBlocks
from volseg.instances.table import Extents, joined_extents

__all__ = ["filter_sizes", "remove_ids"]

PENDING_ROWS = 2**18


def filter_sizes(
    grid: BlockGrid, finished: FinishedBlocks, counted: str, filtered: str, min_size: int
) -> tuple[Extents, int]:
    """Sum up what the blocks counted, and say of each block which of its objects are too small.

    Ids keep their numbers, so that they may have gaps.

    Memory: about 250 bytes for each object.

    Args:
        grid: the blocks.
        finished: the manifest.
        counted: name of the stage whose blocks hold :class:`volseg.instances.table.Extents`.
        filtered: name of the stage to write.
        min_size: voxels of the smallest object that is kept.

    Returns:
        the objects that are kept, in the order of their ids; the number of those that are not.
    """
    parts, rows, rows_joined = [], 0, 0
    for block in grid:
        parts.append(Extents(*finished.read(counted, block, *Extents._fields)))
        rows += len(parts[-1].ids)
        if rows > PENDING_ROWS + 2 * rows_joined:
            parts = [joined_extents(parts)]
            rows = rows_joined = len(parts[0].ids)
    objects = joined_extents(parts)
    too_small = objects.ids[objects.sums[:, 0] < min_size]
    for block in grid:
        (ids,) = finished.read(counted, block, "ids")
        finished.write(filtered, block, {"removed": np.intersect1d(ids, too_small, assume_unique=True)})
    kept = Extents(*(column[objects.sums[:, 0] >= min_size] for column in objects))
    return kept, len(too_small)


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
