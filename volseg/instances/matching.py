# SPDX-License-Identifier: Apache-2.0
"""One-to-one matching of instances, and what became of every true instance: found, split, merged or missing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from volseg.errors import UserError
from volseg.instances.overlap_table import OverlapTable

__all__ = ["InstanceMatching", "InstanceRelations", "match_instances"]


@dataclass(frozen=True)
class InstanceRelations:
    """What the instances of prediction and truth are to each other, whatever their IoU.

    A predicted and a true instance are related if at least half of the voxels of the smaller one lie in the larger one.
    Chains of related instances form a group, and every instance belongs to one group: its kind is that of the group.

    Attributes:
        one_to_one: ids of the true instances that are related to one prediction, and that one to them alone.
        split: ids of the true instances that are related to several predictions, none of them to another.
        merged: ids of the true instances that share one prediction.
        many_to_many: ids of the true instances in groups of several true and several predicted instances.
        missing: ids of the true instances that are related to no prediction.
        spurious: ids of the predicted instances that are related to no true one.
    """

    one_to_one: np.ndarray
    split: np.ndarray
    merged: np.ndarray
    many_to_many: np.ndarray
    missing: np.ndarray
    spurious: np.ndarray


@dataclass(frozen=True)
class InstanceMatching:
    """One-to-one matching of predicted and true instances at one IoU threshold.

    The five ratios are NaN if neither map has instances, and 0 if one of them has none.

    Attributes:
        iou_threshold: IoU from which on two instances match.
        true_positives: matched pairs.
        false_positives: predictions without a partner.
        false_negatives: true instances without a partner.
        matched_prediction_ids: (true_positives,) int64, ascending.
        matched_truth_ids: their partners.
        matched_ious: their IoUs, float64.
        relations: which instances were split, merged or missed.
    """

    iou_threshold: float
    true_positives: int
    false_positives: int
    false_negatives: int
    matched_prediction_ids: np.ndarray
    matched_truth_ids: np.ndarray
    matched_ious: np.ndarray
    relations: InstanceRelations

    @property
    def accuracy(self) -> float:
        """TP / (TP + FP + FN), by which the MitoEM leaderboard ranks at an IoU of 0.75."""
        return self._ratio(self.true_positives, self.true_positives + self.false_positives + self.false_negatives)

    @property
    def precision(self) -> float:
        """TP / (TP + FP)."""
        return self._ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """TP / (TP + FN)."""
        return self._ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN)."""
        return self._ratio(self.true_positives, self._mean_count)

    @property
    def panoptic_quality(self) -> float:
        """Sum of the matched IoUs / (TP + FP / 2 + FN / 2): the mean IoU of the matched pairs times ``f1``."""
        return self._ratio(float(self.matched_ious.sum()), self._mean_count)

    @property
    def _mean_count(self) -> float:
        """Mean of the numbers of predicted and of true instances."""
        return self.true_positives + (self.false_positives + self.false_negatives) / 2

    def _ratio(self, numerator: float, denominator: float) -> float:
        if self._mean_count == 0:
            return math.nan
        return numerator / denominator if denominator else 0.0


def match_instances(table: OverlapTable, iou_threshold: float) -> InstanceMatching:
    """Match predicted and true instances one to one.

    Above an IoU of 0.5 an instance has one possible partner at most. At exactly 0.5 it can have two, the halves of
    which it consists; they overlap it equally, so the lower id is taken.

    Args:
        table: the overlaps, see :func:`volseg.instances.overlap_table.overlap_table`.
        iou_threshold: IoU from which on two instances match, from 0.5 to 1.

    Returns:
        Counts, ratios and ids.

    Raises:
        UserError: the threshold is outside its range.
    """
    if not 0.5 <= iou_threshold <= 1:
        raise UserError(f"iou_threshold must be from 0.5 to 1, so that partners are unique, got {iou_threshold}")
    ious = table.pair_ious()
    pairs = np.flatnonzero(ious >= iou_threshold)
    # Of two partners at exactly 0.5 neither has another one, so that the first of each is a largest matching. The
    # table is in the order of predictions, which makes that the lowest prediction, and then the lowest truth.
    pairs = pairs[np.unique(table.pair_truths[pairs], return_index=True)[1]]
    pairs = pairs[np.unique(table.pair_predictions[pairs], return_index=True)[1]]
    return InstanceMatching(
        iou_threshold=iou_threshold,
        true_positives=pairs.size,
        false_positives=table.prediction_ids.size - pairs.size,
        false_negatives=table.truth_ids.size - pairs.size,
        matched_prediction_ids=table.prediction_ids[table.pair_predictions[pairs]],
        matched_truth_ids=table.truth_ids[table.pair_truths[pairs]],
        matched_ious=ious[pairs],
        relations=_relations(table),
    )


def _relations(table: OverlapTable) -> InstanceRelations:
    predictions, truths = table.prediction_ids.size, table.truth_ids.size
    smaller = np.minimum(table.prediction_sizes[table.pair_predictions], table.truth_sizes[table.pair_truths])
    related = 2 * table.pair_voxels >= smaller
    # nodes of the graph: the predictions, then the true instances
    nodes = predictions + truths
    edges = (table.pair_predictions[related], predictions + table.pair_truths[related])
    graph = coo_array((np.ones(edges[0].size, dtype=bool), edges), shape=(nodes, nodes))
    groups = connected_components(graph, directed=False)[1]
    predictions_of_group = np.bincount(groups[:predictions], minlength=nodes)
    truths_of_group = np.bincount(groups[predictions:], minlength=nodes)
    # of the group of every true instance, and of every prediction
    partners, siblings = predictions_of_group[groups[predictions:]], truths_of_group[groups[predictions:]]
    return InstanceRelations(
        one_to_one=table.truth_ids[(partners == 1) & (siblings == 1)],
        split=table.truth_ids[(partners > 1) & (siblings == 1)],
        merged=table.truth_ids[(partners == 1) & (siblings > 1)],
        many_to_many=table.truth_ids[(partners > 1) & (siblings > 1)],
        missing=table.truth_ids[partners == 0],
        spurious=table.prediction_ids[truths_of_group[groups[:predictions]] == 0],
    )
