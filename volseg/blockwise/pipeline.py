# SPDX-License-Identifier: Apache-2.0
"""From a volume on disk to probabilities and instances on disk, block by block."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from dask.system import CPU_COUNT
from distributed import Client

from volseg.blockwise.block_array import BlockArray
from volseg.blockwise.block_grid import BlockGrid
from volseg.blockwise.cluster import connect
from volseg.blockwise.decoding import DEFAULT_BLOCK_SHAPE, decode_blockwise
from volseg.blockwise.finished_blocks import FinishedBlocks
from volseg.blockwise.grey_range import BYTES, GreyRange
from volseg.blockwise.label_pyramid import AXES, pyramid_levels, write_pyramid_metadata
from volseg.blockwise.prediction import Activation, window_work
from volseg.blockwise.prediction_stage import PredictionStage
from volseg.blockwise.stages import run_stage
from volseg.blockwise.stored_array import block_chunks, open_array, open_or_create_array, remove_partial_chunks
from volseg.blockwise.volume_opener import VolumeOpener
from volseg.blockwise.worker_network import WorkerNetwork
from volseg.console.option_checks import three_whole_numbers
from volseg.data.blank import blank_warnings
from volseg.errors import UserError
from volseg.inferers.sliding_window import BlendedSlidingWindow
from volseg.instances.decoding import Decoding
from volseg.storage.location import open_storage

__all__ = ["predict_blockwise", "segment_blockwise"]

_PREDICTION, _SEGMENTATION = "prediction", "segmentation"
_DECODED = ("instances.ome.zarr", "instances.csv", "instances.parquet", "statistics.json", "preview.png", "decoding")

logger = logging.getLogger(__name__)


def predict_blockwise(
    open_volume: VolumeOpener,
    output: str | Path,
    network: WorkerNetwork,
    windows: BlendedSlidingWindow,
    block_shape: Sequence[int] = DEFAULT_BLOCK_SHAPE,
    channels: Sequence[str | None] = ("mask", "boundary"),
    grey_range: GreyRange = BYTES,
    activation: Activation = "sigmoid",
    voxel_size_nm: Sequence[float] | None = None,
    client: Client | None = None,
    progress: bool = True,
) -> dict[str, str]:
    """Predict a volume block by block into OME-Zarr images of bytes, one for each output of the network.

    They hold ``int(255 p)`` of what :func:`volseg.blockwise.prediction.predict_block` gives, which is what ``windows``
    would give for the whole volume. A run that was stopped goes on with what is missing.

    Args:
        open_volume: of the volume, with its path or URL.
        output: folder, path or URL of any storage that fsspec knows.
        network: any that takes one channel of grey values: Res-UNet's, PDV-Net, V-Net.
        windows: size, overlap, continuation and test-time augmentation.
        block_shape: voxels of a block (D, H, W). Windows at its borders run in each of the blocks that they reach into,
            see :func:`volseg.blockwise.prediction.window_work`.
        channels: names of the network's outputs; None leaves one out, such as the background.
        grey_range: of the whole volume.
        activation: ``"sigmoid"``, ``"softmax"`` or, where the network returns probabilities, ``"none"``.
        voxel_size_nm: (z, y, x), for the images' metadata.
        client: of a Dask cluster whose workers reach volume, weights and output; None works in this process.
        progress: show a bar of the blocks.

    Returns:
        for each channel's name the path or URL of its image, ``NAME.ome.zarr``.

    Raises:
        UserError: blocks that are none; another run is at work there or had other parameters, or a block
            fails: one line that names it.
    """
    block_shape = three_whole_numbers("block_shape", block_shape, 1, "[64,512,512]")
    shape = open_volume.source().shape
    grid = BlockGrid(shape, block_shape)
    images = {name: f"{output}/{name}.ome.zarr" for name in channels if name is not None}
    finished = FinishedBlocks(f"{output}/finished")
    parameters = prediction_parameters(open_volume, network, windows, grid, channels, grey_range, activation)
    with finished.run(parameters):
        is_begun, chunks = bool(finished.numbers(_PREDICTION)), block_chunks(grid.block_shape)
        arrays = {
            name: open_or_create_array(f"{image}/0", shape, np.uint8, chunks, is_begun, dimension_names=AXES)
            for name, image in images.items()
        }
        if len(finished.numbers(_PREDICTION)) < len(grid):
            work = window_work(shape, block_shape, windows)
            logger.info("prediction: %.2f times the windows of the whole volume", work)
        outputs = tuple(None if name is None else arrays[name] for name in channels)
        stage = PredictionStage(open_volume, network, windows, grey_range, activation, outputs)
        run_stage(client, _PREDICTION, stage, grid, finished, progress)
        origin_nm = open_volume.source().origin_nm
        for image in images.values():
            write_pyramid_metadata(image, pyramid_levels(shape, None, max(shape)), voxel_size_nm, origin_nm=origin_nm)
            remove_partial_chunks(image)
    return images


def segment_blockwise(
    open_volume: VolumeOpener,
    output: str | Path,
    network: WorkerNetwork,
    windows: BlendedSlidingWindow,
    decoding: Decoding,
    block_shape: Sequence[int] = DEFAULT_BLOCK_SHAPE,
    prediction_block_shape: Sequence[int] | None = None,
    grey_range: GreyRange = BYTES,
    voxel_size_nm: Sequence[float] | None = None,
    scheduler: str = "",
    workers: int | None = None,
    keep_probabilities: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Predict mask and boundary of a volume and decode them to instances: both stages with what they need between them.

    Called again with the same arguments, a run that ended at any moment goes on with what is missing, and one that is
    complete does nothing. With others of the decoding, probabilities that were kept are decoded anew, and what was
    decoded before is replaced.

    Args:
        open_volume: of the volume, with its path or URL.
        output: folder of this volume's results, path or URL: ``instances.ome.zarr``, ``instances.csv``,
            ``instances.parquet``, ``statistics.json``; until it is complete, or for good if they are
            kept, ``probabilities/mask.ome.zarr`` and ``probabilities/boundary.ome.zarr``.
        network: with two outputs, mask and boundary.
        windows: see :func:`predict_blockwise`.
        decoding: the method and its numbers.
        block_shape: voxels of a block (D, H, W) of the decoding.
        prediction_block_shape: of the prediction, where larger blocks save windows; None: the same.
        grey_range: of the whole volume.
        voxel_size_nm: (z, y, x).
        scheduler: see :func:`volseg.blockwise.cluster.connect`.
        workers: see there.
        keep_probabilities: whether they stay when the instances are written.
        progress: show a bar for each stage.

    Returns:
        ``statistics.json``.

    Raises:
        UserError: options that are none; another run is at work there or had other parameters, or another decoding
            without its probabilities; a block or a worker fails: one line.
    """
    block_shape = three_whole_numbers("block_shape", block_shape, 1, "[64,512,512]")
    output = str(output).rstrip("/")
    predicted_shape = (
        block_shape
        if prediction_block_shape is None
        else three_whole_numbers("prediction_block_shape", prediction_block_shape, 1, "[256,512,512]")
    )
    grid = BlockGrid(open_volume.source().shape, predicted_shape)
    channels = ("mask", "boundary")
    parameters = prediction_parameters(open_volume, network, windows, grid, channels, grey_range, "sigmoid")
    wanted = {
        **decoding.parameters(),
        "block_shape": list(BlockGrid(grid.shape, block_shape).block_shape),
        "voxel_size_nm": None if voxel_size_nm is None else [float(edge) for edge in voxel_size_nm],
    }
    finished = FinishedBlocks(f"{output}/finished")
    predicted = FinishedBlocks(f"{output}/probabilities/finished")
    with finished.run(parameters):
        record = _DecodingRecord(finished, grid)
        are_kept = len(predicted.numbers(_PREDICTION)) == len(grid)
        found, is_complete = record.read()
        if found is not None and found != wanted:
            _log_other_decoding(output, found, wanted, is_complete, are_kept)
        if found == wanted and is_complete:
            if keep_probabilities and not are_kept:
                logger.warning("%s: the run is complete, and its probabilities were not kept", output)
        else:
            with connect(scheduler, workers, gpus=network.device != "cpu") as client:
                # elsewhere workers have the threads that they were started with
                threads = None if client is None or scheduler else max(1, CPU_COUNT // len(client.cluster.workers))
                images = predict_blockwise(
                    open_volume,
                    f"{output}/probabilities",
                    replace(network, threads=threads),
                    windows,
                    predicted_shape,
                    channels,
                    grey_range,
                    "sigmoid",
                    voxel_size_nm,
                    client,
                    progress,
                )
            if found != wanted:
                # without a record the next run starts over, too, should this one end while it removes
                record.remove()
                for name in _DECODED:
                    _remove(f"{output}/{name}")
                record.write(wanted, is_complete=False)
            n_blank = sum(int(predicted.read(_PREDICTION, block, "blank")[0]) for block in grid)
            warnings = blank_warnings(n_blank / math.prod(grid.shape))
            for warning in warnings:
                logger.warning("%s: %s", open_volume.location, warning)
            # workers of its own: those before hold the network's memory, and are no more than GPUs
            with connect(scheduler, workers) as client:
                arrays = (open_array(f"{images[name]}/0") for name in channels)
                mask, boundary = (BlockArray(array, grid, predicted, _PREDICTION) for array in arrays)
                decode_blockwise(
                    mask,
                    boundary,
                    output,
                    decoding,
                    block_shape,
                    voxel_size_nm=voxel_size_nm,
                    client=client,
                    progress=progress,
                    origin_nm=open_volume.source().origin_nm,
                    warnings=warnings,
                )
            record.write(wanted, is_complete=True)
        # the manifest first: what is left of a removal that was interrupted must not pass for probabilities
        removed = () if keep_probabilities else ("probabilities/finished", "probabilities")
        for folder in ("decoding", *removed):
            _remove(f"{output}/{folder}")
        return _read_json(f"{output}/statistics.json")


def prediction_parameters(
    open_volume: VolumeOpener,
    network: WorkerNetwork,
    windows: BlendedSlidingWindow,
    grid: BlockGrid,
    channels: Sequence[str | None],
    grey_range: GreyRange,
    activation: Activation,
) -> dict[str, Any]:
    """All that the probabilities of a run depend on, as JSON holds it."""
    return {
        **open_volume.parameters(),
        "block_shape": grid.block_shape,
        "window": windows.window,
        "overlap": windows.overlap,
        "padding": windows.padding,
        "divisor": windows.divisor,
        "predictions": len(windows.augmentations),
        "channels": list(channels),
        "grey_range": asdict(grey_range),
        "activation": activation,
        **network.parameters(),
    }


class _DecodingRecord:
    """Which decoding stands in a folder of results, or is under way there."""

    def __init__(self, finished: FinishedBlocks, grid: BlockGrid) -> None:
        self.finished, self.whole = finished, BlockGrid(grid.shape, grid.shape)[0]

    def read(self) -> tuple[dict[str, Any] | None, bool]:
        """Its parameters, None where there is none, and whether it is complete."""
        if not self.finished.has(_SEGMENTATION, self.whole):
            return None, False
        parameters, is_complete = self.finished.read(_SEGMENTATION, self.whole, "parameters", "is_complete")
        return json.loads(str(parameters)), bool(is_complete)

    def write(self, parameters: Mapping[str, Any], is_complete: bool) -> None:
        arrays = {"parameters": np.array(json.dumps(parameters)), "is_complete": np.array(is_complete)}
        self.finished.write(_SEGMENTATION, self.whole, arrays)

    def remove(self) -> None:
        self.finished.remove(_SEGMENTATION, self.whole)


def _log_other_decoding(
    output: str, found: Mapping[str, Any], wanted: Mapping[str, Any], is_complete: bool, are_kept: bool
) -> None:
    """Say that what was decoded with other options is replaced; refuse it where probabilities are gone."""
    changed = [key for key in dict.fromkeys((*wanted, *found)) if found.get(key) != wanted.get(key)]
    received, expected = (
        ", ".join(f"{key} {options[key]}" for key in changed if key in options) for options in (wanted, found)
    )
    if is_complete and not are_kept:
        raise UserError(
            f"{output}: holds instances of another decoding, whose probabilities were not kept. Received: {received}. "
            f"Expected: {expected}. Choose another folder; with --keep_probabilities True later runs there only decode."
        )
    logger.info("%s: decoding anew with %s (was %s)%s", output, received, expected,
                "; its probabilities are used again" if are_kept else "")  # fmt: skip


def _remove(location: str) -> None:
    """Remove a file or folder if it is there."""
    file_system, folder = open_storage(location)
    try:
        if file_system.exists(folder):
            file_system.rm(folder, recursive=True)
    except OSError as error:
        raise UserError(
            f"{location}: cannot be removed. Received: {error.strerror or error}. Check your rights, and remove it."
        ) from error


def _read_json(location: str) -> dict[str, Any]:
    file_system, path = open_storage(location)
    try:
        return json.loads(file_system.cat_file(path))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{location}: cannot be read. Received: {error}. Remove the folder it is in and run again."
        ) from error
