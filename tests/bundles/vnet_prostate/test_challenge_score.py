# SPDX-License-Identifier: Apache-2.0
"""Tests of the score of the PROMISE12 challenge; the second observer's values here are made up."""

from __future__ import annotations

import math

import numpy as np
import pytest
from vnet_prostate.challenge_score import PERFECT, case_score, score
from vnet_prostate.promise12 import REGIONS, gland_measures

from volseg.errors import UserError

AFFINE = np.diag([0.5, 0.75, 3.0, 1.0])
VALUES = {
    "dice": 0.75,
    "absolute_relative_volume_difference_percent": 8.0,
    "average_boundary_distance_mm": 2.0,
    "hausdorff_95_mm": 6.0,
}
OBSERVER = {region: dict(VALUES) for region in REGIONS}


def gland() -> np.ndarray:
    mask = np.zeros((12, 11, 10), np.uint8)
    mask[2:9, 3:8, 1:8] = 1
    return mask


def changed(region: str, **values: object) -> dict[str, dict[str, object]]:
    return {**OBSERVER, region: {**VALUES, **values}}


@pytest.mark.parametrize(
    ("value", "perfect", "observer", "expected"),
    [
        (1.0, 1.0, 0.75, 100),
        (0.75, 1.0, 0.75, 85),
        (0.875, 1.0, 0.75, 92.5),
        (0.0, 1.0, 0.75, 40),
        (0.0, 1.0, 0.875, 0),  # -20 without the limit
        (0.0, 0.0, 6.0, 100),
        (6.0, 0.0, 6.0, 85),
        (12.0, 0.0, 6.0, 70),
        (40.0, 0.0, 6.0, 0),
        (math.inf, 0.0, 6.0, 0),
    ],
)
def test_scale(value, perfect, observer, expected):
    assert score(value, perfect, observer) == pytest.approx(expected)


def test_no_value_has_no_score():
    assert math.isnan(score(math.nan, 1.0, 0.75))


def test_perfect_and_observer():
    assert case_score(gland_measures(gland(), gland(), AFFINE), OBSERVER) == 100
    assert case_score(OBSERVER, OBSERVER) == pytest.approx(85)


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("name", PERFECT)
def test_each_of_the_twelve_values_has_the_same_weight(region, name):
    measures = {**OBSERVER, region: {**VALUES, name: PERFECT[name]}}
    assert case_score(measures, OBSERVER) == pytest.approx(85 + 15 / 12)
    assert case_score(OBSERVER, changed(region, **{name: (VALUES[name] + PERFECT[name]) / 2})) < 85


def test_empty_prediction_has_zero():
    assert case_score(gland_measures(0 * gland(), gland(), AFFINE), OBSERVER) == 0


def test_missing_region_has_zero_for_its_four_values():
    prediction = gland()
    prediction[:, :, :3] = 0  # the apex: 2 of 7 slices
    measures = gland_measures(prediction, gland(), AFFINE)
    measures["whole"] = measures["base"]
    assert case_score(measures, OBSERVER) == pytest.approx(100 * 8 / 12)


def test_region_in_neither_mask_has_no_score():
    assert math.isnan(case_score(gland_measures(0 * gland(), 0 * gland(), AFFINE), OBSERVER))


def test_no_table_no_score():
    assert case_score(gland_measures(gland(), gland(), AFFINE), {}) is None


@pytest.mark.parametrize(
    ("observer", "message"),
    [
        ({"whole": VALUES, "base": VALUES}, "got missing: apex dice, apex absolute.*, apex hausdorff_95_mm$"),
        (
            {**OBSERVER, "apex": {"dice": 0.75}},
            "got missing: apex absolute_relative_volume_difference_percent, apex a",
        ),
        ({**OBSERVER, "middle": {}}, "got unknown: middle$"),
        (changed("base", hausdorff=6.0), "got unknown: base hausdorff$"),
        (changed("base", hausdorff_95_mm=0), "got impossible: base hausdorff_95_mm 0$"),
        (changed("whole", dice=1.0), r"got impossible: whole dice 1\.0$"),
        (changed("whole", dice=75), "got impossible: whole dice 75$"),
        (changed("apex", dice="0.75"), r"got impossible: apex dice '0\.75'$"),
        (changed("apex", hausdorff_95_mm=math.nan), "got impossible: apex hausdorff_95_mm nan$"),
        ({**OBSERVER, "base": 0.75}, "got unknown: base; missing: base dice, base absolute.*, base hausdorff_95_mm$"),
        ("observer.json", r"got unknown: 'observer\.json'; missing: whole dice, whole abs.*, apex hausdorff_95_mm$"),
    ],
)
def test_unusable_tables(observer, message):
    with pytest.raises(UserError, match=message):
        case_score(OBSERVER, observer)
