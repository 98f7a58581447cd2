# SPDX-License-Identifier: Apache-2.0
"""Tables of the texts that quote results files; ``python -m tools.bench.tables`` writes them anew.

``docs/terabyte.md``: what volumes of 1 GB to 1 TB would cost, from the measured rates. ``docs/training_speed.md``:
where the time of a training iteration goes, side by side for all bundles. ``docs/faults.md``: what was done to runs and
files, and what became of it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from tools import REPOSITORY
from tools.bench.measure import duration, times
from tools.bench.training_profile import AMP, ITERATION, LOADER, NETWORKS, PARTS, REST
from volseg.blockwise.prediction import window_work
from volseg.inferers.sliding_window import BlendedSlidingWindow
from volseg.storage.files import atomic_path

BENCHMARKS = REPOSITORY / "docs" / "benchmarks"
RESULTS = REPOSITORY / "docs" / "results"
ESTIMATES = REPOSITORY / "docs" / "terabyte.md"
TRAINING = REPOSITORY / "docs" / "training_speed.md"
ROBUSTNESS = REPOSITORY / "docs" / "faults.md"
# of the table's name in the text: ending of the results files
TABLES = {"paper": "", "phantom": "_phantom"}
VOLUMES = {"1 GB": (60, 4096, 4096), "100 GB": (1500, 8192, 8192), "1 TB": (3750, 16384, 16384)}
PREDICTION_BLOCK = (256, 512, 512)
SECONDS_PER_HOUR = 3600
GIGABYTE = 1e9


def estimate_table(
    decoding: Mapping[str, Any], prediction: Mapping[str, Any], volumes: Mapping[str, Sequence[int]] = VOLUMES
) -> str:
    """Hours, memory and storage as a Markdown table.

    Args:
        decoding: what :func:`tools.bench.decoding.bench_decoding` returned.
        prediction: what :func:`tools.bench.decoding.bench_prediction` returned.
        volumes: shapes (D, H, W) of 8-bit volumes by their names.
    """
    predicted, decoded = prediction["rows"][0], max(decoding["rows"], key=lambda row: row["voxels"])
    windows = BlendedSlidingWindow()
    lines = [["volume", "voxels", "prediction, hours", "decoding, hours", "memory", "storage while it runs", "results"]]
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
        gigabytes = [f"{memory_gb:.1f} GB", *(f"{_rounded(n / GIGABYTE)} GB" for n in (sum(parts), parts[-1]))]
        lines.append([name, times(shape), *(_rounded(value) for value in hours), *gigabytes])
    return _markdown(lines)


def profile_tables(folder: Path) -> dict[str, str]:
    """Markdown tables by their names: at the paper's size, and of the training on phantoms; a column for each result.

    Args:
        folder: of the results files of :data:`tools.bench.training_profile.PROFILES`.
    """
    tables = {}
    for table, suffix in TABLES.items():
        columns = {}
        for bundle in NETWORKS:
            path = folder / f"{bundle}_training_profile{suffix}.json"
            if path.is_file():
                columns[NETWORKS[bundle]] = {row["mode"]: row for row in _read(path)["rows"]}
        lines = [["", *columns]]
        for part in (ITERATION, *PARTS, REST, LOADER, AMP):
            if any(part in rows for rows in columns.values()):
                lines.append([part, *(_cell(rows[part]) if part in rows else "" for rows in columns.values())])
        for title, row in (("memory", ITERATION), ("memory, train_amp.json", AMP)):
            lines.append([title, *(f"{rows[row]['peak_mb'] / 1000:.1f} GB" for rows in columns.values())])
        tables[table] = _markdown(lines)
    return tables


def fault_table(results: Mapping[str, Any]) -> str:
    """How runs that were broken ended, and whether the same command repaired them, by kind of fault.

    Args:
        results: what :func:`tools.faults.faults` wrote.
    """
    outcomes = ("completed", "refused", "killed", "stopped while modules load", "traceback")
    lines = [["fault", "runs", *outcomes, "same as unbroken after the same command"]]
    rows = {**results["summary"], "all": dict(sum(map(Counter, results["summary"].values()), Counter()))}
    for kind, counts in rows.items():
        numbers = (counts.get(key, 0) for key in ("injected", *outcomes, "same afterwards"))
        lines.append([kind, *map(str, numbers)])
    return _markdown(lines)


def fuzz_table(results: Mapping[str, Any]) -> str:
    """What readers did with damaged files, by format.

    Args:
        results: what :func:`tools.fuzz.command.fuzz` wrote.
    """
    lines = [["format", "damaged files", "read", "refused in one line", "faults"]]
    for name, counts in sorted(results["formats"].items()):
        numbers = [counts[key] for key in ("read", "refused", "fault")]
        lines.append([name, *(f"{number:,}" for number in (sum(numbers), *numbers))])
    return _markdown(lines)


def replace_tables(text: str, tables: Mapping[str, str]) -> str:
    """A text with each table between its two marks replaced."""
    for name, table in tables.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        text = f"{before}{begin}\n\n{table}\n\n{end}{after}"
    return text


def main() -> None:
    """Write the tables from the results files of this checkout."""
    decoding, prediction = (_read(BENCHMARKS / f"blockwise_{name}.json") for name in ("decoding", "prediction"))
    estimates = {"estimate": estimate_table(decoding, prediction)}
    robustness = {
        "faults": fault_table(_read(RESULTS / "faults.json")),
        "fuzz": fuzz_table(_read(RESULTS / "fuzz.json")),
    }
    for path, tables in (
        (ESTIMATES, estimates),
        (TRAINING, profile_tables(BENCHMARKS)),
        (ROBUSTNESS, robustness),
    ):
        text = replace_tables(path.read_text(encoding="utf-8"), tables)
        with atomic_path(path) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table whose first line is the heading."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], ["---"] * len(lines[0]), *lines[1:]))


def _cell(row: Mapping[str, Any]) -> str:
    share = "" if row["mode"] in (ITERATION, AMP) else f", {100 * row['share']:.1f} %"
    return f"{duration(row['median_s'])}{share}"


def _rounded(value: float) -> str:
    """Two digits: an estimate has no more."""
    return f"{float(f'{value:.2g}'):,.12g}"


if __name__ == "__main__":
    main()
