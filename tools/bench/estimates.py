# SPDX-License-Identifier: Apache-2.0
"""What volumes of 1 GB to 1 TB would cost, from the measured rates: the table of ``docs/terabyte.md``.

``python -m tools.bench.estimates`` writes it anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from tools import REPOSITORY
from tools.bench.measure import times
from volseg.blockwise.prediction import window_work
from volseg.inferers.sliding_window import BlendedSlidingWindow
from volseg.storage.files import atomic_path

__all__ = ["estimate_table", "replace_table"]

TEXT = REPOSITORY / "docs" / "terabyte.md"
BENCHMARKS = REPOSITORY / "docs" / "benchmarks"
BEGIN, END = "<!-- estimate: begin -->", "<!-- estimate: end -->"
VOLUMES = {"1 GB": (60, 4096, 4096), "100 GB": (1500, 8192, 8192), "1 TB": (3750, 16384, 16384)}
PREDICTION_BLOCK = (256, 512, 512)
SECONDS_PER_HOUR = 3600
GIGABYTE = 1e9


def estimate_table(
    decoding: Mapping[str, Any], prediction: Mapping[str, Any], volumes: Mapping[str, Sequence[int]] = VOLUMES
) -> str:
    """Hours, memory and storage as a Markdown table.

    Args:
        decoding: what :func:`tools.bench.scale.bench_decoding` returned.
        prediction: what :func:`tools.bench.scale.bench_prediction` returned.
        volumes: shapes (D, H, W) of 8-bit volumes by their names.
    """
    predicted, decoded = prediction["rows"][0], max(decoding["rows"], key=lambda row: row["voxels"])
    windows = BlendedSlidingWindow()
    lines = [
        ["volume", "voxels", "prediction, hours", "decoding, hours", "memory", "storage while it runs", "results"],
        ["---"] * 7,
    ]
    for name, shape in volumes.items():
        seen = prod(len(axis.starts) * axis.length for axis in windows.axes(shape))
        seen_in_blocks = seen * window_work(shape, PREDICTION_BLOCK, windows)
        hours = [
            seen_in_blocks / 1e6 / predicted["window_megavoxels_per_s"] / SECONDS_PER_HOUR,
            prod(shape) / 1e6 / decoded["megavoxels_per_s"] / SECONDS_PER_HOUR,
        ]
        stored = (decoded[key] / decoded["voxels"] for key in ("probability_bytes", "work_bytes", "result_bytes"))
        parts = [bytes_per_voxel * prod(shape) for bytes_per_voxel in stored]
        memory_gb = max(predicted["peak_mb"], decoded["peak_mb"]) / 1000
        lines.append(
            [name, times(shape), *(_rounded(value) for value in hours), f"{memory_gb:.1f} GB",
             f"{_rounded(sum(parts) / GIGABYTE)} GB", f"{_rounded(parts[-1] / GIGABYTE)} GB"]
        )  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def replace_table(text: str, table: str) -> str:
    """A text with the table between its two marks replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def main() -> None:
    """Write the table from the results files of this checkout."""
    results = (BENCHMARKS / f"blockwise_{name}.json" for name in ("decoding", "prediction"))
    decoding, prediction = (json.loads(path.read_text(encoding="utf-8")) for path in results)
    text = replace_table(TEXT.read_text(encoding="utf-8"), estimate_table(decoding, prediction))
    with atomic_path(TEXT) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _rounded(value: float) -> str:
    """Two digits: an estimate has no more."""
    return f"{float(f'{value:.2g}'):,.12g}"


if __name__ == "__main__":
    main()
