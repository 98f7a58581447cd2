# SPDX-License-Identifier: Apache-2.0
"""Tests of the one-to-one matching of instances."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from volseg.errors import UserError
from volseg.instances.matching import InstanceMatching, match_instances
from volseg.instances.overlap_table import overlap_table

# 8 voxels of 1, 2 of 2, 1 of 3
TRUTH = np.array([[[1, 1, 1, 1, 0, 2, 2, 0]], [[1, 1, 1, 1, 0, 0, 0, 3]]])
# 7 voxels of 7 with an IoU of 7/8 with 1; 3 voxels of 4 with an IoU of 2/3 with 2; 2 voxels of 5 in the background
PREDICTION = np.array([[[7, 7, 7, 7, 4, 4, 4, 0]], [[7, 7, 7, 0, 5, 5, 0, 0]]])


def matched(prediction: np.ndarray, truth: np.ndarray, iou_threshold: float) -> InstanceMatching:
    return match_instances(overlap_table(prediction, truth), iou_threshold)


def ratios(matching: InstanceMatching) -> dict[str, float]:
    names = ("accuracy", "precision", "recall", "f1", "panoptic_quality")
    return {name: getattr(matching, name) for name in names}


def relations(prediction: np.ndarray, truth: np.ndarray) -> dict[str, list[int]]:
    """The ids by kind, kinds without any left out."""
    found = matched(prediction, truth, 0.5).relations
    return {f.name: ids for f in fields(found) if (ids := getattr(found, f.name).tolist())}


def test_literal_case():
    matching = matched(PREDICTION, TRUTH, 0.5)
    assert (matching.true_positives, matching.false_positives, matching.false_negatives) == (2, 1, 1)
    assert matching.matched_prediction_ids.tolist() == [4, 7]
    assert matching.matched_truth_ids.tolist() == [2, 1]
    assert matching.matched_ious.tolist() == [2 / 3, 7 / 8]
    assert ratios(matching) == pytest.approx(
        {
            "accuracy": 2 / 4,
            "precision": 2 / 3,
            "recall": 2 / 3,
            "f1": 2 / 3,
            "panoptic_quality": (2 / 3 + 7 / 8) / 3,
        }
    )


def test_threshold():
    assert matched(PREDICTION, TRUTH, 7 / 8).matched_truth_ids.tolist() == [1]
    assert matched(PREDICTION, TRUTH, 0.876).true_positives == 0


@pytest.mark.parametrize("ids", [(3, 8), (8, 3)])
def test_halves_have_one_partner(ids):
    whole, halves = np.full((2, 1, 3), 6), np.array(ids)[:, None, None].repeat(3, axis=2)
    by_half = matched(halves, whole, 0.5)
    assert (by_half.matched_prediction_ids.tolist(), by_half.matched_truth_ids.tolist()) == ([3], [6])
    assert (by_half.true_positives, by_half.false_positives, by_half.false_negatives) == (1, 1, 0)
    by_whole = matched(whole, halves, 0.5)
    assert (by_whole.matched_prediction_ids.tolist(), by_whole.matched_truth_ids.tolist()) == ([6], [3])
    assert (by_whole.true_positives, by_whole.false_positives, by_whole.false_negatives) == (1, 0, 1)


def test_relations():
    assert relations(PREDICTION, TRUTH) == {"one_to_one": [1, 2], "missing": [3], "spurious": [5]}
    pieces = np.array([[[3, 3, 3, 0, 0, 9]], [[4, 4, 4, 0, 0, 9]]])
    whole = np.array([[[1, 1, 1, 0, 0, 2]], [[1, 1, 1, 0, 0, 2]]])
    assert relations(pieces, whole) == {"one_to_one": [2], "split": [1]}
    assert relations(whole, pieces) == {"one_to_one": [9], "merged": [3, 4]}


def test_relations_of_many_to_many():
    # 5 joins 1 and the first half of 2, 6 is the other half
    truth = np.array([[[1, 1, 2, 2, 2, 2]], [[0, 0, 0, 0, 0, 0]]])
    prediction = np.array([[[5, 5, 5, 5, 6, 6]], [[0, 0, 0, 0, 0, 0]]])
    assert relations(prediction, truth) == {"many_to_many": [1, 2]}


def test_touch_of_less_than_half_is_no_relation():
    truth = np.array([[[1, 1, 1, 1, 1, 2, 2, 2]], [[0, 0, 0, 0, 0, 0, 0, 0]]])
    assert relations(np.where(truth == 1, 4, 0) + np.array([0, 0, 0, 0, 0, 4, 0, 0]), truth) == {
        "one_to_one": [1],
        "missing": [2],
    }
    # 2 of 3 voxels
    assert relations(np.where(truth == 1, 4, 0) + np.array([0, 0, 0, 0, 0, 4, 4, 0]), truth) == {"merged": [1, 2]}


def test_swapping_the_maps_swaps_the_errors():
    other = np.where(TRUTH == 3, 0, TRUTH)
    forth, back = (
        matched(PREDICTION, other, 0.5),
        matched(other, PREDICTION, 0.5),
    )
    assert (forth.precision, forth.recall) == (back.recall, back.precision) == (2 / 3, 1)
    assert forth.panoptic_quality == pytest.approx(back.panoptic_quality)
    assert forth.relations.spurious.tolist() == back.relations.missing.tolist() == [5]


def test_empty_maps():
    nothing = np.zeros_like(TRUTH)
    missed, invented = (
        matched(nothing, TRUTH, 0.75),
        matched(TRUTH, nothing, 0.75),
    )
    assert (missed.false_negatives, invented.false_positives) == (3, 3)
    assert set(ratios(missed).values()) == set(ratios(invented).values()) == {0}
    assert missed.relations.missing.tolist() == invented.relations.spurious.tolist() == [1, 2, 3]
    assert np.isnan(list(ratios(matched(nothing, nothing, 0.75)).values())).all()


@pytest.mark.parametrize("threshold", [0.49, 1.01, float("nan")])
def test_threshold_outside_its_range(threshold):
    with pytest.raises(UserError, match=r"iou_threshold must be from 0\.5 to 1"):
        matched(PREDICTION, TRUTH, threshold)
