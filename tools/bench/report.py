# SPDX-License-Identifier: Apache-2.0
"""Results files, and the table and plots that are made from them; on top what a user gains, row by row."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt

from tools.bench.measure import duration, say
from volseg.storage.files import atomic_path


class Gain(NamedTuple):
    """A line of the table: a results file and the modes in it that are compared."""

    task: str
    file: str
    usual: str
    ours: str | None = None  # None: the fastest of ENGINES


# what `--runtime` offers and `auto` may choose
ENGINES = ("channels_last", "bf16", "openvino", "compile")
AMP = "one iteration, train_amp.json"
ITERATION = "one iteration"
HEAD = ("| task | usual way | this project | times faster | peak memory |", "| --- | --- | --- | --- | --- |")
GAINS = (
    Gain("PDV-Net, network alone, 512x512x64", "pdvnet_lung_network", "eager"),
    Gain("V-Net, network alone, 128x128x64", "vnet_prostate_network", "eager"),
    Gain("Res-UNet-R, network alone, 32x256x256", "resunet_mitoem_r_network", "eager"),
    Gain("Res-UNet-H, network alone, 32x256x256", "resunet_mitoem_h_network", "eager"),
    Gain("CT of 512x512x300, file to file, with process start", "pdvnet_lung_end_to_end", "eager", "auto"),
    Gain("MRI of 384x384x24, file to file, with process start", "vnet_prostate_end_to_end", "eager", "auto"),
    Gain("PDV-Net, training iteration, mixed precision", "pdvnet_lung_training_profile", ITERATION, AMP),
    Gain("V-Net, training iteration, mixed precision", "vnet_prostate_training_profile", ITERATION, AMP),
    Gain("Res-UNet-R, training iteration, mixed precision", "resunet_mitoem_training_profile", ITERATION, AMP),
    Gain("PDV-Net, training step, checkpointing", "pdvnet_lung_training", "plain", "checkpointing"),
    Gain("B-spline deformation, 128x128x64", "bspline_deform", "SimpleITK", "RandBSplineDeformd"),
    Gain("histogram matching, 128x128x64", "histogram_match", "scikit-image", "match_quantiles"),
    Gain("all measures of five lobes, 512x512x250", "lobe_measures", "MONAI, whole volume", "label_measures"),
    Gain("instances by watershed, 100x512x512", "instance_decoding", "scikit-image, watershed",
         "decode_instances, watershed"),
)  # fmt: skip


def summary_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """One line per gain as a Markdown table; empty if nothing of it was measured.

    Args:
        results: contents of the results files by their names without suffix.
    """
    lines = []
    for gain in GAINS:
        rows = {row["mode"]: row for row in results.get(gain.file, {}).get("rows", ())}
        engines = [mode for mode in ENGINES if mode in rows]
        ours = gain.ours or min(engines, key=lambda mode: rows[mode]["median_s"], default="")
        if gain.usual not in rows or ours not in rows:
            continue
        before, after = rows[gain.usual], rows[ours]
        peaks = [f"{row['peak_mb'] / 1000:.1f} GB" for row in (before, after) if "peak_mb" in row]
        lines.append(
            f"| {gain.task} | {gain.usual}: {duration(before['median_s'])} | {ours}: {duration(after['median_s'])} | "
            f"{after['ratio']:.1f} | {' to '.join(peaks)} |"
        )
    return "\n".join([*HEAD, *lines, ""]) if lines else ""


SUMMARY = "What a user gains; each line is measured in a section below. `eager` is plain PyTorch in float32.\n"
INTRODUCTION = """## How to read the tables

`python -m tools bench` makes this page from the JSON files next to it. The modes ran in turn on one machine; \
times are medians.

| column | meaning |
| --- | --- |
| ratio | how many times faster than the first row |
| first | time of the first input in a process, preparation included |
| peak | memory of the whole process |
| added | memory beyond what the process held before the first input |
| GFLOP/s | operations per second of the convolutions as the network defines them, whether or not all were done |
| agreement | voxels with the same label as in the first row |
| dice | Dice of the mask with that of the first row |
| ran | what `auto` chose |
| share | part of the whole: of a case from file to files, or of a training iteration |

With n = 1 the spread is unknown.

