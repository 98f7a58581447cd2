# SPDX-License-Identifier: Apache-2.0
"""Tests of the statistics of a gland."""

from __future__ import annotations

import numpy as np
import pytest
from vnet_prostate.report import gland_statistics

# voxel axes run to posterior, superior, left: 0.7, 3 and 0.5 mm
AFFINE = np.array([[0, 0, -0.5, 30], [-0.7, 0, 0, 20], [0, 3.0, 0, 10], [0, 0, 0, 1]])
SIZE = (90, 30, 110)


def mask(*box: slice) -> np.ndarray:
    labels = np.zeros(SIZE, np.uint8)
    labels[box] = 1
    return labels


def test_volume_and_extents_are_the_patients():
    labels = mask(slice(20, 60), slice(5, 17), slice(10, 70))
    statistics = gland_statistics(np.zeros(SIZE), labels, AFFINE)
    assert statistics["gland_ml"] == pytest.approx(40 * 0.7 * 12 * 3 * 60 * 0.5 / 1000, abs=0.01)
    assert statistics["extent_mm"] == {"right_left": 30.0, "anterior_posterior": 28.0, "superior_inferior": 36.0}
    assert list(statistics["extent_mm"]) == ["right_left", "anterior_posterior", "superior_inferior"]
    assert statistics["warnings"] == []
    assert statistics["legend"] == {1: "prostate 30 ml"}


def test_nothing_found():
    statistics = gland_statistics(np.zeros(SIZE), mask(slice(0)), AFFINE)
    assert statistics["gland_ml"] == 0
    assert set(statistics["extent_mm"].values()) == {0.0}
    assert statistics["warnings"] == ["no prostate found."]


@pytest.mark.parametrize(
    ("box", "warning"),
    [
        ((slice(20, 60), slice(0, 12), slice(10, 70)), "gland cut off by the field of view: it reaches the first or"),
        ((slice(50, 90), slice(5, 17), slice(10, 70)), "gland cut off by the field of view: it reaches the edge"),
        ((slice(44, 84), slice(5, 17), slice(10, 70)), "gland cut off by the field of view: it reaches the edge"),
        ((slice(20, 22), slice(5, 7), slice(10, 12)), "unusual gland volume: 0 ml, usually 10 to 250 ml."),
        ((slice(1, 89), slice(1, 29), slice(1, 109)), "unusual gland volume: 279 ml, usually"),
    ],
)  # fmt: skip
def test_warnings(box, warning, monkeypatch):
    monkeypatch.setattr("vnet_prostate.report.VOLUME_ML", (10.0, 250.0))
    assert [w for w in gland_statistics(np.zeros(SIZE), mask(*box), AFFINE)["warnings"] if w.startswith(warning)]


def test_blank_slices_are_no_field_of_view():
    image = np.random.default_rng(0).random(SIZE)
    labels = mask(slice(20, 60), slice(5, 17), slice(10, 70))
    assert gland_statistics(image, labels, AFFINE)["warnings"] == []
    image[:, 17:] = 0  # registered to a longer scan
    assert gland_statistics(image, labels, AFFINE)["warnings"] == [
        "gland cut off by the field of view: it reaches the first or last slice."
    ]


def test_a_thin_scan_is_warned_of():
    labels = np.zeros((90, 6, 110), np.uint8)
    labels[20:60, 1:5, 10:70] = 1
    (warning,) = gland_statistics(np.zeros(labels.shape), labels, AFFINE)["warnings"]
    assert warning.startswith("the scan covers 18 mm from foot to head")


# voxel axes run to posterior (0.7 mm), superior (3 mm) and left (0.5 mm); the gland is 28, 36 and 30 mm long
@pytest.mark.parametrize(("window_mm", "cut"), [((34, 32, 44), 0), ((30, 32, 44), 1), ((34, 28, 36), 2)])
def test_a_gland_that_fills_the_networks_window(window_mm, cut):
    labels = mask(slice(25, 65), slice(9, 21), slice(25, 85))
    warnings = gland_statistics(np.zeros(SIZE), labels, AFFINE, window_mm)["warnings"]
    assert len(warnings) == cut
    assert all(w.startswith("gland cut off by the network's window") for w in warnings)
