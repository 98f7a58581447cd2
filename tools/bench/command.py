# SPDX-License-Identifier: Apache-2.0
"""The benchmarks by name, and the command that runs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools import REPOSITORY
from tools.bench import (
    augmentation,
    decoding,
    lobe_measures,
    pdvnet,
    phantoms,
    resunet,
    scale,
    steps,
    training_profile,
    vnet,
)
from tools.bench.report import write_result, write_summary
from volseg.errors import UserError

__all__ = ["BENCHMARKS", "bench"]

# each makes NAME.json; the second entry bounds the repetitions of what takes minutes
BENCHMARKS: dict[str, tuple[Callable[[int, int], dict[str, Any]], int | None]] = {
    "pdvnet_lung_network": (pdvnet.bench_network, None),
    "pdvnet_lung_end_to_end": (pdvnet.bench_end_to_end, 3),
    "pdvnet_lung_steps": (steps.bench_pdvnet_lung, 3),
    "pdvnet_lung_training": (pdvnet.bench_training, 3),
    "chest_ct_phantom": (phantoms.bench_chest_ct, None),
    "vnet_prostate_network": (vnet.bench_network, None),
    "vnet_prostate_end_to_end": (vnet.bench_end_to_end, 3),
    "vnet_prostate_steps": (steps.bench_vnet_prostate, None),
    "vnet_prostate_training": (vnet.bench_training, 1),
    "resunet_mitoem_r_network": (resunet.bench_network_r, None),
    "resunet_mitoem_h_network": (resunet.bench_network_h, None),
    "resunet_mitoem_steps": (steps.bench_resunet_mitoem, 1),
    "resunet_mitoem_training": (resunet.bench_training, 3),
    "prostate_mri_phantom": (phantoms.bench_prostate_mri, None),
    "lobe_measures": (lobe_measures.bench_lobe_measures, None),
    "instance_decoding": (decoding.bench_instance_decoding, 3),
    **{name: (profile, 4) for name, profile in training_profile.PROFILES.items()},
    "bspline_deform": (augmentation.bench_bspline_deform, None),
    "histogram_match": (augmentation.bench_histogram_match, None),
}
# `make bench-scale`: an hour, some tens of GB
SCALE_BENCHMARKS: dict[str, tuple[Callable[[int, int], dict[str, Any]], int | None]] = {
    "blockwise_decoding": (scale.bench_decoding, 1),
    "blockwise_prediction": (scale.bench_prediction, 1),
}


def bench(*names: str, output_dir: str | None = None, repetitions: int = 5, seed: int = 3_000_000) -> None:
    """Measure networks, pipelines and transforms; write results, table and plots.

    Args:
        names: benchmarks to run, called like the results files in ``docs/benchmarks``; if none is given, all but those
            of ``make bench-scale``.
        output_dir: folder to write to; ``docs/benchmarks`` of the checkout if not given.
        repetitions: timed runs of each way, after one that is not timed. Pipelines and trainings run at most 3
            times, that of V-Net once.
        seed: number of the phantom, one that no training sees; seed of noise, and of weights where there are no trained
            ones.

    Raises:
        UserError: no such benchmark, or no repetition.
    """
    known = BENCHMARKS | SCALE_BENCHMARKS
    chosen = [str(name) for name in names] or list(BENCHMARKS)
    for name in chosen:
        if name not in known:
            raise UserError(f"No such benchmark. Received: {name}. Choose from: {', '.join(known)}.")
    if repetitions < 1:
        raise UserError(f"Every benchmark is repeated at least once. Received: {repetitions}. Raise --repetitions.")
    folder = Path(output_dir) if output_dir else REPOSITORY / "docs" / "benchmarks"
    for name in chosen:
        run, most = known[name]
        write_result(folder / f"{name}.json", run(min(repetitions, most or repetitions), seed))
    write_summary(folder)
