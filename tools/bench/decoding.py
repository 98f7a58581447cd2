# SPDX-License-Identifier: Apache-2.0
"""Instances from probabilities in memory: :func:`volseg.instances.decoding.decode_instances` beside scikit-image.

Volumes larger than memory: :mod:`tools.bench.scale`.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from skimage.measure import label
from skimage.morphology import dilation, remove_small_objects
from skimage.segmentation import watershed

from tools.bench.measure import circumstances, duration, in_fresh_process, peak_memory_mb, say, summary, times
from volseg.instances.decoding import Decoding, DecodingMethod, decode_instances, seed_map
from volseg.phantoms.electron_microscopy import electron_microscopy

METHODS: tuple[DecodingMethod, ...] = ("connected_components", "watershed")
TILE = (100, 512, 512)
FOREGROUND_THRESHOLD = 0.85
MIN_SIZE = 128
PEER, OURS = "scikit-image", "decode_instances"
WINDOW = (1, 7, 7)


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
