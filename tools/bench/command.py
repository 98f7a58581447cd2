# SPDX-License-Identifier: Apache-2.0
"""The benchmarks by name, and the command that runs them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tools import REPOSITORY
from tools.bench.decoding import bench_decoding, bench_instance_decoding, bench_prediction
from tools.bench.libraries import bench_bspline_deform, bench_histogram_match, bench_lobe_measures
from tools.bench.networks import bench_checkpointing, bench_network
from tools.bench.report import write_result, write_summary
from tools.bench.steps import bench_em_steps, bench_end_to_end, bench_scan_steps
from tools.bench.subjects import SUBJECTS
from tools.bench.training_profile import PROFILES
from volseg.errors import UserError

# each makes NAME.json; the second entry limits the repetitions of what takes minutes
Benchmarks = dict[str, tuple[Callable[[int, int], dict[str, Any]], int | None]]
BENCHMARKS: Benchmarks = {
    **{f"{name}_network": (partial(bench_network, subject=name), None) for name in SUBJECTS},
    "pdvnet_lung_end_to_end": (partial(bench_end_to_end, subject="pdvnet_lung"), 3),
    "vnet_prostate_end_to_end": (partial(bench_end_to_end, subject="vnet_prostate"), 3),
    "pdvnet_lung_steps": (partial(bench_scan_steps, subject="pdvnet_lung"), 3),
    "vnet_prostate_steps": (partial(bench_scan_steps, subject="vnet_prostate"), None),
    "resunet_mitoem_steps": (bench_em_steps, 1),
    "pdvnet_lung_training": (bench_checkpointing, 3),
    **{name: (profile, 4) for name, profile in PROFILES.items()},
    "lobe_measures": (bench_lobe_measures, None),
    "instance_decoding": (bench_instance_decoding, 3),
    "bspline_deform": (bench_bspline_deform, None),
    "histogram_match": (bench_histogram_match, None),
}
# `make bench-scale`: an hour, some tens of GB
SCALE_BENCHMARKS: Benchmarks = {
    "blockwise_decoding": (bench_decoding, 1),
    "blockwise_prediction": (bench_prediction, 1),
}


def bench(*names: str, output_dir: str | None = None, repetitions: int = 5, seed: int = 3_000_000) -> None:
    """Measure networks, pipelines and transforms; write results, table and plots.

    Args:
        names: benchmarks, named like the results files in ``docs/benchmarks``; by default all except those of
            ``make bench-scale``.
        output_dir: folder for the results; by default ``docs/benchmarks`` of the checkout.
        repetitions: timed runs per row, after one untimed run. Benchmarks that take minutes repeat less often.
        seed: number of the phantom, one that no training sees; also the seed of noise and random weights.

    Raises:
        UserError: unknown benchmark, or no repetition.
    """
    known = BENCHMARKS | SCALE_BENCHMARKS
    chosen = [str(name) for name in names] or list(BENCHMARKS)
    for name in chosen:
        if name not in known:
            raise UserError(f"unknown benchmark {name}; choose from {', '.join(known)}")
    if repetitions < 1:
        raise UserError(f"repetitions must be an integer >= 1, got {repetitions}")
    folder = Path(output_dir) if output_dir else REPOSITORY / "docs" / "benchmarks"
    for name in chosen:
        run, most = known[name]
        write_result(folder / f"{name}.json", run(min(repetitions, most or repetitions), seed))
    write_summary(folder)
