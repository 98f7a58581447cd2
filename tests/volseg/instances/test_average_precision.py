# SPDX-License-Identifier: Apache-2.0
"""Tests of the average precision of instances."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from volseg.errors import UserError
from volseg.instances.average_precision import AveragePrecision, instance_average_precision

REFERENCE = Path(__file__).parents[4] / "shared" / "data" / "mito" / "golden"

# 8 voxels of 1, 2 of 2
TRUTH = np.array([[[1, 1, 1, 1, 0, 2, 2, 0]], [[1, 1, 1, 1, 0, 0, 0, 0]]])
# 7 voxels of 7 with an IoU of 7/8, 2 voxels of 3 and one of 9 in the background
PREDICTION = np.array([[[7, 7, 7, 7, 0, 0, 0, 9]], [[7, 7, 7, 0, 3, 3, 0, 0]]])
RANGES = {"small": (0, 2), "large": (2, 10), "huge": (10, 20)}


def recall(result: AveragePrecision, iou_threshold: float) -> float:
    return result.by_size["all"].recall_at(iou_threshold)


def test_literal_case():
    result = instance_average_precision(PREDICTION, TRUTH)
    # Right, wrong, wrong: precision 1, 1/2, 1/3 at a recall of 1/2, so 51 of the 101 points have 1, the others 0.
    assert result.ap50 == result.ap75 == pytest.approx(51 / 101)
    # 7/8 reaches the thresholds up to 0.85, eight of ten.
    assert result.ap == pytest.approx(0.8 * 51 / 101)
    assert recall(result, 0.5) == recall(result, 0.75) == 0.5
    assert result.by_size["all"].recall_at(0.9) == 0


def test_size_ranges():
    by_size = instance_average_precision(PREDICTION, TRUTH, size_ranges=RANGES).by_size
    assert list(by_size) == ["all", "small", "large", "huge"]
    assert [scores.truth_count for scores in by_size.values()] == [2, 1, 1, 0]  # 2 voxels are still small
    # small: 7 is matched to another range and ignored, 3 and 9 are false positives; the other way round for large
    assert (by_size["small"].ap75, by_size["large"].ap75) == (0, 1)
    # at 0.9, 7 is unmatched and by its own size a false positive
    assert by_size["large"].ap_at(0.9) == by_size["large"].recall_at(0.9) == 0
    assert by_size["huge"].ap == by_size["huge"].recall_at(0.5) == -1


def test_prediction_matched_to_another_range_is_ignored():
    prediction = np.where(TRUTH == 2, 3, 7 * (PREDICTION == 7))
    by_size = instance_average_precision(prediction, TRUTH, size_ranges=RANGES).by_size
    assert by_size["small"].ap75 == 1  # 1/2 if the larger 7 counted as a false positive


def test_prediction_of_the_range_matched_to_another_range_is_ignored():
    truth = np.array([[[1, 1, 1, 0, 2]], [[0, 0, 0, 0, 0]]])
    prediction = np.array([[[5, 5, 0, 0, 6]], [[0, 0, 0, 0, 0]]])
    by_size = instance_average_precision(prediction, truth, size_ranges=RANGES).by_size
    # 5 is small but two thirds of the large 1; unmatched, as at 0.75, it comes before 6 as a false positive
    assert (by_size["small"].ap50, by_size["small"].ap75) == (1, 0.5)


def test_prediction_prefers_the_range():
    truth = np.array([[[1, 1, 1], [1, 1, 1], [2, 0, 0]]])
    prediction = np.array([[[0, 5, 5], [5, 5, 5], [5, 0, 0]]])
    result = instance_average_precision(prediction, truth, (0.1, 0.5), RANGES)
    assert result.matches.best["all"].ious.tolist() == [5 / 7]
    assert result.matches.best["small"].truth_ids.tolist() == [2]
    assert result.matches.best["small"].ious.tolist() == [1 / 6]
    assert result.by_size["small"].average_precision == (1, 0)


def test_matching_is_not_one_to_one():
    truth = np.array([[[1, 1, 0]], [[1, 1, 0]]])
    prediction = np.array([[[1, 1, 0]], [[2, 2, 0]]])
    result = instance_average_precision(prediction, truth)
    assert (result.ap50, recall(result, 0.5), result.ap75) == (1, 2, 0)


@pytest.mark.parametrize(("right_id", "wrong_id", "ap"), [(1, 4, 1.0), (4, 1, 0.5)])
def test_equal_scores_are_ordered_by_id(right_id, wrong_id, ap):
    truth = np.array([[[8, 8, 0]], [[0, 0, 0]]])
    prediction = np.array([[[right_id, right_id, 0]], [[0, wrong_id, wrong_id]]])
    assert instance_average_precision(prediction, truth).ap50 == ap


def test_equal_ious_go_to_the_lower_id():
    truth = np.array([[[4, 3]], [[0, 0]]])
    prediction = np.array([[[6, 6]], [[0, 0]]])
    result = instance_average_precision(prediction, truth)
    assert result.matches.best["all"].truth_ids.tolist() == [3]
    missed = result.missed
    assert (missed.truth_ids.tolist(), missed.truth_sizes.tolist()) == ([4], [1])
    assert (missed.prediction_ids.tolist(), missed.prediction_sizes.tolist(), missed.ious.tolist()) == ([6], [2], [0.5])


def test_precision_is_the_best_of_any_higher_recall():
    # Ten voxels are wrong, then 1, then 2 are right: precision 0, 1/2, 2/3; 2/3 holds for all recalls.
    truth = np.array([[[1, 1, 1, 2, 2]], [[0, 0, 0, 0, 0]], [[0, 0, 0, 0, 0]]])
    prediction = truth + np.array([0, 9, 9])[:, None, None]
    assert instance_average_precision(prediction, truth).ap75 == pytest.approx(2 / 3)


def test_tables():
    result = instance_average_precision(PREDICTION, TRUTH, size_ranges=RANGES)
    assert result.matches.prediction_ids.tolist() == [7, 3, 9]
    assert result.matches.prediction_sizes.tolist() == [7, 2, 1]
    best = result.matches.best["large"]
    assert (best.truth_ids.tolist(), best.truth_sizes.tolist(), best.ious.tolist()) == (
        [1, 0, 0],
        [8, 0, 0],
        [7 / 8, 0, 0],
    )
    assert result.matches.best["small"].truth_ids.tolist() == [0, 0, 0]
    missed = result.missed
    assert (missed.truth_ids.tolist(), missed.truth_sizes.tolist()) == ([2], [2])
    assert (missed.prediction_ids.tolist(), missed.prediction_sizes.tolist(), missed.ious.tolist()) == ([0], [0], [0])


def test_missed_truth_comes_with_the_prediction_of_the_best_iou():
    truth = np.array([[[1, 1, 1, 1, 4, 4, 4, 2, 2, 2, 2]], [[0] * 11]])
    prediction = np.array([[[8, 8, 8, 8, 8, 9, 9, 9, 9, 9, 9]], [[0] * 11]])
    missed = instance_average_precision(prediction, truth).missed
    assert (missed.truth_ids.tolist(), missed.truth_sizes.tolist()) == ([4], [3])
    assert (missed.prediction_ids.tolist(), missed.prediction_sizes.tolist()) == ([9], [6])
    assert missed.ious.tolist() == [2 / 7]


def test_small_truth_is_background():
    result = instance_average_precision(PREDICTION, TRUTH, min_size=3)
    assert (result.ap75, recall(result, 0.75), result.missed.truth_ids.size) == (1, 1, 0)


def test_empty_maps():
    nothing = np.zeros_like(TRUTH)
    without_prediction = instance_average_precision(nothing, TRUTH)
    assert (without_prediction.ap, recall(without_prediction, 0.5)) == (0, 0)
    assert without_prediction.missed.truth_ids.tolist() == [1, 2]
    for prediction in (nothing, PREDICTION):
        without_truth = instance_average_precision(prediction, nothing)
        assert (without_truth.ap, without_truth.ap75, recall(without_truth, 0.75)) == (-1, -1, -1)


def test_thresholds_are_reached_by_equal_ious():
    # 11 of 20 voxels, 6 of 10 and so on are exactly at a threshold.
    truth = np.ones((4, 1, 5), int)
    for right in range(10, 20):
        prediction = (np.arange(20) < right).astype(int).reshape(truth.shape)
        reached = np.array(instance_average_precision(prediction, truth).by_size["all"].recall)
        assert reached.sum() == right - 9


def test_recall_points_are_the_official_ones():
    # 7 of 20 found: the point 35 x 0.01 is a rounding step above 7 / 20 and not reached.
    truth = np.arange(1, 21).reshape(2, 2, 5)
    assert instance_average_precision(np.where(truth > 7, 0, truth), truth).ap75 == pytest.approx(35 / 101)


def test_errors():
    with pytest.raises(UserError, match=r"no score at an IoU of 0\.75; add it to iou_thresholds, now \(0\.6,\)"):
        _ = instance_average_precision(PREDICTION, TRUTH, (0.6,)).ap75
    for thresholds in ((), (0.5, 0), (1.1,)):
        with pytest.raises(UserError, match="iou_thresholds must be numbers > 0 and <= 1, got"):
            instance_average_precision(PREDICTION, TRUTH, thresholds)
    for ranges in ({"all": (0, 5)}, {"small": (5, 5)}):
        with pytest.raises(UserError, match="a range needs a name other than 'all' and low < high, got"):
            instance_average_precision(PREDICTION, TRUTH, size_ranges=ranges)


@pytest.mark.skipif(not REFERENCE.is_dir(), reason=f"no reference values in {REFERENCE}")
@pytest.mark.parametrize("case", ["identical", "shift_y1", "two_merges", "three_missing_two_false"])
def test_reference_cases(case):
    expected = json.loads((REFERENCE / "instance_ap_expected.json").read_text())["cases"][case]
    with np.load(REFERENCE / "instance_ap_cases.npz") as maps:
        ranges = {"small": (0, 150), "medium": (150, 400), "large": (400, math.inf)}
        result = instance_average_precision(maps[case], maps["gt"], size_ranges=ranges)
    scores = {
        "n_gt": result.by_size["all"].truth_count,
        "n_pred": result.matches.prediction_ids.size,
        "AP50_95": result.ap,
        "AP50": result.ap50,
        "AP75": result.ap75,
        **{f"AP75_{name}": result.by_size[name].ap75 for name in ranges},
        "recall50": recall(result, 0.5),
        "recall75": recall(result, 0.75),
    }
    ious = expected.pop("iou_best_per_pred")
    assert scores == pytest.approx(expected, abs=1e-12)
    ids = map(str, result.matches.prediction_ids.tolist())
    assert dict(zip(ids, result.matches.best["all"].ious.tolist(), strict=True)) == pytest.approx(ious, abs=1e-6)
