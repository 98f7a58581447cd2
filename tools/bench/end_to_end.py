# SPDX-License-Identifier: Apache-2.0
"""Whole cases from file to file, with the start of Python, by plain PyTorch and by the fastest engine."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib

from tools.bench.measure import circumstances, interleave, say, summary, times
from tools.bench.processes import peak_memory_of_command_mb
from tools.bench.subjects import SUBJECTS
from tools.bundle_command import bundle_command

__all__ = ["bench_end_to_end"]

MODES = ("eager", "auto")


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
