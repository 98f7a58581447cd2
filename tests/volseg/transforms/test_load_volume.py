# SPDX-License-Identifier: Apache-2.0
"""Tests of loading the volumes of a case."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from volseg.errors import UserError
from volseg.transforms.load_volume import LoadImageVolumed

AFFINE = np.array([[0, 0, -1.5, 12], [-0.7, 0, 0, -30], [0, 2.5, 0, 400], [0, 0, 0, 1.0]])
VOXELS = np.arange(60, dtype=np.int16).reshape(3, 4, 5)


def save(path: Path, voxels: np.ndarray = VOXELS, affine: np.ndarray = AFFINE) -> str:
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return str(path)


def test_volumes_of_a_case(tmp_path):
    case = {"image": save(tmp_path / "ct.nii.gz"), "label": save(tmp_path / "l.nii", VOXELS % 6), "name": "case 1"}
    data = LoadImageVolumed(["image", "label"])(case)
    assert data["image"].shape == (1, 3, 4, 5)
    np.testing.assert_array_equal(data["image"][0], VOXELS)
    np.testing.assert_array_equal(data["label"][0], VOXELS % 6)
    np.testing.assert_allclose(data["image"].affine, AFFINE)
    assert data["image"].meta["filename_or_obj"] == case["image"]
    assert data["name"] == "case 1"
    assert isinstance(case["image"], str)


def test_missing_label_where_it_may_be_missing(tmp_path):
    case = {"image": save(tmp_path / "ct.nii.gz")}
    assert set(LoadImageVolumed(["image", "label"], allow_missing_keys=True)(case)) == {"image"}
    with pytest.raises(KeyError, match="label"):
        LoadImageVolumed(["image", "label"])(case)


def test_other_size(tmp_path):
    case = {"image": save(tmp_path / "ct.nii"), "label": save(tmp_path / "l.nii", VOXELS.reshape(5, 4, 3))}
    with pytest.raises(UserError, match=r"l\.nii: not on the grid of .*ct\.nii: 5x4x3 and 3x4x5 voxels"):
        LoadImageVolumed(["image", "label"])(case)


@pytest.mark.parametrize(
    ("row", "column", "change", "distance_mm"),
    [(0, 3, 0.2, "0.2"), (2, 1, 0.1, "0.3"), (1, 0, 1.4, "2.8")],  # moved; slices thicker; an axis the other way
)
def test_other_place_spacing_or_direction(tmp_path, row, column, change, distance_mm):
    other = AFFINE.copy()
    other[row, column] += change
    case = {"image": save(tmp_path / "ct.nii"), "label": save(tmp_path / "l.nii", affine=other)}
    with pytest.raises(UserError, match=rf"l\.nii: not on the grid of .*corners {distance_mm} mm apart"):
        LoadImageVolumed(["image", "label"])(case)
    LoadImageVolumed(["image", "label"], tolerance_mm=3)(case)


def test_rounded_header_is_the_same_grid(tmp_path):
    other = AFFINE + np.array([[0, 0, 1e-3, 0.05], [0] * 4, [0] * 4, [0] * 4])
    case = {"image": save(tmp_path / "ct.nii"), "label": save(tmp_path / "l.nii", affine=other)}
    LoadImageVolumed(["image", "label"])(case)
