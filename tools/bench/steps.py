# SPDX-License-Identifier: Apache-2.0
"""Whole cases: from file to file by plain PyTorch and by the fastest engine, and with a clock at each step."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import getmodule, isfunction
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import nibabel as nib
import numpy as np

from tools.bench.measure import (
    TOTAL,
    Stopwatch,
    circumstances,
    duration,
    in_fresh_process,
    interleave,
    peak_memory_of_command_mb,
    say,
    spread,
    summary,
    times,
)
from tools.bench.subjects import BINNING, SUBJECTS, Subject
from tools.bundle_run import bundle_command, run_bundle
from volseg.data.ome_zarr import create_ome_zarr
from volseg.phantoms.electron_microscopy import electron_microscopy

MODES = ("eager", "auto")
NETWORK = "network"
REST = "engine, batches, steps below 1 ms"
EM_SHAPE = (100, 1024, 1024)
# drawn; the volume is mirrored copies of it
EM_TILE_SHAPE = (100, 512, 512)
EM_VOXEL_SIZE_NM = (30, 32, 32)
SHORTEST_S = 0.001
START_RUNS = 3


def bench_end_to_end(repetitions: int, seed: int, subject: str, shape: Sequence[int] | None = None) -> dict[str, Any]:
    """Measure seconds and memory of ``inference.json`` from a scan on disk to segmentations on disk.

    Args:
        repetitions: timed runs of each mode.
        seed: number of the phantom.
        subject: one of :data:`tools.bench.subjects.SUBJECTS` that has a scan.
        shape: of the scan (X, Y, Z); the subject's if not given.
    """
    network = SUBJECTS[subject]
    shape = tuple(shape or network.scan_shape)
    say(f"draw a phantom of {times(shape)}")
    scan = network.draw_scan(seed, shape)
    peaks: dict[str, list[float]] = {mode: [] for mode in MODES}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        nib.save(nib.Nifti1Image(scan.image, scan.affine), work / "image.nii.gz")
        overrides = {
            "input": work / "image.nii.gz",
            "output_dir": work / "output",
            "redo": True,  # a finished case is skipped otherwise
            "weights": network.weights_for_config(seed, work),
            **network.grid,
        }
        environment = {**os.environ, "XDG_CACHE_HOME": str(work / "cache")}

        def run(mode: str) -> Callable[[], None]:
            command = bundle_command(network.bundle, ["inference"], {**overrides, "runtime": mode})
            return lambda: peaks[mode].append(peak_memory_of_command_mb(command, environment))

        seconds = interleave({mode: run(mode) for mode in MODES}, repetitions)
    return {
        "title": f"{network.name} bundle, {network.scan.split()[-1]} of {times(shape)}: from file to file",
        "input": f"phantom {network.scan} {seed}, int16, NIfTI, compressed; segmented at {times(network.size)}",
        "weights": network.describe_weights(seed),
        **circumstances(),
        "rows": [
            {
                "mode": mode,
                **summary(seconds[mode], seconds["eager"]),
                "first_s": round(seconds[mode][0], 2),
                "peak_mb": round(max(peaks[mode])),
            }
            for mode in MODES
        ],
    }


def bench_scan_steps(repetitions: int, seed: int, subject: str) -> dict[str, Any]:
    """Measure each step from a scan on disk to labels, statistics and picture on disk.

    Args:
        repetitions: cases after the first one.
        seed: number of the phantom.
        subject: one of :data:`tools.bench.subjects.SUBJECTS` that has a scan.
    """
    network = SUBJECTS[subject]
    say(f"draw a phantom of {times(network.scan_shape)}")
    scan = network.draw_scan(seed, network.scan_shape)
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder, "input", "case_0.nii.gz")
        first.parent.mkdir()
        nib.save(nib.Nifti1Image(scan.image, scan.affine), first)
        for number in range(1, repetitions + 1):
            first.with_name(f"case_{number}.nii.gz").hardlink_to(first)
        measured = _bench(network, Path(folder), seed, network.grid)
    return {
        "title": f"{network.name} bundle, {network.scan.split()[-1]} of {times(network.scan_shape)}: step by step",
        "input": f"phantom {network.scan} {seed}, int16, NIfTI, compressed; segmented at {times(network.size)}",
        **measured,
    }


def bench_em_steps(
    repetitions: int,
    seed: int,
    shape: Sequence[int] = EM_SHAPE,
    tile_shape: Sequence[int] = EM_TILE_SHAPE,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure each step from a volume of electron microscopy on disk to instances, table and picture on disk.

    Args:
        repetitions: cases, each of which takes minutes; of several the first one stands apart.
        seed: number of the phantom.
        shape: of the volume (D, H, W).
        tile_shape: of the phantom whose mirrored copies fill the volume.
        settings: further overrides of the config.
    """
    depth, height, width = tile_shape
    say(f"draw a phantom of {times(tile_shape)}")
    tile = electron_microscopy(seed, (depth, height, width), binning=BINNING).image
    volume = np.pad(tile, [(0, n - m) for n, m in zip(shape, tile.shape, strict=True)], mode="symmetric")
    with tempfile.TemporaryDirectory() as folder:
        for number in range(repetitions):
            path = Path(folder, "input", f"case_{number}.ome.zarr")
            with create_ome_zarr(path, volume.shape, volume.dtype, EM_VOXEL_SIZE_NM) as voxels:
                voxels[:] = volume
        measured = _bench(SUBJECTS["resunet_mitoem_r"], Path(folder), seed, settings or {})
    return {
        "title": f"Res-UNet-R bundle, EM of {times(shape)}: step by step",
        "input": f"phantom electron microscopy {seed}, 8 bits, OME-Zarr, {times(EM_VOXEL_SIZE_NM)} nm, "
        f"mirrored copies of {times(tile_shape)}",
        **measured,
    }


