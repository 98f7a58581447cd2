# SPDX-License-Identifier: Apache-2.0
"""Tests of writing segmentations."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from volseg.errors import UserError
from volseg.label_maps.label_file import write_segmentation

LABELS = np.arange(3 * 4 * 5).reshape(3, 4, 5) % 6


def affine(oblique: bool) -> np.ndarray:
    matrix = np.eye(4)
    turn = Rotation.from_euler("xyz", (4, -6, 11), degrees=True).as_matrix() if oblique else np.eye(3)
    matrix[:3, :3] = turn @ np.array([[0, 0, -1.5], [-0.7, 0, 0], [0, 2.5, 0]])
    matrix[:3, 3] = (12, -30, 400)
    return matrix


@pytest.mark.parametrize("oblique", [False, True])
@pytest.mark.parametrize("dtype", [np.int64, np.float32])
def test_voxels_and_geometry(tmp_path, oblique, dtype):
    path = tmp_path / "out" / "a_lobes.nii.gz"
    write_segmentation(path, LABELS.astype(dtype), affine(oblique), {1: "LUL"})
    image = nib.load(path)
    assert image.get_data_dtype() == np.uint8
    assert image.shape == (3, 4, 5)
    np.testing.assert_array_equal(np.asarray(image.dataobj), LABELS)
    np.testing.assert_allclose(image.affine, affine(oblique), atol=1e-4)
    np.testing.assert_allclose(image.header.get_zooms(), (0.7, 2.5, 1.5), atol=1e-5)
    # programs differ in which of the two they read
    for transform in (image.get_sform(coded=True), image.get_qform(coded=True)):
        assert transform[1] == 1
        np.testing.assert_allclose(transform[0], affine(oblique), atol=1e-4)
    assert image.header.get_xyzt_units()[0] == "mm"
    assert [p.name for p in path.parent.iterdir()] == ["a_lobes.nii.gz"]


def test_names_are_in_the_header(tmp_path):
    path = tmp_path / "a.nii.gz"
    write_segmentation(path, LABELS, affine(True), {1: "LUL", 5: "RLL"})
    (extension,) = nib.load(path).header.extensions
    assert extension.get_code() == 6  # comment
    text = extension.get_content()
    text = text.decode() if isinstance(text, bytes) else text
    assert json.loads(text.rstrip("\0")) == {"labels": {"1": "LUL", "5": "RLL"}}


def test_sheared_affine_is_kept_where_it_can_be(tmp_path):
    sheared = affine(False)
    sheared[0, 0] = 0.3
    write_segmentation(tmp_path / "a.nii.gz", LABELS, sheared, {})
    np.testing.assert_allclose(nib.load(tmp_path / "a.nii.gz").affine, sheared, atol=1e-5)


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"a\.nii\.gz: cannot be written"):
        write_segmentation(tmp_path / "file" / "a.nii.gz", LABELS, np.eye(4), {})
