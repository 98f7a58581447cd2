# SPDX-License-Identifier: Apache-2.0
"""Instances from probabilities, in memory and by blocks of volumes larger than memory, beside scikit-image."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from math import prod
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from dask.system import CPU_COUNT
from monai.utils import instantiate
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from skimage.measure import label
from skimage.morphology import dilation, remove_small_objects
from skimage.segmentation import watershed

from tools import REPOSITORY
from tools.bench.measure import (
    circumstances,
    duration,
    in_fresh_process,
    peak_memory_mb,
    peak_memory_of_command_mb,
    say,
    spread,
    summary,
    times,
)
from volseg.blockwise.block_grid import DEFAULT_BLOCK_SHAPE, BlockGrid
from volseg.blockwise.cluster import connect
from volseg.blockwise.decoding import decode_blockwise
from volseg.blockwise.volume_opener import VolumeOpener
from volseg.blockwise.volume_prediction import VolumePrediction, predict_blockwise
from volseg.blockwise.worker_network import WorkerNetwork
from volseg.blockwise.zarr_array import open_array, open_or_create_array
from volseg.data.ome_zarr import create_ome_zarr
from volseg.inferers.sliding_window import BlendedSlidingWindow
from volseg.instances.decoding import DEFAULT_HALO, Decoding, DecodingMethod, decode_instances, seed_map
from volseg.phantoms.electron_microscopy import electron_microscopy

METHODS: tuple[DecodingMethod, ...] = ("connected_components", "watershed")
TILE = (100, 512, 512)
FOREGROUND_THRESHOLD = 0.85
MIN_SIZE = 128
PEER, OURS = "scikit-image", "decode_instances"
WINDOW = (1, 7, 7)
SHAPE = (100, 4096, 4096)
DEEP_SECTIONS = 400
# what fits into memory whole, with the 40 bytes a voxel of scikit-image's watershed
CROP_PIXELS = 1024
CHUNK = (16, 256, 256)
BUNDLE = REPOSITORY / "bundles" / "resunet_mitoem"
OUTPUT = "OUTPUT"  # stands for the folder that a run gets
# dotted name, weights, arguments
RES_UNET_R: tuple[str, str, dict[str, Any]] = ("resunet_mitoem.network.ResUNetR", f"{BUNDLE}/models/model.pt", {})


def bench_instance_decoding(repetitions: int, seed: int, shape: Sequence[int] = TILE) -> dict[str, Any]:
    """Seconds, memory and agreement of both methods, each run in a process of its own.

    Args:
        repetitions: runs of each way.
        seed: number of the phantom.
        shape: of the volume (D, H, W).
    """
    say(f"draw probabilities of {times(shape)}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/probabilities.npy", make_tile(seed, shape))
        ways = [(library, method) for method in METHODS for library in (PEER, OURS)]
        runs: dict[tuple[str, DecodingMethod], list[dict[str, float]]] = {way: [] for way in ways}
        for repetition in range(repetitions + 1):
            for way in ways:
                runs[way].append(in_fresh_process(decode, *way, folder))
                say(f"{', '.join(way)} {repetition or 'warm-up'}: {duration(runs[way][-1]['seconds'])}")
        instances = {}
        for method in METHODS:
            reference = np.load(_labels_path(folder, PEER, method))
            for library in (PEER, OURS):
                labels = np.load(_labels_path(folder, library, method))
                instances[library, method] = int(np.count_nonzero(np.bincount(labels.ravel())[1:]))
                seconds = [run["seconds"] for run in runs[library, method]]
                row = summary(seconds, [run["seconds"] for run in runs[PEER, method]])
                rows.append(
                    {
                        "mode": f"{library}, {method.replace('_', ' ')}",
                        **row,
                        "peak_mb": round(max(run["peak_mb"] for run in runs[library, method])),
                        "megavoxels_per_s": round(prod(shape) / row["median_s"] / 1e6, 3),
                        "agreement": round(matched_share(labels, reference), 6),
                        "instances": instances[library, method],
                    }
                )
    found = "; ".join(f"{row['mode']}: {row['instances']}" for row in rows)
    return {
        "title": f"Instances from probabilities, {times(shape)}",
        "input": f"probabilities of mask and boundary of phantom {seed}, as bytes, in memory; scikit-image "
        f"{version('scikit-image')}",
        "weights": "none",
        "note": "Ratio and agreement: to scikit-image by the same method; agreement: voxels of instances that are "
        f"matched one to one, and of the background in both. Instances: {found}",
        **circumstances(),
        "rows": rows,
    }


def decode(library: str, method: DecodingMethod, folder: str) -> dict[str, float]:
    """Seconds from probabilities to labels, and the peak memory of this process; the labels are saved."""
    mask, boundary = np.load(f"{folder}/probabilities.npy")
    start = time.perf_counter()
    if library == OURS:
        labels = decode_instances(
            mask,
            boundary,
            Decoding(method, foreground_threshold=FOREGROUND_THRESHOLD, min_size=MIN_SIZE, dilation=WINDOW),
        )
    else:
        labels = decode_with_scikit_image(mask, boundary, method)
    found = {"seconds": time.perf_counter() - start, "peak_mb": peak_memory_mb()}
    np.save(_labels_path(folder, library, method), labels)
    return found


def decode_with_scikit_image(
    mask: NDArray[np.uint8], boundary: NDArray[np.uint8], method: DecodingMethod
) -> NDArray[np.integer]:
    """What :func:`~volseg.instances.decoding.decode_instances` does, in the functions of scikit-image."""
    seeds = seed_map(mask, boundary)
    if method == "watershed":
        markers = label(seeds, connectivity=3)
        foreground = mask > int(255 * FOREGROUND_THRESHOLD)
        labels = watershed(np.negative(mask, dtype=np.int16), markers, mask=foreground)
    else:
        labels = label(seeds, connectivity=1)
        labels = np.where(labels == 0, dilation(labels, np.ones(WINDOW)), labels)
    return remove_small_objects(labels, max_size=MIN_SIZE - 1)


def make_tile(seed: int, shape: Sequence[int]) -> NDArray[np.uint8]:
    """Probabilities (2, D, H, W) of mask and boundary of a phantom, as bytes, as smooth as a network's."""
    depth, height, width = shape
    targets = import_module("resunet_mitoem.targets")
    truth = targets.widen_boundaries(electron_microscopy(seed, (depth, height, width)).label)
    channels = [targets.mask_target(truth), targets.boundary_target(truth)]
    return np.stack([ndimage.gaussian_filter(255.0 * channel, (0.5, 1, 1)).astype(np.uint8) for channel in channels])