def time_case_steps(bundle: str, cache: str, overrides: Mapping[str, Any]) -> list[dict[str, float]]:
    """Run a bundle's ``configs/inference.json`` over its input with a clock at each step.

    The transforms of preprocessing and postprocessing, the inferer, the network, the handlers, and what the handlers
    call in other modules are steps; each is called like its class or function, the network :data:`NETWORK`.

    Args:
        bundle: its folder.
        cache: folder for converted networks.
        overrides: items of the config by name, input and output among them.

    Returns:
        one dictionary a case, see :attr:`tools.bench.measure.Stopwatch.laps`.
    """
    from ignite.engine import Events  # noqa: PLC0415 (with MONAI's engines, seconds of the start-up time)
    from monai.bundle import ConfigWorkflow  # noqa: PLC0415

    os.environ["XDG_CACHE_HOME"] = cache
    config = Path(bundle, "configs")
    workflow = ConfigWorkflow(
        config_file=str(config / "inference.json"),
        meta_file=str(config / "metadata.json"),
        logging_file=False,
        workflow_type="infer",
        bundle_root=bundle,
        **overrides,
    )
    workflow.initialize()
    evaluator = workflow.parser.get_parsed_content("evaluator")
    watch = Stopwatch()
    with watched_steps(workflow.parser.get_parsed_content, watch):
        evaluator.add_event_handler(Events.GET_BATCH_STARTED, watch.lap)
        evaluator.run()
        watch.stop()
    return watch.laps


@contextmanager
def watched_steps(item: Any, watch: Stopwatch) -> Iterator[None]:
    """Count the steps of a pipeline while the block runs.

    Args:
        item: gives the config's items by name, built.
        watch: counts.
    """
    named: dict[str, int] = {}

    def unique(name: str) -> str:
        named[name] = named.get(name, 0) + 1
        return name if named[name] == 1 else f"{name} {named[name]}"

    for section in ("preprocessing", "postprocessing"):
        transform = item(section)
        for part in getattr(transform, "transforms", (transform,)):
            if part is not None:  # switched off
                watch.watch(part, unique(type(part).__name__))
    watch.watch(item("inferer"), unique(type(item("inferer")).__name__))
    watch.watch(item("network"), NETWORK)
    with ExitStack() as stack:
        for handler in item("handlers"):
            module = getmodule(type(handler))
            if module is None or not module.__name__.startswith("volseg."):
                continue
            watch.watch(handler, unique(type(handler).__name__))
            for key, value in list(vars(handler).items()):
                function = value.func if isinstance(value, partial) else value
                if isfunction(function):
                    setattr(handler, key, watch.watched(value, unique(function.__name__)))
            for key, value in list(vars(module).items()):
                if isfunction(value) and value.__module__.startswith("volseg.") and value.__module__ != module.__name__:
                    stack.enter_context(patch.object(module, key, watch.watched(value, unique(key))))
        yield


def summarise(laps: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Rows of a result from the cases of :func:`time_case_steps`, and ``total_s``, the median of a case.

    The first case in a process converts the network and warms caches: it stands apart as ``first_s``, but where it is
    the only one. Steps below a millisecond are counted with what lies between the steps.
    """
    later = laps[1:] or laps
    names = [name for name in laps[0] if name != TOTAL and median(lap.get(name, 0.0) for lap in later) >= SHORTEST_S]
    seconds = {name: [lap.get(name, 0.0) for lap in laps] for name in names}
    seconds[REST] = [lap[TOTAL] - sum(lap.get(name, 0.0) for name in names) for lap in laps]
    total_s = median(lap[TOTAL] for lap in later)
    reference_s = median(seconds[NETWORK][-len(later) :])
    rows = []
    for name, runs in seconds.items():
        counted = runs[-len(later) :]
        row = {"mode": name, **spread(counted, reference_s), "share": round(median(counted) / total_s, 4)}
        rows.append({**row, "first_s": round(runs[0], 2)} if len(laps) > 1 else row)
        say(f"{name}: {duration(median(counted))}, {row['share']:.1%}")
    return {"reference": NETWORK, "total_s": round(total_s, 2), "rows": rows}


def _bench(network: Subject, work: Path, seed: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Time the cases of ``work/input``, and the start of the command."""
    weights = str(network.weights_for_config(seed, work))
    overrides = {"input": str(work / "input"), "output_dir": str(work / "output"), "weights": weights, **settings}
    bundle = network.bundle
    say(f"{bundle.name}: cases in their own process")
    result = summarise(in_fresh_process(time_case_steps, str(bundle), str(work / "cache"), overrides))
    start_s = median(_start_seconds(bundle, overrides) for _ in range(START_RUNS))
    say(f"start: {duration(start_s)}")
    share = next(row["share"] for row in result["rows"] if row["mode"] == NETWORK)
    counted = "cases after the first in one process" if "first_s" in result["rows"][0] else "the first case"
    note = (
        f"Steps in the order of the pipeline, {counted}. A case takes {result['total_s']:.1f} s, {100 * share:.0f} % "
        f"of it the network, and a process {start_s:.1f} s before its first case, to start Python, import and build "
        "the pipeline"
    )
    return {
        "weights": network.describe_weights(seed),
        "note": note,
        "start_s": round(start_s, 2),
        **circumstances(),
        **result,
    }


def _start_seconds(bundle: Path, overrides: Mapping[str, Any]) -> float:
    """Wall clock of ``monai.bundle run`` up to where the first case would begin."""
    start = time.perf_counter()
    run_bundle(bundle, ["inference"], {**overrides, "run": "['$@evaluator']"}, quiet=True)
    return time.perf_counter() - start
