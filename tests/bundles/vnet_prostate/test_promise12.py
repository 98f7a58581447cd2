# SPDX-License-Identifier: Apache-2.0
"""Tests of the measures of the PROMISE12 challenge."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from vnet_prostate.promise12 import REGIONS, gland_measures

from volseg.errors import UserError

SPACING_MM = (0.625, 0.625, 3.6)
AFFINE = np.diag([*SPACING_MM, 1.0])
VOXEL_ML = 0.625 * 0.625 * 3.6 / 1000
REAL = Path(__file__).parents[4] / "shared" / "data" / "prostate" / "msd_task05_labels" / "prostate_01.nii.gz"


def ellipsoid() -> np.ndarray:
    x, y, z = np.ogrid[:64, :64, :20]
    return ((x - 31) / 18) ** 2 + ((y - 31) / 14) ** 2 + ((z - 9) / 6) ** 2 <= 1


def moved_and_grown(mask: np.ndarray) -> np.ndarray:
    return ndimage.binary_dilation(np.roll(mask, 4, axis=0), iterations=2)


def stored(ras: np.ndarray, codes: str, affine: np.ndarray = AFFINE) -> tuple[np.ndarray, np.ndarray]:
    """A volume in RAS order stored along other axes, and its affine."""
    end = nib.orientations.axcodes2ornt(codes)
    image = nib.Nifti1Image(ras.astype(np.uint8), affine)
    turned = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(affine), end))
    return np.asarray(turned.dataobj), turned.affine


def column(*voxels: int, size: int = 14) -> np.ndarray:
    """Slices with a number of voxels each, in RAS order."""
    mask = np.zeros((9, 3, size), np.uint8)
    for k, count in enumerate(voxels):
        mask[:count, 1, k] = 1
    return mask


def volumes(measures: dict[str, dict[str, float]], kind: str) -> list[int]:
    return [round(measures[region][f"{kind}_volume_ml"] / VOXEL_ML) for region in REGIONS]


def test_known_values_of_a_synthetic_gland():
    truth = ellipsoid()
    prediction = moved_and_grown(truth)
    assert (truth.sum(), prediction.sum()) == (6265, 10193)
    measures = gland_measures(prediction, truth, AFFINE)
    assert tuple(measures) == REGIONS
    whole = measures["whole"]
    assert whole["dice"] == pytest.approx(0.72609, abs=5e-6)
    assert whole["average_boundary_distance_mm"] == pytest.approx(2.793, abs=5e-4)
    assert whole["hausdorff_95_mm"] == pytest.approx(7.131, abs=5e-4)
    assert whole["relative_volume_difference_percent"] == pytest.approx(100 * 10193 / 6265 - 100)
    assert whole["absolute_relative_volume_difference_percent"] == whole["relative_volume_difference_percent"]
    assert whole["reference_volume_ml"] == pytest.approx(6265 * VOXEL_ML)
    assert whole["predicted_volume_ml"] == pytest.approx(10193 * VOXEL_ML)
    assert measures["base"] == measures["apex"]  # the gland is symmetric: 13 slices, 4 in each
    assert measures["base"]["reference_volume_ml"] == pytest.approx(truth[:, :, 3:7].sum() * VOXEL_ML)


@pytest.mark.skipif(not REAL.is_file(), reason=f"no {REAL}")
def test_known_values_of_a_real_gland():
    image = nib.load(REAL)
    truth = np.asanyarray(image.dataobj) > 0
    whole = gland_measures(moved_and_grown(truth), truth, image.affine)["whole"]
    assert whole["dice"] == pytest.approx(0.7907, abs=5e-5)
    assert whole["average_boundary_distance_mm"] == pytest.approx(3.922, abs=5e-4)
    assert whole["hausdorff_95_mm"] == pytest.approx(7.227, abs=5e-4)


@pytest.mark.parametrize(
    ("slices", "third"),
    [(1, 0), (2, 1), (3, 1), (4, 1), (5, 2), (6, 2), (7, 2), (8, 3), (9, 3), (10, 3)],
)
def test_thirds(slices, third):
    truth = np.roll(column(*[1] * slices), 2, axis=2)
    assert volumes(gland_measures(truth, truth, AFFINE), "reference") == [slices, third, third]


def test_apex_is_caudal_and_takes_what_is_predicted_beyond_the_truth():
    truth = column(0, 0, 1, 2, 3, 4, 5, 6, 7)
    prediction = column(9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8)
    measures = gland_measures(prediction, truth, AFFINE)
    assert volumes(measures, "reference") == [28, 13, 3]  # 7 slices: 2 of base and apex
    assert volumes(measures, "predicted") == [28 + 9 + 16, 13 + 16, 3 + 9]
    assert measures["apex"]["dice"] == pytest.approx(2 * 3 / (3 + 12))
    assert measures["apex"]["relative_volume_difference_percent"] == pytest.approx(300)
    # Every voxel is border. The 9 predicted in slice 0 are two slices from the truth's single voxel in slice 2, and
    # three from the two voxels in slice 3, which are one voxel further along x; all other distances are 0.
    distances = [min(math.hypot(0.625 * x, 7.2), math.hypot(0.625 * max(x - 1, 0), 10.8)) for x in range(9)]
    assert measures["apex"]["average_boundary_distance_mm"] == pytest.approx(sum(distances) / 15)


def test_gap_in_the_truth_counts_as_slices():
    truth = column(0, 3, 2, 0, 0, 0, 4)  # 6 slices from the first to the last
    assert volumes(gland_measures(truth, truth, AFFINE), "reference") == [9, 4, 5]


@pytest.mark.parametrize("codes", ["LPS", "RAI", "SAR", "PIL", "IRP", "ASL"])
@pytest.mark.parametrize("angle_degrees", [0, 20])
def test_axes_may_be_turned_and_stored_in_any_order(codes, angle_degrees):
    cosine, sine = math.cos(math.radians(angle_degrees)), math.sin(math.radians(angle_degrees))
    oblique = np.array([[1, 0, 0, 5], [0, cosine, -sine, -7], [0, sine, cosine, 30], [0, 0, 0, 1]]) @ AFFINE
    truth = np.roll(ellipsoid()[10:54, 14:50], 3, axis=2)
    truth[:, :20, 9:] = False  # base and apex differ
    prediction = moved_and_grown(truth)
    expected = gland_measures(prediction, truth, AFFINE)
    assert expected["base"] != expected["apex"]
    (turned, affine), (turned_truth, _) = stored(prediction, codes, oblique), stored(truth, codes, oblique)
    found = gland_measures(turned, turned_truth, affine)
    for region in REGIONS:
        assert found[region] == pytest.approx(expected[region], rel=1e-6)


def test_too_small_and_perfect_predictions():
    truth = column(4, 4, 4)
    for measures in gland_measures(truth, truth, AFFINE).values():
        assert list(measures.values())[:5] == [1, 0, 0, 0, 0]
    whole = gland_measures(column(3, 3, 3), truth, AFFINE)["whole"]
    assert whole["relative_volume_difference_percent"] == pytest.approx(-25)
    assert whole["absolute_relative_volume_difference_percent"] == pytest.approx(25)


def test_empty_prediction():
    for measures in gland_measures(column(), column(4, 3, 2), AFFINE).values():
        assert list(measures.values())[:5] == [0, math.inf, math.inf, -100, 100]
        assert measures["predicted_volume_ml"] == 0 < measures["reference_volume_ml"]


def test_empty_truth():
    measures = gland_measures(column(4, 3, 2), column(), AFFINE)
    assert list(measures["whole"].values())[:6] == [0, math.inf, math.inf, math.inf, math.inf, 0]
    for region in ("base", "apex"):
        assert all(math.isnan(value) for value in list(measures[region].values())[:5])
        assert list(measures[region].values())[5:] == [0, 0]


def test_both_empty():
    for measures in gland_measures(column(), column(), AFFINE).values():
        assert all(math.isnan(value) for value in list(measures.values())[:5])
        assert list(measures.values())[5:] == [0, 0]


def test_masks_of_other_shapes_are_refused():
    with pytest.raises(UserError, match=r"\(9, 3, 14\), the truth \(9, 3, 13\)"):
        gland_measures(column(1), column(1, size=13), AFFINE)
