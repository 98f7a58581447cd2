# SPDX-License-Identifier: Apache-2.0
"""From a volume on disk to instances on disk, block by block: prediction, then decoding."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dask.system import CPU_COUNT

from volseg.blockwise.block_grid import DEFAULT_BLOCK_SHAPE, BlockGrid
from volseg.blockwise.cluster import connect
from volseg.blockwise.decoding import decode_blockwise
from volseg.blockwise.finished_blocks import FinishedBlocks
from volseg.blockwise.volume_prediction import VolumePrediction, predict_blockwise
from volseg.console.option_checks import three_whole_numbers
from volseg.data.blank import blank_warnings
from volseg.errors import UserError
from volseg.instances.decoding import Decoding
from volseg.storage.file_systems import open_storage

__all__ = ["segment_blockwise"]

_DECODED = ("instances.ome.zarr", "instances.csv", "instances.parquet", "statistics.json", "preview.png", "decoding")
_RECORD = "decoding.json"

logger = logging.getLogger(__name__)


def segment_blockwise(
    prediction: VolumePrediction,
    output: str | Path,
    decoding: Decoding,
    block_shape: Sequence[int] = DEFAULT_BLOCK_SHAPE,
    scheduler: str = "",
    workers: int | None = None,
    keep_probabilities: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Predict mask and boundary of a volume and decode them to instances: both stages with what they need between them.

    Called again with the same arguments, a run that ended at any moment resumes with what is missing, and one that is
    complete does nothing. With another decoding, probabilities that were kept are decoded again, and what was
    decoded before is replaced.

    Args:
        prediction: of the volume, with the channels mask and boundary; larger blocks save windows.
        output: folder of this volume's results, path or URL: ``instances.ome.zarr``, ``instances.csv``,
            ``instances.parquet``, ``statistics.json``; until it is complete, or for good if they are
            kept, ``probabilities/mask.ome.zarr`` and ``probabilities/boundary.ome.zarr``.
        decoding: the method and its numbers.
        block_shape: voxels of a block (D, H, W) of the decoding.
        scheduler, workers: see :func:`volseg.blockwise.cluster.connect`.
        keep_probabilities: whether they stay when the instances are written.
        progress: show a bar for each stage.

    Returns:
        ``statistics.json``.

    Raises:
        UserError: invalid options; another run is at work there or had other parameters, or another decoding
            without its probabilities; a block or a worker fails: one line.
    """
    block_shape = three_whole_numbers("block_shape", block_shape, 1, "[64,512,512]")
    output = str(output).rstrip("/")
    probabilities = f"{output}/probabilities"
    size_nm = prediction.voxel_size_nm
    wanted = {
        **decoding.parameters(),
        "block_shape": list(BlockGrid(prediction.grid.shape, block_shape).block_shape),
        "voxel_size_nm": None if size_nm is None else [float(edge) for edge in size_nm],
    }
    finished = FinishedBlocks(f"{output}/finished")
    with finished.lock(prediction.parameters()):
        record = finished.read_json(_RECORD) or {"parameters": None, "is_complete": False}
        are_kept = prediction.is_stored(probabilities)
        if record == {"parameters": wanted, "is_complete": True}:
            if keep_probabilities and not are_kept:
                logger.warning("%s: the run is complete, and its probabilities were not kept", output)
        else:
            is_other = record["parameters"] != wanted
            if is_other and record["parameters"]:
                _log_other_decoding(output, record["parameters"], wanted, record["is_complete"], are_kept)
            _predict(prediction, probabilities, scheduler, workers, progress)
            if is_other:
                # without a record the next run starts over, too, should this one end while it removes
                for name in (f"finished/{_RECORD}", *_DECODED):
                    _remove(f"{output}/{name}")
                finished.write_json(_RECORD, {"parameters": wanted, "is_complete": False})
            warnings = blank_warnings(prediction.blank_fraction(probabilities))
            for warning in warnings:
                logger.warning("%s: %s", prediction.open_volume.location, warning)
            # workers of its own: those before hold the network's memory, and are no more than GPUs
            with connect(scheduler, workers) as client:
                mask, boundary = (prediction.stored(probabilities, name) for name in ("mask", "boundary"))
                decode_blockwise(
                    mask,
                    boundary,
                    output,
                    decoding,
                    block_shape,
                    size_nm,
                    client,
                    progress,
                    origin_nm=prediction.origin_nm,
                    warnings=warnings,
                    open_volume=prediction.open_volume if prediction.open_volume.network_shape else None,
                )
            finished.write_json(_RECORD, {"parameters": wanted, "is_complete": True})
        # the manifest first: what is left of a removal that was interrupted must not pass for probabilities
        removed = () if keep_probabilities else (f"{probabilities}/finished", probabilities)
        for folder in (f"{output}/decoding", *removed):
            _remove(folder)
        return _read_json(f"{output}/statistics.json")


def _predict(
    prediction: VolumePrediction, probabilities: str, scheduler: str, workers: int | None, progress: bool
) -> None:
    with connect(scheduler, workers, gpus=prediction.network.device != "cpu") as client:
        # elsewhere workers have the threads that they were started with
        threads = None if client is None or scheduler else max(1, CPU_COUNT // len(client.cluster.workers))
        on_workers = replace(prediction, network=replace(prediction.network, threads=threads))
        predict_blockwise(on_workers, probabilities, client, progress)


def _log_other_decoding(
    output: str, found: Mapping[str, Any], wanted: Mapping[str, Any], is_complete: bool, are_kept: bool
) -> None:
    """Say that what was decoded with other options is replaced; refuse it where probabilities are gone."""
    changed = [key for key in dict.fromkeys((*wanted, *found)) if found.get(key) != wanted.get(key)]
    now, before = (
        ", ".join(f"{key} {options[key]}" for key in changed if key in options) for options in (wanted, found)
    )
    if is_complete and not are_kept:
        raise UserError(
            f"{output}: holds instances decoded with {before}, got {now}, and the probabilities were not kept; choose "
            "another folder, with --keep_probabilities True if you want to decode again there"
        )
    again = "; its probabilities are used again" if are_kept else ""
    logger.info("%s: decoding again with %s (was %s)%s", output, now, before, again)


def _remove(location: str) -> None:
    """Remove a file or folder if it is there."""
    file_system, folder = open_storage(location)
    try:
        if file_system.exists(folder):
            file_system.rm(folder, recursive=True)
    except OSError as error:
        raise UserError(
            f"{location}: cannot be removed ({error.strerror or error}); check permissions, and remove it"
        ) from error


def _read_json(location: str) -> dict[str, Any]:
    file_system, path = open_storage(location)
    try:
        return json.loads(file_system.cat_file(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{location}: cannot be read ({error}); remove its folder and run again") from error
