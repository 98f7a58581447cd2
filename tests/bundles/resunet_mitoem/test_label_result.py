# SPDX-License-Identifier: Apache-2.0
"""Instances as MONAI Label hands them on."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
from monai.data import MetaTensor
from resunet_mitoem.label_result import LabelResultd, file_affine

from volseg.errors import UserError

IDS = torch.arange(2 * 3 * 4, dtype=torch.int32).reshape(1, 2, 3, 4)


def request(path, ids=IDS, **options):
    return {"pred": ids, "image": MetaTensor(ids.float(), meta={"filename_or_obj": str(path)}), **options}


@pytest.fixture
def nifti(tmp_path):
    affine = np.array([[0, -0.5, 0, 1], [0.25, 0, 0, 2], [0, 0, 3, -4], [0, 0, 0, 1.0]])
    nib.save(nib.Nifti1Image(np.zeros((4, 3, 2), np.uint8), affine), tmp_path / "a.nii.gz")
    return tmp_path / "a.nii.gz"


def test_ids_stand_along_the_axes_of_the_file_with_its_affine(nifti):
    result = LabelResultd("pred")(request(nifti))["pred"]
    assert result.shape == (1, 4, 3, 2)
    assert result[0, 3, 1, 0] == IDS[0, 0, 1, 3]
    assert result.dtype == torch.uint8
    np.testing.assert_allclose(result.affine, nib.load(nifti).affine)


def test_mask_is_one_in_every_instance(nifti):
    result = LabelResultd("pred", result="mask")(request(nifti, result_dtype="uint8"))["pred"]
    assert result.unique().tolist() == [0, 1]
    assert int(result.sum()) == IDS.numel() - 1


@pytest.mark.parametrize(("largest", "dtype"), [(255, torch.uint8), (256, torch.int16), (40000, torch.int32)])
def test_type_is_the_smallest_that_fits(nifti, largest, dtype):
    ids = IDS.clone()
    ids[0, 0, 0, 0] = largest
    assert LabelResultd("pred")(request(nifti, ids))["pred"].dtype == dtype


def test_ids_that_would_wrap_around_are_refused(nifti):
    with pytest.raises(UserError, match=r"300 instances are too many for the viewer, whose uint8 holds 255"):
        LabelResultd("pred")(request(nifti, IDS + 277, result_dtype="uint8"))


def test_tiff_has_the_geometry_that_itk_gives_it(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((2, 3, 4), np.uint8), photometric="minisblack")
    np.testing.assert_array_equal(file_affine(str(tmp_path / "a.tif")), np.diag([-1.0, -1, 1, 1]))


def test_unknown_result_is_refused():
    with pytest.raises(ValueError, match=r"result must be one of instances, mask, got 'outline'"):
        LabelResultd("pred", result="outline")
