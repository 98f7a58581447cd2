# SPDX-License-Identifier: Apache-2.0
"""Tests of the distance between predicted and true fissures."""

from __future__ import annotations

import math

import numpy as np
from pdvnet_lung.fissures import fissure_voxels, lobe_measures
from pdvnet_lung.lobes import LOBES

AFFINE = np.diag([-0.7, 1.1, 2.5, 1.0])
NAMES = {str(value): name for value, name in LOBES.items()}


def chest(left_fissure: int) -> np.ndarray:
    """Left lung along X up to 3, right lung from 3 on; RUL over RML before RLL."""
    lobes = np.zeros((7, 4, 10), np.uint8)
    lobes[:3, :, 1:left_fissure], lobes[:3, :, left_fissure:9] = 2, 1
    lobes[3:, :, 6:9], lobes[3:, 2:, 1:6], lobes[3:, :2, 1:6] = 3, 4, 5
    return lobes


def test_a_fissure_lies_between_lobes_of_one_lung():
    lobes = chest(5)
    expected = np.zeros(lobes.shape, bool)
    expected[:3, :, 5] = True
    np.testing.assert_array_equal(fissure_voxels(lobes, 1), expected)
    expected = np.zeros(lobes.shape, bool)
    expected[3:, 2:, 5] = expected[3:, 2, 1:6] = True
    np.testing.assert_array_equal(fissure_voxels(lobes, 4), expected)


def test_distance_of_a_shifted_fissure():
    """Two sections of 2.5 mm apart; the other lung's fissures agree."""
    measures = lobe_measures(chest(5), chest(7), AFFINE, NAMES)
    distances = {name: values["fissure_distance_mm"] for name, values in measures.items()}
    assert distances == {"LUL": 5.0, "LLL": 5.0, "RUL": 0.0, "RML": 0.0, "RLL": 0.0}
    assert measures["LUL"]["volume_error_ml"] > 0


def test_a_missing_fissure():
    one_lobe = np.where(chest(5) == 2, 1, chest(5)).astype(np.uint8)
    assert lobe_measures(one_lobe, chest(5), AFFINE, NAMES)["LUL"]["fissure_distance_mm"] == math.inf
    assert math.isnan(lobe_measures(one_lobe, one_lobe, AFFINE, NAMES)["LUL"]["fissure_distance_mm"])