def matched_share(labels: NDArray[np.integer], reference: NDArray[np.integer]) -> float:
    """Which part of the voxels agree once labels are matched one to one so that the most do; 0 goes with 0."""
    (_, labels), (_, reference) = (np.unique(volume, return_inverse=True) for volume in (labels, reference))
    ones = np.ones(labels.size, np.int64)
    common = coo_array((ones, (labels.ravel(), reference.ravel()))).toarray()
    background = int(common[0, 0])
    overlap = common[1:, 1:]
    return float(background + overlap[linear_sum_assignment(overlap, maximize=True)].sum()) / labels.size


def _labels_path(folder: str, library: str, method: str) -> str:
    return f"{folder}/{library}_{method}.npy"


def bench_decoding(
    repetitions: int,
    seed: int,
    shape: Sequence[int] = SHAPE,
    deep_sections: int = DEEP_SECTIONS,
    crop_pixels: int = CROP_PIXELS,
    tile_shape: Sequence[int] = TILE,
    block_shape: Sequence[int] = DEFAULT_BLOCK_SHAPE,
    halo: Sequence[int] = DEFAULT_HALO,
) -> dict[str, Any]:
    """Rate and memory of seeded watershed: by blocks, with one and two workers, by size; and by scikit-image.

    Each way runs in a process of its own with nothing before it. ``ratio`` compares voxels a second.

    Args:
        repetitions: runs of each way.
        seed: number of the phantom whose mirrored copies fill the volume.
        shape: of the volume (D, H, W).
        deep_sections: of a deeper volume, which shows that memory does not grow.
        crop_pixels: edge of the sections that scikit-image gets, of all ``D``.
        tile_shape: of the phantom.
        block_shape: voxels of a block (z, y, x).
        halo: see :class:`volseg.instances.decoding.Decoding`.
    """
    depth, height, width = shape
    crop = (depth, min(height, crop_pixels), min(width, crop_pixels))
    half = (depth, height // 2, width // 2)
    whole, deep = (depth, height, width), (deep_sections, height, width)
    with tempfile.TemporaryDirectory() as folder:
        tile = make_tile(seed, tile_shape)
        for size in dict.fromkeys((crop, half, whole, deep)):
            say(f"probabilities of {times(size)}")
            write_probabilities(_probabilities(folder, size), tile, size)
        rows = [_row("scikit-image, whole crop", crop, repetitions, "decode_whole", _probabilities(folder, crop))]
        for size, workers in ((crop, 2), (half, 2), (whole, 1), (whole, 2), (deep, 2)):
            name = f"blocks, {workers} worker{'s' * (workers > 1)}, {times(size)}"
            given = (_probabilities(folder, size), OUTPUT, workers, tuple(block_shape), tuple(halo))
            rows.append(_row(name, size, repetitions, "decode_by_blocks", *given))
    for row in rows:
        row["ratio"] = round(row["megavoxels_per_s"] / rows[0]["megavoxels_per_s"], 2)
    return {
        "title": f"Seeded watershed of {times(shape)} voxels by blocks",
        "input": f"probabilities of phantom {seed}, {times(tile_shape)}, in mirrored copies; bytes in Zarr",
        "weights": "none",
        "note": f"Blocks of {times(block_shape)} with a halo of {times(halo)}; from probabilities on disk to labels "
        "with a pyramid and tables. scikit-image: from probabilities to labels, both in memory. Peak: of all processes "
        "together. Ratio: of voxels a second, as sizes differ",
        **circumstances(),
        "rows": rows,
    }


def bench_prediction(
    repetitions: int,
    seed: int,
    shape: Sequence[int] = (100, 512, 512),
    window: Sequence[int] = (100, 256, 256),
    network: tuple[str, str, dict[str, Any]] = RES_UNET_R,
) -> dict[str, Any]:
    """Rate and memory of Res-UNet-R's prediction of a volume as one block, in one worker that has all cores.

    Args:
        repetitions: runs.
        seed: number of the phantom.
        shape: of the volume (D, H, W).
        window: that the network sees at once.
        network: its dotted name, weights and arguments.
    """
    depth, height, width = shape
    windows = BlendedSlidingWindow(window)
    seen = prod(len(axis.starts) * axis.length for axis in windows.axes(shape))
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/image.ome.zarr"
        with create_ome_zarr(path, shape, np.uint8, (30, 8, 8)) as voxels:
            voxels[:] = electron_microscopy(seed, (depth, height, width)).image
        row = _row("blocks, 1 worker", shape, repetitions, "predict_as_one_block", path, OUTPUT, tuple(window), network)
    row |= {"ratio": 1.0, "window_megavoxels_per_s": round(seen / row["median_s"] / 1e6, 3)}
    return {
        "title": f"Res-UNet-R by blocks, {times(shape)}",
        "input": f"phantom {seed}, windows of {times(window)}",
        "weights": Path(network[1]).name,
        "note": "From a volume on disk to bytes of probabilities on disk; peak: of all processes together",
        **circumstances(),
        "rows": [row],
    }


def write_probabilities(folder: str, tile: NDArray[np.uint8], shape: Sequence[int]) -> None:
    """Fill ``mask.zarr`` and ``boundary.zarr`` with mirrored copies of a tile, some chunks at a time."""
    for name, channel in zip(("mask", "boundary"), tile, strict=True):
        array = open_or_create_array(f"{folder}/{name}.zarr", shape, np.uint8, CHUNK)
        for block in BlockGrid(shape, (CHUNK[0], *channel.shape[1:])):
            mirrored = channel
            for axis, along in enumerate(block.core):
                index = np.arange(along.start, along.stop) % (2 * channel.shape[axis])
                mirrored = mirrored.take(np.minimum(index, 2 * channel.shape[axis] - 1 - index), axis)
            array[block.core] = mirrored


def predict_as_one_block(
    report: str, volume: str, output: str, window: Sequence[int], network: tuple[str, str, dict[str, Any]]
) -> None:
    """Predict a volume in a worker with all cores, and write the seconds that it took once the worker was there."""
    target, weights, arguments = network
    on_worker = WorkerNetwork.of(instantiate(target, "default", **arguments), weights, threads=CPU_COUNT)
    with connect(workers=1) as client:
        start = time.perf_counter()
        predict_blockwise(
            VolumePrediction(
                VolumeOpener(volume), on_worker, BlendedSlidingWindow(window), VolumeOpener(volume).source().shape
            ),
            output,
            client,
            progress=False,
        )
        seconds = time.perf_counter() - start
    Path(report).write_text(json.dumps({"seconds": seconds}))


def decode_by_blocks(
    report: str, probabilities: str, output: str, workers: int, block_shape: Sequence[int], halo: Sequence[int]
) -> None:
    """Decode by blocks, and write the seconds that it took, without those in which workers started."""
    with connect(workers=workers) as client:
        start = time.perf_counter()
        written = decode_blockwise(
            f"{probabilities}/mask.zarr",
            f"{probabilities}/boundary.zarr",
            output,
            Decoding("watershed", foreground_threshold=FOREGROUND_THRESHOLD, min_size=MIN_SIZE, halo=halo),
            block_shape,
            voxel_size_nm=(30, 8, 8),
            client=client,
            progress=False,
        )
        seconds = time.perf_counter() - start
    stored = {
        "probability_bytes": _stored_bytes(probabilities),
        "work_bytes": _stored_bytes(f"{output}/decoding"),
        "result_bytes": _stored_bytes(output) - _stored_bytes(f"{output}/decoding"),
    }
    Path(report).write_text(json.dumps({"seconds": seconds, **stored, **written.statistics}))


def decode_whole(report: str, probabilities: str) -> None:
    """Decode with scikit-image, all at once, and write the seconds that it took, without those of reading."""
    mask, boundary = (open_array(f"{probabilities}/{name}.zarr")[:] for name in ("mask", "boundary"))
    start = time.perf_counter()
    labels = decode_with_scikit_image(mask, boundary, "watershed")
    seconds = time.perf_counter() - start
    instances = int(np.count_nonzero(np.bincount(labels.ravel())[1:]))
    Path(report).write_text(json.dumps({"seconds": seconds, "instances": instances}))


def _row(mode: str, size: Sequence[int], repetitions: int, function: str, *arguments: object) -> dict[str, Any]:
    """Seconds, memory and rate of a function of this module, each time in a new process and an empty folder."""
    runs, peaks, found = [], [], {}
    for _ in range(repetitions):
        with tempfile.TemporaryDirectory() as folder:
            report = f"{folder}/report.json"
            given = [f"{folder}/out" if a == OUTPUT else a for a in arguments]
            code = f"from tools.bench.decoding import {function}; {function}(*{[report, *given]!r})"
            environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
            peaks.append(peak_memory_of_command_mb([sys.executable, "-c", code], environment))
            found = json.loads(Path(report).read_text())
            runs.append(found.pop("seconds"))
    middle = median(runs)
    rate = prod(size) / middle / 1e6
    say(f"{mode}: {duration(middle)}, {rate:.2f} million voxels/s, {max(peaks) / 1000:.2f} GB, {found}")
    return {
        "mode": mode,
        **spread(runs, middle),
        "peak_mb": round(max(peaks)),
        "megavoxels_per_s": round(rate, 3),
        "voxels": prod(size),
        **found,
    }


def _stored_bytes(folder: str) -> int:
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def _probabilities(folder: str, size: Sequence[int]) -> str:
    return f"{folder}/{times(size)}"
