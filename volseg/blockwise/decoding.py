# SPDX-License-Identifier: Apache-2.0
"""From mask and boundary probabilities to instances, for volumes larger than memory."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client

from volseg.blockwise.block_grid import DEFAULT_BLOCK_SHAPE, BlockGrid
from volseg.blockwise.components import GlobalComponents, LocalComponents, SharedVoxels, merge_components
from volseg.blockwise.finished_blocks import BlockArray, FinishedBlocks
from volseg.blockwise.instance_files import local_file, write_instance_files
from volseg.blockwise.label_pyramid import (
    CoarserLevel,
    FinalLabels,
    create_level,
    filter_objects,
    pyramid_levels,
    write_pyramid_metadata,
)
from volseg.blockwise.objects import InstanceGrowth, ObjectOutlines, SeededWatershed, objects_without_outline
from volseg.blockwise.stages import BlockFunction, run_stage
from volseg.blockwise.volume_labels import VolumeLabels
from volseg.blockwise.volume_opener import VolumeOpener
from volseg.blockwise.zarr_array import (
    VoxelArray,
    array_name,
    block_chunks,
    local_folder,
    open_array,
    open_or_create_array,
    remove_partial_chunks,
)
from volseg.console.option_checks import three_whole_numbers
from volseg.data.open_volume import open_chunked_volume
from volseg.errors import UserError
from volseg.instances.decoding import PAPER, Decoding
from volseg.instances.table import Extents

__all__ = ["BlockwiseInstances", "decode_blockwise"]

_COMPONENTS, _PAIRS, _IDS, _LABELS, _OUTLINES = "components", "pairs", "ids", "labels", "outlines"
_FILTERED = "filtered"
_KEPT, _LEVEL, _WRITTEN_SIZES = "kept", "level_{}", "written_sizes"  # the first and the last of resampled volumes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BlockwiseInstances:
    """What was written.

    Attributes:
        labels: OME-Zarr image of the ids, uint32, with a pyramid: path or URL.
        csv: table of the instances.
        parquet: the same table.
        statistics: ``instances``, ``removed_below_min_size``, ``removed_without_outline``, ``blocks``,
            ``blocks_done_now`` (all stages together); for watershed ``cut_pieces`` (each counted once per block),
            ``blocks_with_cut_pieces`` and ``voxels_in_cut_pieces``, see
            :class:`volseg.blockwise.objects.SeededWatershed`.
    """

    labels: str
    csv: str
    parquet: str
    statistics: Mapping[str, Any]


def decode_blockwise(
    mask: VoxelArray | str | Path,
    boundary: VoxelArray | str | Path,
    output: str | Path,
    decoding: Decoding = PAPER,
    block_shape: Sequence[int] = DEFAULT_BLOCK_SHAPE,
    voxel_size_nm: Sequence[float] | None = None,
    client: Client | None = None,
    progress: bool = True,
    origin_nm: Sequence[float] | None = None,
    warnings: Sequence[str] = (),
    open_volume: VolumeOpener | None = None,
) -> BlockwiseInstances:
    """Number the objects that mask and boundary probabilities show, block by block.

    Ids are those of :func:`volseg.instances.decoding.decode_instances` on the whole volume: always for connected
    components, for watershed wherever the halo covers the connected pieces of foreground; where it does not, this is
    counted and warned of, and :class:`volseg.blockwise.objects.SeededWatershed` says what may differ.

    A run that ended at any moment resumes when it is called again with the same arguments; the result is the same, bit
    for bit. ``OUTPUT/decoding`` holds what resuming takes, and can be removed afterwards.

    Memory of each worker: 13 bytes per voxel of the block for uint8, 18 for float32; for watershed 19 and 22 of block
    and halo, and 40 to 80 bytes per voxel of the box of its largest connected piece of foreground. Add about 50 MB of
    chunks that are packed or unpacked at once, and 130 MB of Python. The calling process takes about 60 bytes per
    component of each block, and 250 per object.

    Args:
        mask: probability of being inside an object (D, H, W), floating point or uint8 for 255 times it: an array that
            is read by slices and can be pickled, as Zarr's can, a file or folder that
            :func:`volseg.data.open_volume.open_chunked_volume` opens, or the URL of a Zarr array.
        boundary: probability of being on an outline, as ``mask``.
        output: folder or URL to write to: ``instances.ome.zarr``, ``instances.csv``, ``instances.parquet``,
            ``statistics.json``.
        decoding: the method and its numbers.
        block_shape: voxels of a block (z, y, x).
        voxel_size_nm: of what is written, along z, y, x; None takes that of ``mask`` if it says.
        client: of a Dask cluster whose workers reach input and output; None works in this process.
        progress: show a bar for each stage.
        origin_nm: where the first voxel lies (z, y, x).
        warnings: further entries of ``statistics.json``, of the volume.
        open_volume: opens the volume; where that was resampled for the network, labels come back on its own grid, as
            :func:`volseg.instances.original_grid.labels_in_volume` brings them.

    Raises:
        UserError: an invalid ``block_shape``; inputs that are not alike or cannot be read; the output holds another
            run, or cannot be written; a worker died: one line, that names the block where there is one.
    """
    block_shape = three_whole_numbers("block_shape", block_shape, 1, "[64,512,512]")
    mask, boundary = _opened(mask), _opened(boundary)
    _check_probabilities(mask, boundary)
    if voxel_size_nm is None:
        voxel_size_nm = getattr(mask, "voxel_size_nm", None)
    stages = _Stages(
        output=str(local_folder(output) or output).rstrip("/"),
        grid=BlockGrid(mask.shape, block_shape),
        written=BlockGrid((open_volume.source() if open_volume else mask).shape, block_shape),
        client=client,
        progress=progress,
    )
    parameters = {
        "mask": array_name(mask),
        "boundary": array_name(boundary),
        "dtype": [str(mask.dtype), str(boundary.dtype)],
        "shape": stages.grid.shape,
        "written_shape": stages.written.shape,
        "block_shape": stages.grid.block_shape,
        **decoding.parameters(),
        "voxel_size_nm": None if voxel_size_nm is None else [float(edge) for edge in voxel_size_nm],
    }
    with stages.finished.lock(parameters):
        components = stages.components(mask, boundary, decoding)
        labels = stages.array(_LABELS)
        function: BlockFunction
        if decoding.is_watershed:
            function = SeededWatershed(stages.grid, mask, boundary, components, decoding, labels)
        else:
            function = InstanceGrowth(stages.grid, components, mask, boundary, decoding.dilation, labels)
        stages.run(_LABELS, function)
        without_outline = None
        if decoding.outline_threshold:
            stages.run(_OUTLINES, ObjectOutlines(stages.grid, labels, boundary))
            without_outline = objects_without_outline(
                stages.grid, stages.finished, _OUTLINES, decoding.outline_threshold
            )
        kept, removed = filter_objects(
            stages.grid, stages.finished, _LABELS, _FILTERED, decoding.min_size, without_outline
        )
        final: Callable[[BlockArray], BlockFunction] = partial(FinalLabels, labels, stages.finished, _FILTERED)
        if open_volume:
            resampled = stages.array(_KEPT)
            stages.run(_KEPT, final(resampled))
            final = partial(VolumeLabels, resampled, mask, decoding, open_volume)
        stages.write_labels(final, voxel_size_nm, origin_nm)
        if open_volume:
            kept, _ = filter_objects(stages.written, stages.finished, _LEVEL.format(0), _WRITTEN_SIZES, 1)
        return stages.write_tables(kept, removed, decoding, voxel_size_nm, warnings)


class _Stages:
    """The stages of one run."""

    def __init__(self, output: str, grid: BlockGrid, written: BlockGrid, client: Client | None, progress: bool) -> None:
        self.output, self.grid, self.written, self.client, self.progress = output, grid, written, client, progress
        self.labels = f"{output}/instances.ome.zarr"
        self.work = f"{output}/decoding"
        self.finished = FinishedBlocks(f"{self.work}/finished")
        self.done = 0

    def run(self, stage: str, function: BlockFunction, grid: BlockGrid | None = None) -> None:
        self.done += run_stage(self.client, stage, function, grid or self.grid, self.finished, self.progress)

    def array(self, stage: str) -> BlockArray:
        """The array that a stage writes to, uint32 (D, H, W)."""
        chunks = block_chunks(self.grid.block_shape)
        begun = bool(self.finished.numbers(stage))
        array = open_or_create_array(f"{self.work}/{stage}.zarr", self.grid.shape, np.uint32, chunks, begun)
        return BlockArray(array, self.grid, self.finished, stage)

    def components(self, mask: VoxelArray, boundary: VoxelArray, decoding: Decoding) -> GlobalComponents:
        """The seeds with the ids of the whole volume."""
        array = self.array(_COMPONENTS)
        self.run(_COMPONENTS, LocalComponents(self.grid, mask, boundary, array, decoding))
        self.run(_PAIRS, SharedVoxels(self.grid, self.finished, _COMPONENTS))
        if len(self.finished.numbers(_IDS)) < len(self.grid):
            merge_components(self.grid, self.finished, _COMPONENTS, _PAIRS, _IDS)
        return GlobalComponents(self.grid, array, self.finished, _IDS)

    def write_labels(
        self,
        final: Callable[[BlockArray], BlockFunction],
        voxel_size_nm: Sequence[float] | None,
        origin_nm: Sequence[float] | None,
    ) -> None:
        """Write the labels, by a function that is called with their array, and the pyramid."""
        levels = pyramid_levels(self.written.shape, voxel_size_nm)
        finer: Any = None
        for number, level in enumerate(levels):
            stage, grid = _LEVEL.format(number), BlockGrid(level.shape, self.written.block_shape)
            level_array = create_level(self.labels, number, grid, bool(self.finished.numbers(stage)))
            array = BlockArray(level_array, grid, self.finished, stage)
            self.run(stage, CoarserLevel(finer, level.step, array) if number else final(array), grid)
            finer = array
        write_pyramid_metadata(self.labels, levels, voxel_size_nm, is_labels=True, origin_nm=origin_nm)

    def write_tables(
        self,
        kept: Extents,
        removed: Mapping[str, int],
        decoding: Decoding,
        voxel_size_nm: Sequence[float] | None,
        warnings: Sequence[str],
    ) -> BlockwiseInstances:
        """Write tables and statistics."""
        csv, parquet = write_instance_files(f"{self.output}/instances", kept, voxel_size_nm)
        statistics: dict[str, Any] = {
            "instances": len(kept.ids),
            **removed,
            "blocks": len(self.grid),
            **(self._cut_pieces() if decoding.is_watershed else {}),
            **({"warnings": list(warnings)} if warnings else {}),
        }
        with local_file(f"{self.output}/statistics.json") as path:
            path.write_text(json.dumps(statistics, indent=4) + "\n", encoding="utf-8")
        for folder in (self.work, self.labels):
            remove_partial_chunks(folder)
        return BlockwiseInstances(self.labels, csv, parquet, statistics | {"blocks_done_now": self.done})

    def _cut_pieces(self) -> dict[str, int]:
        """What of a watershed the halo did not cover; warned of if there is anything."""
        cut = np.stack([self.finished.read(_LABELS, block, "cut")[0] for block in self.grid])
        blocks, (pieces, voxels) = int(np.count_nonzero(cut[:, 0])), cut.sum(axis=0).tolist()
        if blocks:
            logger.warning(
                "watershed: in %d of %d blocks connected foreground reaches beyond the halo: %d pieces, %d voxels. Ids "
                "are those of the whole volume there, too, but voxels of these pieces may belong to another of their "
                "objects, or to none, and borders between objects may follow those of blocks. A larger halo or a "
                "higher foreground_threshold covers them. All else is as in the whole volume.",
                blocks,
                len(self.grid),
                pieces,
                voxels,
            )
        return {"cut_pieces": pieces, "blocks_with_cut_pieces": blocks, "voxels_in_cut_pieces": voxels}


def _opened(probabilities: VoxelArray | str | Path) -> VoxelArray:
    if not isinstance(probabilities, str | Path):
        return probabilities
    folder = local_folder(probabilities)
    return open_array(probabilities) if folder is None else open_chunked_volume(folder)


def _check_probabilities(mask: VoxelArray, boundary: VoxelArray) -> None:
    for name, array in (("mask", mask), ("boundary", boundary)):
        dtype = np.dtype(array.dtype)
        if len(array.shape) != 3 or (dtype != np.uint8 and dtype.kind != "f"):
            raise UserError(
                f"{array_name(array)}: {name} must be uint8 or floating point (D, H, W), got {dtype} of shape "
                f"{tuple(array.shape)}"
            )
    if tuple(mask.shape) != tuple(boundary.shape):
        raise UserError(
            f"{array_name(boundary)}: boundary must have the shape of the mask, got {tuple(boundary.shape)}, and "
            f"{tuple(mask.shape)} in {array_name(mask)}"
        )
