# SPDX-License-Identifier: Apache-2.0
"""Average precision of instances, the measure of the MitoEM challenge (AP-75), for volumes of any size.

The rules are those of the challenge's official tool, which are COCO's with three changes:

- The score of a predicted instance is its size in voxels. Predictions are ordered by score, those of one size by id.
- Matching is not one to one. Every prediction looks for the true instance with the best IoU on its own, the lowest id
  among equals, and is right at a threshold if that IoU reaches it. Two predictions can claim one true instance.
- Size ranges are ``(low, high]`` in voxels. For a range, a prediction prefers the best true instance of that range and
  takes its best of all only where it overlaps none of it. Matched to an instance of another range it is ignored.
  Unmatched it is a false positive of the range that its own size lies in, and ignored by the others.

Along the ordered predictions, recall is the number of matched predictions over that of true instances, and precision
their share of the predictions that count. Precision is made non-increasing (at each recall the best of any higher one)
and read at the 101 recalls 0, 0.01 ... 1, as the first value whose recall is reached, 0 where none is. The average
precision is the mean of these 101 values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from volseg.data.volume_formats.base import VoxelArray
from volseg.errors import UserError
from volseg.instances.overlap_table import OverlapTable, overlap_table

IOU_THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
"""Thresholds of AP 50:95."""

ALL_SIZES = "all"
"""Name of the range of every size."""

SIZE_RANGES = {"small": (0.0, 5e3), "medium": (5e3, 3e4), "large": (3e4, math.inf)}
"""Size ranges ``(low, high]`` of the challenge in voxels; the official tool began with 15 000 in place of 30 000."""

NO_TRUTH = -1.0
"""Average precision and recall of a size range without true instances."""

# Multiples of 0.01 and not hundredths, as in the official tool: some are a rounding step above the recall they mean.
_RECALL_POINTS = 0.01 * np.arange(101)


@dataclass(frozen=True)
class SizeRangeScores:
    """Scores over the instances of one size range.

    Attributes:
        low: sizes of the range in voxels are above this ...
        high: ... up to and including this.
        truth_count: true instances of the range.
        iou_thresholds: thresholds of the next two.
        average_precision: one value from 0 to 1 per threshold; 0 if nothing was predicted, -1 for a range without true
            instances.
        recall: share of the true instances per threshold; -1 for a range without any. It can pass 1, as several
            predictions can claim one true instance.
    """

    low: float
    high: float
    truth_count: int
    iou_thresholds: tuple[float, ...]
    average_precision: tuple[float, ...]
    recall: tuple[float, ...]

    @property
    def ap(self) -> float:
        """Mean average precision over all thresholds: AP 50:95 with the default ones."""
        return sum(self.average_precision) / len(self.average_precision)

    @property
    def ap50(self) -> float:
        """Average precision at an IoU of 0.5."""
        return self.ap_at(0.5)

    @property
    def ap75(self) -> float:
        """Average precision at an IoU of 0.75, by which the challenge ranked."""
        return self.ap_at(0.75)

    def ap_at(self, iou_threshold: float) -> float:
        """Average precision at one of the thresholds.

        Raises:
            UserError: it is none of the thresholds.
        """
        return self.average_precision[self._position(iou_threshold)]

    def recall_at(self, iou_threshold: float) -> float:
        """Recall at one of the thresholds.

        Raises:
            UserError: it is none of the thresholds.
        """
        return self.recall[self._position(iou_threshold)]

    def _position(self, iou_threshold: float) -> int:
        if iou_threshold not in self.iou_thresholds:
            raise UserError(
                f"no score at an IoU of {iou_threshold}; add it to iou_thresholds, now {self.iou_thresholds}"
            )
        return self.iou_thresholds.index(iou_threshold)


@dataclass(frozen=True)
class BestMatches:
    """The best true instance of every prediction; all arrays (P,), in the order of :class:`MatchTable`.

    Attributes:
        truth_ids: int64, 0 where the prediction overlaps no true instance of the range.
        truth_sizes: int64, voxels.
        ious: float64, 0 where there is none.
    """

    truth_ids: np.ndarray
    truth_sizes: np.ndarray
    ious: np.ndarray


@dataclass(frozen=True)
class MatchTable:
    """All predictions, ordered by score, and their best true instances.

    Attributes:
        prediction_ids: (P,) int64.
        prediction_sizes: (P,) int64, voxels.
        best: by name of the size range.
    """

    prediction_ids: np.ndarray
    prediction_sizes: np.ndarray
    best: dict[str, BestMatches]


@dataclass(frozen=True)
class MissedTruth:
    """True instances that are no prediction's best match, by id, and the prediction with the best IoU for each.

    Attributes:
        truth_ids: (M,) int64.
        truth_sizes: (M,) int64, voxels.
        prediction_ids: (M,) int64, 0 where no prediction overlaps.
        prediction_sizes: (M,) int64, voxels.
        ious: (M,) float64, 0 where no prediction overlaps.
    """

    truth_ids: np.ndarray
    truth_sizes: np.ndarray
    prediction_ids: np.ndarray
    prediction_sizes: np.ndarray
    ious: np.ndarray


@dataclass(frozen=True)
class AveragePrecision:
    """Average precision of one volume.

    Attributes:
        by_size: scores by name of the size range, :data:`ALL_SIZES` first.
        matches: every prediction's best true instances.
        missed: true instances that are nobody's best.
    """

    by_size: dict[str, SizeRangeScores]
    matches: MatchTable
    missed: MissedTruth

    @property
    def ap(self) -> float:
        """Mean over all thresholds, instances of every size: AP 50:95 with the default ones."""
        return self.by_size[ALL_SIZES].ap

    @property
    def ap50(self) -> float:
        """Average precision at an IoU of 0.5, instances of every size."""
        return self.by_size[ALL_SIZES].ap50

    @property
    def ap75(self) -> float:
        """Average precision at an IoU of 0.75, instances of every size."""
        return self.by_size[ALL_SIZES].ap75


def instance_average_precision(
    prediction: VoxelArray,
    truth: VoxelArray,
    iou_thresholds: Sequence[float] = IOU_THRESHOLDS,
    size_ranges: Mapping[str, tuple[float, float]] = SIZE_RANGES,
    min_size: int = 0,
) -> AveragePrecision:
    """Average precision of a volume's instances by the rules of the MitoEM challenge, see the module.

    Args:
        prediction: instance ids (D, H, W), 0 is the background; integers of any type, in memory or chunked on disk, see
            :func:`volseg.instances.overlap_table.overlap_table`.
        truth: ids of the same shape.
        iou_thresholds: IoUs from which on a prediction is right.
        size_ranges: ``(low, high]`` in voxels by name; the range of every size is added.
        min_size: true instances with fewer voxels count as background; 2000 in the challenge.

    Returns:
        The scores and the tables of matches.

    Raises:
        UserError: the maps do not fit each other or hold no ids, a threshold is not above 0 and up to 1, a size range
            is empty or called :data:`ALL_SIZES`.
    """
    _check_options(iou_thresholds, size_ranges)
    return average_precision_of_table(overlap_table(prediction, truth), iou_thresholds, size_ranges, min_size)


def average_precision_of_table(
    table: OverlapTable,
    iou_thresholds: Sequence[float] = IOU_THRESHOLDS,
    size_ranges: Mapping[str, tuple[float, float]] = SIZE_RANGES,
    min_size: int = 0,
) -> AveragePrecision:
    """:func:`instance_average_precision` of overlaps that were counted before, as for several settings.

    Raises:
        UserError: as there, for all but the maps.
    """
    _check_options(iou_thresholds, size_ranges)
    table = table.without_small_truth(min_size)
    ious = table.pair_ious()
    order = np.lexsort((table.prediction_ids, -table.prediction_sizes))
    best_of_all = _best_pairs(table, ious, np.ones(ious.size, dtype=bool))[order]
    by_size: dict[str, SizeRangeScores] = {}
    best: dict[str, BestMatches] = {}
    for name, (low, high) in {ALL_SIZES: (0.0, math.inf), **size_ranges}.items():
        truth_in_range = _in_range(table.truth_sizes, low, high)
        best_of_range = _best_pairs(table, ious, truth_in_range[table.pair_truths])[order]
        best[name] = _matches(table, ious, best_of_range)
        pairs = np.where(best_of_range < 0, best_of_all, best_of_range)
        average_precision, recall = _scores_of_range(
            _matches(table, ious, pairs).ious,
            best_of_range >= 0,
            _in_range(table.prediction_sizes[order], low, high),
            int(truth_in_range.sum()),
            iou_thresholds,
        )
        by_size[name] = SizeRangeScores(
            low=low,
            high=high,
            truth_count=int(truth_in_range.sum()),
            iou_thresholds=tuple(iou_thresholds),
            average_precision=average_precision,
            recall=recall,
        )
    return AveragePrecision(
        by_size=by_size,
        matches=MatchTable(table.prediction_ids[order], table.prediction_sizes[order], best),
        missed=_missed(table, ious, best_of_all),
    )


def _check_options(iou_thresholds: Sequence[float], size_ranges: Mapping[str, tuple[float, float]]) -> None:
    if not iou_thresholds or not all(0 < threshold <= 1 for threshold in iou_thresholds):
        raise UserError(f"iou_thresholds must be numbers > 0 and <= 1, got {list(iou_thresholds)}")
    for name, (low, high) in size_ranges.items():
        if name == ALL_SIZES or low >= high:
            raise UserError(
                f"size_ranges: a range needs a name other than {ALL_SIZES!r} and low < high, got {name!r} "
                f"({low:g}, {high:g}]"
            )


def _in_range(sizes: np.ndarray, low: float, high: float) -> np.ndarray:
    return (sizes > low) & (sizes <= high)


def _best_pairs(table: OverlapTable, ious: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """The allowed pair with the best IoU of every prediction, the lowest true id among equals; -1 for none."""
    pairs = np.flatnonzero(allowed)
    pairs = pairs[np.lexsort((table.pair_truths[pairs], -ious[pairs], table.pair_predictions[pairs]))]
    predictions, first = np.unique(table.pair_predictions[pairs], return_index=True)
    best = np.full(table.prediction_ids.size, -1)
    best[predictions] = pairs[first]
    return best


def _matches(table: OverlapTable, ious: np.ndarray, pairs: np.ndarray) -> BestMatches:
    found = pairs >= 0
    truth_ids, truth_sizes = np.zeros((2, pairs.size), dtype=np.int64)
    best_ious = np.zeros(pairs.size)
    truths = table.pair_truths[pairs[found]]
    truth_ids[found] = table.truth_ids[truths]
    truth_sizes[found] = table.truth_sizes[truths]
    best_ious[found] = ious[pairs[found]]
    return BestMatches(truth_ids, truth_sizes, best_ious)


def _missed(table: OverlapTable, ious: np.ndarray, best_of_all: np.ndarray) -> MissedTruth:
    missed = np.ones(table.truth_ids.size, dtype=bool)
    missed[table.pair_truths[best_of_all[best_of_all >= 0]]] = False
    # the other way round: the best prediction of every true instance, the lowest id among equals
    pairs = np.lexsort((table.pair_predictions, -ious, table.pair_truths))
    truths, first = np.unique(table.pair_truths[pairs], return_index=True)
    prediction_ids, prediction_sizes = np.zeros((2, table.truth_ids.size), dtype=np.int64)
    best_ious = np.zeros(table.truth_ids.size)
    predictions = table.pair_predictions[pairs[first]]
    prediction_ids[truths] = table.prediction_ids[predictions]
    prediction_sizes[truths] = table.prediction_sizes[predictions]
    best_ious[truths] = ious[pairs[first]]
    return MissedTruth(
        truth_ids=table.truth_ids[missed],
        truth_sizes=table.truth_sizes[missed],
        prediction_ids=prediction_ids[missed],
        prediction_sizes=prediction_sizes[missed],
        ious=best_ious[missed],
    )


def _scores_of_range(
    best_ious: np.ndarray,
    best_is_in_range: np.ndarray,
    prediction_is_in_range: np.ndarray,
    truth_count: int,
    iou_thresholds: Sequence[float],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Average precision and recall per threshold, from the predictions in the order of their score."""
    if truth_count == 0:
        return (NO_TRUTH,) * len(iou_thresholds), (NO_TRUTH,) * len(iou_thresholds)
    average_precisions, recalls = [], []
    for threshold in iou_thresholds:
        matched = best_ious >= threshold
        counted = np.where(matched, best_is_in_range, prediction_is_in_range)
        right = np.cumsum(matched[counted])
        precision = right / np.arange(1, right.size + 1)
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        recall = right / truth_count
        reached = np.searchsorted(recall, _RECALL_POINTS, side="left")
        at_points = np.append(precision, 0.0)[reached]  # the position behind the last one: not reached
        average_precisions.append(float(at_points.mean()))
        recalls.append(float(recall[-1]) if recall.size else 0.0)
    return tuple(average_precisions), tuple(recalls)
