# SPDX-License-Identifier: Apache-2.0
"""The table on top of the benchmark page: what a user gains, row by row from the results files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tools.bench.measure import duration

__all__ = ["summary_table"]


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
