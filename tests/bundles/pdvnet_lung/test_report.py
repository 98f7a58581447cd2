# SPDX-License-Identifier: Apache-2.0
"""Tests of what is said of segmented lobes."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from pdvnet_lung.report import lobe_statistics

SPACING_RAS = (10.0, 8.0, 12.5)  # a voxel is 1 ml
SIZE_RAS = (20, 12, 16)


def lungs() -> np.ndarray:
    """Lobes in RAS order, 8 voxels apart from top and bottom: 1 and 2 on the patient's left, low x."""
    labels = np.zeros(SIZE_RAS, np.uint8)
    labels[2:8, 2:10, 8:14] = 1
    labels[2:8, 2:10, 2:8] = 2
    labels[12:18, 2:10, 10:14] = 3
    labels[12:18, 6:10, 6:10] = 4
    labels[12:18, 2:10, 2:6] = 5
    return labels


def stored(ras: np.ndarray, codes: str) -> tuple[np.ndarray, np.ndarray]:
    """A volume in RAS order stored along other axes, and its affine."""
    affine = np.diag([*SPACING_RAS, 1.0])
    end = nib.orientations.axcodes2ornt(codes)
    turned = nib.Nifti1Image(ras, affine).as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(affine), end)
    )
    return np.asarray(turned.dataobj), turned.affine


def statistics(labels: np.ndarray, codes: str = "RAS", image: np.ndarray | None = None) -> dict:
    image = np.full(SIZE_RAS, -850, np.float32) if image is None else image
    (image, affine), (labels, _) = stored(image, codes), stored(labels, codes)
    return lobe_statistics(image, labels, affine)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSL"])
def test_volume_density_and_emphysema(codes):
    image = np.full(SIZE_RAS, 40, np.float32)
    labels = lungs()
    image[labels == 1] = -800
    image[2:8, 2:10, 13] = -960  # a sixth of LUL
    image[labels == 4] = -950  # not below -950
    found = statistics(labels, codes, image)
    assert list(found["lobes"]) == ["LUL", "LLL", "RUL", "RML", "RLL"]
    assert found["lobes"]["LUL"] == {
        "volume_ml": 288.0,
        "mean_hu": round(-800 - 160 / 6, 1),
        "below_minus_950_hu_percent": 16.67,
    }
    assert found["lobes"]["RML"] == {"volume_ml": 96.0, "mean_hu": -950.0, "below_minus_950_hu_percent": 0.0}
    assert found["lobes"]["LLL"]["mean_hu"] == 40
    assert found["lungs_ml"] == 288 + 288 + 192 + 96 + 192
    assert found["legend"] == {1: "LUL 288 ml", 2: "LLL 288 ml", 3: "RUL 192 ml", 4: "RML 96 ml", 5: "RLL 192 ml"}
    assert found["warnings"] == []


def test_volume_of_an_oblique_and_of_a_mirrored_grid():
    affine = np.diag([-10.0, 8.0, 12.5, 1.0])
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]]
    found = lobe_statistics(np.zeros(SIZE_RAS, np.float32), lungs(), turn @ affine)
    assert found["lobes"]["LUL"]["volume_ml"] == 288


def test_empty_lobe():
    labels = lungs()
    labels[labels == 4] = 3
    labels[labels == 2] = 1
    found = statistics(labels)
    assert found["lobes"]["RML"] == {"volume_ml": 0.0, "mean_hu": None, "below_minus_950_hu_percent": None}
    (warning,) = found["warnings"]
    assert warning.startswith("empty lobes: LLL, RML.")
    assert found["unusual_lobes"] == []


def test_no_lungs():
    labels = np.zeros(SIZE_RAS, np.uint8)
    assert statistics(labels)["warnings"] == ["no lungs found: 0 ml of lobes, less than 50 ml."]
    labels[2:5, 2:6, 3:7] = 1  # 48 ml
    assert statistics(labels)["warnings"] == ["no lungs found: 48 ml of lobes, less than 50 ml."]


def test_lungs_of_a_child():
    """What has 1/6 of the volume is as usual as the whole."""
    labels = lungs()
    image, affine = np.full(SIZE_RAS, -850, np.float32), np.diag([5.0, 5.0, 6.7, 1.0])
    found = lobe_statistics(image, labels, affine)
    assert found["lungs_ml"] == pytest.approx(177, abs=1)
    assert found["warnings"] == []


@pytest.mark.parametrize("codes", ["RAS", "LPI", "PIL", "SRA"])
@pytest.mark.parametrize(("side", "plane"), [("bottom", 0), ("top", 15)])
def test_cut_lungs(codes, side, plane):
    labels = lungs()
    labels[2:6, 2:6, plane] = 2  # 4 x 4 voxels of 0.8 cm2
    found = statistics(labels, codes)["warnings"]
    assert found == [f"lungs cut off at the {side}: 13 cm2 of lobes in the outermost slice."]
    labels[2:6, 3:6, plane] = 0  # 3.2 cm2 are a matter of the slice's thickness
    assert statistics(labels, codes)["warnings"] == []


@pytest.mark.parametrize("codes", ["RAS", "PSL"])
@pytest.mark.parametrize(
    ("side", "cut", "area_cm2"), [("left", np.s_[2:], 96), ("right", np.s_[:18], 80), ("back", np.s_[:, 2:], 150)]
)
def test_lungs_cut_at_a_side(codes, side, cut, area_cm2):
    labels = lungs()[cut]
    (image, affine), (labels, _) = stored(np.full(labels.shape, -850.0), codes), stored(labels, codes)
    found = lobe_statistics(image, labels, affine)
    assert found["warnings"] == [f"lungs cut off at the {side}: {area_cm2} cm2 of lobes in the outermost slice."]
    assert found["cut_sides"] == [side]


def test_lobe_of_an_unusual_size():
    labels = lungs()
    labels[labels == 4] = 3
    labels[12:14, 6:10, 6:8] = 4
    found = statistics(labels)
    assert found["warnings"] == ["RML holds 2 % of the lungs; patients have 2 to 29 %."]
    assert found["unusual_lobes"] == ["RML"]


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSL"])
def test_left_lobes_on_the_right(codes):
    mirrored = lungs()[::-1]
    (warning,) = statistics(mirrored, codes)["warnings"]
    assert warning.startswith("left lobes lie on the patient's right;")


def test_one_lung_alone_has_no_side_to_compare():
    labels = lungs()
    labels[labels > 2] = 0
    (warning,) = statistics(labels)["warnings"]
    assert warning.startswith("empty lobes: RUL, RML, RLL.")


def test_more_than_a_chest_holds_is_no_match():
    labels = np.ones((20, 30, 25), np.uint8)
    warnings = lobe_statistics(np.full(labels.shape, -850.0), labels, np.diag([10.0, 10, 10, 1]))["warnings"]
    assert warnings[0] == "implausible lung volume: 15 l; the weights may not suit this image."
