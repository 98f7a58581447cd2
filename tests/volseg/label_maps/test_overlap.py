# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from volseg.errors import UserError
from volseg.label_maps.overlap import confusion_counts, dice_per_label, volumes_ml

TRUTH = np.array([[[0, 0, 1], [1, 2, 2]]])
PREDICTION = np.array([[[0, 1, 1], [1, 1, 2]]])


def test_literal_case():
    counts = confusion_counts(PREDICTION, TRUTH, num_classes=4)
    assert counts.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    # Background 2*1/(1+2), label 1 2*2/(4+2), label 2 2*1/(1+2), label 3 in neither map.
    np.testing.assert_allclose(dice_per_label(counts), [2 / 3, 2 / 3, 2 / 3, np.nan])
    predicted_ml, true_ml = volumes_ml(counts, voxel_volume_mm3=500.0)
    assert predicted_ml.tolist() == [0.5, 2.0, 0.5, 0.0]
    assert true_ml.tolist() == [1.0, 1.0, 1.0, 0.0]


def test_label_in_one_map_only_has_dice_zero():
    truth = np.zeros((2, 3, 4), np.uint8)
    prediction = truth.copy()
    prediction[0, 0, 0] = 1
    for pair in ((prediction, truth), (truth, prediction)):
        dice = dice_per_label(confusion_counts(*pair, num_classes=3))
        assert dice[1] == 0.0
        assert np.isnan(dice[2])


def test_counts_do_not_depend_on_type_or_memory_order():
    rng = np.random.default_rng(0)
    prediction, truth = rng.integers(0, 5, (2, 61, 53, 47))  # more than one chunk
    expected = np.histogram2d(truth.ravel(), prediction.ravel(), bins=np.arange(6))[0]
    for dtype in (np.uint8, np.int8, np.uint16, ">i2", np.int32, np.int64, np.uint64):
        for order in ("C", "F"):
            counts = confusion_counts(prediction.astype(dtype, order=order), truth.astype(np.uint8), num_classes=5)
            assert counts.dtype == np.int64
            np.testing.assert_array_equal(counts, expected)
    flipped = confusion_counts(prediction[::-1, :, ::2], truth[::-1, :, ::2], num_classes=5)
    np.testing.assert_array_equal(flipped, confusion_counts(prediction[:, :, ::2], truth[:, :, ::2], num_classes=5))


def test_swapping_the_maps_transposes_counts_and_swaps_volumes():
    rng = np.random.default_rng(1)
    prediction, truth = rng.integers(0, 3, (2, 5, 6, 7))
    counts, swapped = confusion_counts(prediction, truth, 3), confusion_counts(truth, prediction, 3)
    np.testing.assert_array_equal(counts, swapped.T)
    np.testing.assert_array_equal(dice_per_label(counts), dice_per_label(swapped))
    np.testing.assert_array_equal(volumes_ml(counts, 1.5), volumes_ml(swapped, 1.5)[::-1])


def test_identical_maps():
    label_map = np.random.default_rng(2).integers(0, 4, (5, 6, 7))
    counts = confusion_counts(label_map, label_map, 4)
    assert dice_per_label(counts).tolist() == [1.0] * 4
    np.testing.assert_array_equal(*volumes_ml(counts, 2.0))


def test_boolean_masks_and_empty_volumes():
    mask = np.array([[[True, False]]])
    assert confusion_counts(mask, ~mask, 2).tolist() == [[0, 1], [1, 0]]
    assert confusion_counts(mask[:0], mask[:0], 2).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("prediction", "truth", "message"),
    [
        (
            np.zeros((2, 2, 2), np.float32),
            np.zeros((2, 2, 2), int),
            "prediction must be an integer label map, got float32",
        ),
        (np.zeros((2, 2, 2), int), np.zeros((2, 2, 1), int), r"\(2, 2, 2\), the truth \(2, 2, 1\)"),
        (np.full((2, 2, 2), 3), np.zeros((2, 2, 2), int), "prediction must hold labels from 0 to 2, got 3"),
        (np.zeros((2, 2, 2), int), np.full((2, 2, 2), -1), "truth must hold labels from 0 to 2, got -1"),
        (np.zeros((2, 2, 2), int), np.full((2, 2, 2), 2**64 - 1, np.uint64), "truth must hold labels"),
    ],
)
def test_errors(prediction, truth, message):
    with pytest.raises(UserError, match=message):
        confusion_counts(prediction, truth, num_classes=3)