## Contents
"""


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    say(f"wrote {path}")


def write_summary(folder: Path) -> None:
    """Make the table and one plot for each result from the JSON files of a folder."""
    results = {path: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    contents = [f"- [{result['title']}](#{_anchor(result['title'])})" for result in results.values()]
    gains = summary_table({path.stem: result for path, result in results.items()})
    parts = ["# Benchmarks\n", *([SUMMARY, gains] if gains else []), INTRODUCTION, "\n".join(contents) + "\n"]
    for path, result in results.items():
        draw(result, path.with_suffix(".png"))
        machine = result["machine"]
        packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
        note = f"{result['note']}. " if "note" in result else ""
        threads = f"{machine['threads']} thread{'s' * (machine['threads'] > 1)}"
        parts += [
            f"## {result['title']}\n",
            f"Input: {result['input']}. Weights: {result['weights']}. {note}{machine['processor']} "
            f"({', '.join(machine['flags'])}), {machine['cores']} cores, {threads}, "
            f"{machine['memory_gib']} GiB; {packages}. `{result['command']}`, {result['date']}.\n",
            table(result["rows"]),
            f"![{result['title']}]({path.stem}.png)\n",
        ]
    with atomic_path(folder / "README.md") as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")
    say(f"wrote {folder / 'README.md'}")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table; columns that no row has are left out, cells that a row lacks stay empty."""
    optional: dict[str, tuple[str, Callable[[Any], str]]] = {
        "first": ("first_s", lambda value: f"{value:.1f} s"),
        "peak": ("peak_mb", lambda value: f"{value / 1000:.2f} GB"),
        "added": ("added_mb", lambda value: f"{value / 1000:.2f} GB"),
        "GPU peak": ("gpu_peak_mb", lambda value: f"{value / 1000:.2f} GB"),
        "GFLOP/s": ("gflop_per_s", lambda value: f"{value:.0f}"),
        "rate": ("megavoxels_per_s", lambda value: f"{value:.2f} million voxels/s"),
        "agreement": ("agreement", lambda value: f"{100 * value:.3f} %"),
        "dice": ("dice", lambda value: f"{value:.4f}"),
        "ran": ("ran", str),
        "share": ("share", lambda value: f"{100 * value:.1f} %"),
    }
    shown = {name: column for name, column in optional.items() if any(column[0] in row for row in rows)}
    are_steps = "share" in shown  # of which each does something else
    lines = [["step" if are_steps else "mode", "median (min to max, n)", *([] if are_steps else ["ratio"]), *shown]]
    lines += [["---"] * len(lines[0])]
    for row in rows:
        cells = [text(row[key]) if key in row else "" for key, text in shown.values()]
        lines += [[row["mode"], _spread(row), *([] if are_steps else [f"{row['ratio']:.1f}"]), *cells]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _anchor(title: str) -> str:
    """What a heading is linked by on GitHub."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _spread(row: dict[str, Any]) -> str:
    scale, decimals, unit = (1, 2, "s") if row["median_s"] >= 1 else (1000, 0, "ms")
    middle, low, high = (f"{scale * row[key]:.{decimals}f}" for key in ("median_s", "min_s", "max_s"))
    return f"{middle} {unit} ({low} to {high}, {row['n']})"


def _compared(row: dict[str, Any]) -> str:
    return f"{100 * row['share']:.1f} %" if "share" in row else f"{row['ratio']:.1f} x"


def draw(result: dict[str, Any], path: Path) -> None:
    """Plot seconds and peak memory of the rows of a result."""
    rows = result["rows"][::-1]
    names = [row["mode"] for row in rows]
    times_s = [row["median_s"] for row in rows]
    spread = [[row["median_s"] - row["min_s"] for row in rows], [row["max_s"] - row["median_s"] for row in rows]]
    panels = 2 if all("peak_mb" in row for row in rows) else 1
    figure, axes = plt.subplots(
        1, panels, figsize=(2 + 4 * panels, 0.8 + 0.5 * len(rows)), sharey=True, squeeze=False, layout="constrained"
    )
    left, *right = axes[0]
    # of a pipeline's steps the one that the others are compared with stands out
    colours = ["#a55a3b" if row["mode"] == result.get("reference") else "#3b6ea5" for row in rows]
    bars = left.barh(names, times_s, xerr=spread, color=colours, error_kw={"lw": 1})
    left.bar_label(bars, [f"{duration(row['median_s'])}, {_compared(row)}" for row in rows], padding=6)
    left.set(xlabel="seconds (median, extremes)", xlim=(0, 1.75 * max(row["max_s"] for row in rows)))
    for memory in right:
        bars = memory.barh(names, [row["peak_mb"] / 1000 for row in rows], color="#a55a3b")
        memory.bar_label(bars, fmt="%.2f GB", padding=4)
        memory.set(xlabel="peak memory of the process, GB", xlim=(0, 1.4 * max(r["peak_mb"] for r in rows) / 1000))
    for panel in axes[0]:
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(result["title"], fontsize=10)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)
