# SPDX-License-Identifier: Apache-2.0
"""Choose the thresholds of instance decoding on cases with known instances.

The thresholds decide a good part of the result: in the sweep published with pytorch_connectomics' baseline, AP-75 on
MitoEM's rat validation volume runs from 0.593 to 0.692. Choose them on validation data, for each training and tissue.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from volseg.instances.average_precision import instance_average_precision
from volseg.instances.decoding import PAPER, Decoding, decode_instances
from volseg.storage.files import atomic_path

__all__ = ["ThresholdScore", "best_thresholds", "save_sweep_figure", "save_sweep_table", "sweep_thresholds"]

Case: TypeAlias = tuple[np.ndarray | torch.Tensor, np.ndarray | torch.Tensor, np.ndarray]


@dataclass(frozen=True)
class ThresholdScore:
    """What one set of thresholds gives, over all cases.

    Attributes:
        mask_threshold: a seed's mask probability is above it.
        boundary_threshold: a seed's boundary probability is below it.
        foreground_threshold: the mask probability of an object's voxels is above it; None for connected components,
            which do not use it.
        ap: mean over IoU from 0.50 to 0.95; averaged over the cases that have true instances, NaN if none has.
        ap50: average precision at IoU 0.5, averaged likewise.
        ap75: average precision at IoU 0.75, averaged likewise.
        instances: number found in all cases together.
    """

    mask_threshold: float
    boundary_threshold: float
    foreground_threshold: float | None
    ap: float
    ap50: float
    ap75: float
    instances: int


def sweep_thresholds(
    cases: Iterable[Case],
    mask_thresholds: Sequence[float],
    boundary_thresholds: Sequence[float],
    foreground_thresholds: Sequence[float] = (0.85,),
    decoding: Decoding = PAPER,
    min_truth_size: int = 0,
) -> list[ThresholdScore]:
    """Decode and score every case with every combination of thresholds.

    Args:
        cases: mask and boundary probabilities as for :func:`~volseg.instances.decoding.decode_instances` and true
            instance ids, all ``(D, H, W)``. Gone through once: a generator holds one case in memory at a time.
        mask_thresholds: to try.
        boundary_thresholds: to try.
        foreground_thresholds: to try with watershed; connected components do not use them.
        decoding: all but the thresholds.
        min_truth_size: true instances with fewer voxels count as background.

    Returns:
        one row per combination, the mask threshold changing slowest and the foreground threshold fastest.

    Raises:
        ValueError: no cases or no thresholds, or what ``decode_instances`` refuses.
    """
    foregrounds = foreground_thresholds if decoding.is_watershed else (decoding.foreground_threshold,)
    combinations = [
        replace(decoding, mask_threshold=mask, boundary_threshold=boundary, foreground_threshold=foreground)
        for mask, boundary, foreground in itertools.product(mask_thresholds, boundary_thresholds, foregrounds)
    ]
    if not combinations:
        raise ValueError("thresholds must hold at least one value of each kind, got none")
    precisions: list[list[tuple[float, float, float]]] = [[] for _ in combinations]
    instances = [0] * len(combinations)
    for mask, boundary, truth in cases:
        for row, combination in enumerate(combinations):
            prediction = decode_instances(mask, boundary, combination)
            score = instance_average_precision(prediction, truth, min_size=min_truth_size)
            precisions[row].append((score.ap, score.ap50, score.ap75))
            instances[row] += len(score.matches.prediction_ids)
    if not precisions[0]:
        raise ValueError("cases must hold at least one, got none")
    return [
        ThresholdScore(
            combination.mask_threshold,
            combination.boundary_threshold,
            combination.foreground_threshold if decoding.is_watershed else None,
            *_mean_precisions(precisions[row]),
            instances[row],
        )
        for row, combination in enumerate(combinations)
    ]


def best_thresholds(scores: Sequence[ThresholdScore]) -> ThresholdScore:
    """The row of the highest AP-75; of equal ones the highest AP, then the first.

    Raises:
        ValueError: no row has an AP-75.
    """
    scored = [score for score in scores if not math.isnan(score.ap75)]
    if not scored:
        raise ValueError("scores must hold a row with AP-75, from a case with true instances, got none")
    return max(scored, key=lambda score: (score.ap75, score.ap))


def save_sweep_table(path: str | Path, scores: Sequence[ThresholdScore]) -> None:
    """Write one line a row as CSV, with a heading; None and NaN become empty."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(ThresholdScore)], lineterminator="\n")
        writer.writeheader()
        for score in scores:
            row = asdict(score)
            writer.writerow({name: "" if value is None or math.isnan(value) else value for name, value in row.items()})


def save_sweep_figure(path: str | Path, scores: Sequence[ThresholdScore]) -> None:
    """Draw AP-75 over boundary and mask threshold as a heat map, one panel a foreground threshold, the best framed.

    Args:
        path: of the picture; its suffix chooses the format.
        scores: of :func:`sweep_thresholds`.

    Raises:
        ValueError: no row has an AP-75.
    """
    best = best_thresholds(scores)
    masks = sorted({score.mask_threshold for score in scores})
    boundaries = sorted({score.boundary_threshold for score in scores})
    foregrounds = list(dict.fromkeys(score.foreground_threshold for score in scores))
    lowest = min(score.ap75 for score in scores if not math.isnan(score.ap75))

    width, height = max(0.62 * len(boundaries), 2.2) + 0.4, max(0.42 * len(masks), 1.8) + 1.3
    figure = Figure(figsize=(width * len(foregrounds) + 1.4, height), layout="constrained")
    panels = figure.subplots(1, len(foregrounds), squeeze=False, sharey=True)[0]
    for axes, foreground in zip(panels, foregrounds, strict=True):
        ap75 = np.full((len(masks), len(boundaries)), np.nan)
        for score in scores:
            if score.foreground_threshold == foreground:
                ap75[masks.index(score.mask_threshold), boundaries.index(score.boundary_threshold)] = score.ap75
        image = axes.imshow(ap75, cmap="viridis", vmin=lowest, vmax=best.ap75, origin="lower", aspect="auto")
        for row, column in np.argwhere(~np.isnan(ap75)):
            dark = image.norm(ap75[row, column]) < 0.6
            axes.text(column, row, f"{ap75[row, column]:.3f}", ha="center", va="center", fontsize=8,
                      color="white" if dark else "black")  # fmt: skip
        if foreground == best.foreground_threshold:
            corner = boundaries.index(best.boundary_threshold) - 0.5, masks.index(best.mask_threshold) - 0.5
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="red", linewidth=2.5, clip_on=False))
        axes.set_xticks(range(len(boundaries)), [f"{threshold:g}" for threshold in boundaries])
        axes.set_yticks(range(len(masks)), [f"{threshold:g}" for threshold in masks])
        axes.set_xlabel("boundary below")
        if foreground is not None:
            axes.set_title(f"foreground above {foreground:g}", fontsize=10)
    panels[0].set_ylabel("mask above")
    figure.colorbar(image, ax=panels, label="AP-75")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _mean_precisions(precisions: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Mean over cases of AP, AP-50 and AP-75, without those that are -1: cases without true instances."""
    defined = [case for case in precisions if case[0] != -1]
    if not defined:
        return math.nan, math.nan, math.nan
    ap, ap50, ap75 = np.mean(defined, axis=0).tolist()
    return ap, ap50, ap75
