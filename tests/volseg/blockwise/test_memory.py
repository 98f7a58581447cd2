# SPDX-License-Identifier: Apache-2.0
"""Tests that the stages take the memory that they say, whatever the size of the volume."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import zarr

from volseg.blockwise.block_grid import BlockGrid
from volseg.blockwise.components import GlobalComponents, LocalComponents, SharedVoxels, merge_components
from volseg.blockwise.finished_blocks import FinishedBlocks
from volseg.blockwise.label_pyramid import CoarserLevel, FinalLabels, filter_objects
from volseg.blockwise.objects import InstanceGrowth, ObjectOutlines, SeededWatershed
from volseg.blockwise.stages import run_stage
from volseg.blockwise.zarr_array import open_or_create_array
from volseg.instances.decoding import Decoding

BLOCK_SHAPE = (32, 112, 112)
CHUNKS = (8, 28, 28)  # ten of them are packed or unpacked at once, which is little
BLOCKS = 2


def bytes_per_voxel(function: Callable, block) -> float:
    """Peak memory of a call in bytes for each voxel of the block."""
    function(block)  # what is imported and cached at first use is not counted
    tracemalloc.start()
    function(block)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / np.prod(block.shape)


@pytest.mark.parametrize(("kind", "components", "watershed"), [("uint8", 12, 20), ("float32", 18, 23)])
def test_memory_is_that_of_a_block(tmp_path, kind, components, watershed):
    grid = BlockGrid((BLOCK_SHAPE[0] * BLOCKS, *BLOCK_SHAPE[1:]), BLOCK_SHAPE)
    inside = (np.indices(BLOCK_SHAPE) % 16 > 3).all(axis=0)
    inside = np.concatenate([inside] * BLOCKS).astype(kind) * (255 if kind == "uint8" else 1)
    mask = zarr.create_array(tmp_path / "mask", data=inside, chunks=CHUNKS)
    boundary = zarr.create_array(tmp_path / "boundary", data=np.zeros_like(inside), chunks=CHUNKS)
    finished = FinishedBlocks(tmp_path / "finished")
    arrays = [open_or_create_array(tmp_path / name, grid.shape, np.uint32, CHUNKS) for name in "abc"]
    stages = {
        "label": (LocalComponents(grid, mask, boundary, arrays[0], Decoding()), components),
        "pairs": (SharedVoxels(grid, finished, "label"), 2),
    }
    measured = {}
    for name, (function, _) in stages.items():
        measured[name] = bytes_per_voxel(function, grid[0])
        run_stage(None, name, function, grid, finished, progress=False)
    count = merge_components(grid, finished, "label", "pairs", "ids")
    assert count == BLOCKS * 2 * 7 * 7
    seeds = GlobalComponents(grid, arrays[0], finished, "ids")
    flood = SeededWatershed(grid, mask, boundary, seeds, Decoding("watershed", halo=(0, 0, 0)), arrays[1])
    stages["flood"] = flood, watershed
    stages["grow"] = InstanceGrowth(grid, seeds, mask, boundary, (1, 5, 5), arrays[1]), 13
    for name in ("flood", "grow"):
        measured[name] = bytes_per_voxel(stages[name][0], grid[0])
    run_stage(None, "grow", stages["grow"][0], grid, finished, progress=False)
    stages["outlines"] = ObjectOutlines(grid, arrays[1], boundary), 6 if kind == "uint8" else 9
    measured["outlines"] = bytes_per_voxel(stages["outlines"][0], grid[0])
    filter_objects(grid, finished, "grow", "sizes", 1)
    stages["final"] = FinalLabels(arrays[1], finished, "sizes", arrays[2]), 9
    stages["coarser"] = CoarserLevel(arrays[1], (1, 1, 1), arrays[2]), 9
    for name in ("final", "coarser"):
        measured[name] = bytes_per_voxel(stages[name][0], grid[0])
    too_much = {name: value for name, value in measured.items() if value > 1.05 * stages[name][1]}
    assert not too_much
