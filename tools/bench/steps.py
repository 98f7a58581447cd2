# SPDX-License-Identifier: Apache-2.0
"""Where the time of a whole case goes: the bundles' ``inference.json`` as it is, with a clock at each step."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import getmodule, isfunction
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import nibabel as nib
import numpy as np
import torch
from torch import nn

from tools import REPOSITORY
from tools.bench import pdvnet, resunet, vnet
from tools.bench.measure import circumstances, duration, say, times
from tools.bench.networks import make_importable, trained_weights, weights_source
from tools.bench.processes import in_fresh_process
from tools.bench.stopwatch import TOTAL, Stopwatch
from volseg.data.ome_zarr import create_ome_zarr
from volseg.phantoms.chest_ct import chest_ct
from volseg.phantoms.electron_microscopy import electron_microscopy
from volseg.phantoms.prostate_mri import prostate_mri

__all__ = ["NETWORK", "REST", "bench_pdvnet_lung", "bench_resunet_mitoem", "bench_vnet_prostate", "time_case_steps"]

NETWORK = "network"
REST = "engine, batches, steps below 1 ms"
EM_SHAPE = (100, 1024, 1024)
# drawn; the volume is mirrored copies of it
EM_TILE_SHAPE = (100, 512, 512)
EM_VOXEL_SIZE_NM = (30, 32, 32)
SHORTEST_S = 0.001
START_RUNS = 3


def bench_pdvnet_lung(repetitions: int, seed: int, shape: Sequence[int] = pdvnet.CT_SHAPE) -> dict[str, Any]:
    """Seconds of each step from a CT on disk to lobes, statistics and picture on disk."""
    say(f"draw a phantom of {times(shape)}")
    ct = chest_ct(seed, shape=(shape[0], shape[1], shape[2]))
    return {
        "title": f"PDV-Net bundle, CT of {times(shape)}: step by step",
        "input": f"phantom chest CT {seed}, int16, NIfTI, compressed; segmented at {times(pdvnet.SIZE)}",
        "weights": weights_source(pdvnet.BUNDLE, seed),
        **_bench_nifti(pdvnet.BUNDLE, ct, pdvnet.pdvnet(seed), {"spatial_size": list(pdvnet.SIZE)}, repetitions),
    }


def bench_vnet_prostate(repetitions: int, seed: int, shape: Sequence[int] = vnet.MRI_SHAPE) -> dict[str, Any]:
    """Seconds of each step from an MRI on disk to mask, statistics and picture on disk."""
    say(f"draw a phantom of {times(shape)}")
    mri = prostate_mri(seed, (shape[0], shape[1], shape[2]))
    grid = {"spacing_mm": list(vnet.SPACING_MM), "spatial_size": list(vnet.SIZE)}
    return {
        "title": f"V-Net bundle, MRI of {times(shape)}: step by step",
        "input": f"phantom prostate MRI {seed}, int16, NIfTI, compressed; segmented at {times(vnet.SIZE)}",
        "weights": vnet.describe_weights(seed),
        **_bench_nifti(vnet.BUNDLE, mri, vnet.vnet(seed), grid, repetitions),
    }


def bench_resunet_mitoem(
    repetitions: int,
    seed: int,
    shape: Sequence[int] = EM_SHAPE,
    tile_shape: Sequence[int] = EM_TILE_SHAPE,
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Seconds of each step from a volume of electron microscopy on disk to instances, table and picture on disk.

    Args:
        repetitions: cases, each of which takes minutes; of several the first one stands apart.
        seed: number of the phantom.
        shape: of the volume (D, H, W).
        tile_shape: of the phantom whose mirrored copies fill the volume.
        settings: further overrides of the config.
    """
    depth, height, width = tile_shape
    say(f"draw a phantom of {times(tile_shape)}")
    tile = electron_microscopy(seed, (depth, height, width), binning=resunet.BINNING).image
    volume = np.pad(tile, [(0, n - m) for n, m in zip(shape, tile.shape, strict=True)], mode="symmetric")
    with tempfile.TemporaryDirectory() as folder:
        for number in range(repetitions):
            path = Path(folder, "input", f"case_{number}.ome.zarr")
            with create_ome_zarr(path, volume.shape, volume.dtype, EM_VOXEL_SIZE_NM) as voxels:
                voxels[:] = volume
        measured = _bench(resunet.BUNDLE, Path(folder), resunet.resunet("R", seed), settings or {})
    return {
        "title": f"Res-UNet-R bundle, EM of {times(shape)}: step by step",
        "input": f"phantom electron microscopy {seed}, 8 bits, OME-Zarr, {times(EM_VOXEL_SIZE_NM)} nm, "
        f"mirrored copies of {times(tile_shape)}",
        "weights": weights_source(resunet.BUNDLE, seed),
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
        one dictionary a case, see :attr:`tools.bench.stopwatch.Stopwatch.laps`.
    """
    from ignite.engine import Events  # noqa: PLC0415 (with MONAI's engines, seconds of the start-up time)
    from monai.bundle import ConfigWorkflow  # noqa: PLC0415

    os.environ["XDG_CACHE_HOME"] = cache
    make_importable(Path(bundle))
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
        row: dict[str, Any] = {
            "mode": name,
            "median_s": round(median(counted), 4),
            "min_s": round(min(counted), 4),
            "max_s": round(max(counted), 4),
            "n": len(counted),
            "ratio": round(reference_s / median(counted), 2),
            "share": round(median(counted) / total_s, 4),
        }
        rows.append({**row, "first_s": round(runs[0], 2)} if len(laps) > 1 else row)
        say(f"{name}: {duration(row['median_s'])}, {row['share']:.1%}")
    return {"reference": NETWORK, "total_s": round(total_s, 2), "rows": rows}


def _bench_nifti(
    bundle: Path, case: Any, network: nn.Module, settings: Mapping[str, Any], repetitions: int
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder, "input", "case_0.nii.gz")
        first.parent.mkdir()
        nib.save(nib.Nifti1Image(case.image, case.affine), first)
        for number in range(1, repetitions + 1):
            first.with_name(f"case_{number}.nii.gz").hardlink_to(first)
        return _bench(bundle, Path(folder), network, settings)


def _bench(bundle: Path, work: Path, network: nn.Module, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Time the cases of ``work/input``, and the start of the command."""
    weights = trained_weights(bundle)
    if weights is None:
        weights = work / "weights.pt"
        torch.save(network.state_dict(), weights)
    overrides = {"input": str(work / "input"), "output_dir": str(work / "output"), "weights": str(weights), **settings}
    say(f"{bundle.name}: cases in a process of their own")
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
    return {"note": note, "start_s": round(start_s, 2), **circumstances(), **result}


def _start_seconds(bundle: Path, overrides: Mapping[str, Any]) -> float:
    """Wall clock of ``monai.bundle run`` up to where the first case would begin."""
    settings = {"config_file": bundle / "configs" / "inference.json", **overrides, "run": "['$@evaluator']"}
    arguments = [part for key, value in settings.items() for part in (f"--{key}", str(value))]
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "monai.bundle", "run", *arguments], cwd=REPOSITORY, capture_output=True, check=True
    )
    return time.perf_counter() - start
