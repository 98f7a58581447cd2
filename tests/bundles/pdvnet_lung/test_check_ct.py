# SPDX-License-Identifier: Apache-2.0
"""Tests of the check of CTs."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from pdvnet_lung.check_ct import CheckCTd
from scipy.spatial.transform import Rotation

from volseg.errors import UserError

# voxel axes run to posterior, superior, left
AXES = np.array([[0, 0, -1.5], [-0.7, 0, 0], [0, 2.5, 0]])


def ct(size=(12, 9, 10), degrees: float = 0) -> dict[str, MetaTensor]:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("x", degrees, degrees=True).as_matrix() @ AXES
    voxels = torch.linspace(-1024, 800, int(np.prod(size))).reshape(1, *size)
    return {"image": MetaTensor(voxels, affine=torch.from_numpy(affine), meta={"filename_or_obj": "a.nii.gz"})}


def test_good_ct_passes_unchanged(caplog):
    data = ct()
    checked = CheckCTd("image")(data)["image"]
    assert torch.equal(checked.as_tensor(), data["image"].as_tensor())
    assert torch.equal(checked.affine, data["image"].affine)
    assert caplog.records == []


@pytest.mark.parametrize("size", [(12, 7, 10), (300, 1, 10)])
def test_slices_are_counted_along_the_patient(size):
    with pytest.raises(
        UserError, match=rf"a\.nii\.gz: too few slices for a chest CT: at least 8 needed, got {size[1]};"
    ):
        CheckCTd("image", minimum_slices=8)(ct(size))
    CheckCTd("image", minimum_slices=8)(ct((7, 8, 7)))  # few voxels along the other axes are no matter


def test_voxels_that_are_not_finite_become_air(caplog):
    data = ct()
    voxels = data["image"].as_tensor()
    expected = voxels.clone()
    for index, value in (((0, 3, 2, 1), np.nan), ((0, 0, 0, 0), np.inf), ((0, 11, 8, 9), -np.inf)):
        voxels[index], expected[index] = value, -1000
    checked = CheckCTd("image")(data)["image"]
    assert torch.equal(checked.as_tensor(), expected)
    assert checked.meta["filename_or_obj"] == "a.nii.gz"
    assert torch.equal(checked.affine, data["image"].affine)
    assert "a.nii.gz: set 3 non-finite voxels to -1000" in caplog.text


@pytest.mark.parametrize(("low", "high"), [(0, 255), (0, 1), (24, 2800), (-499, 900)])
def test_intensities_that_are_no_hounsfield_units(low, high):
    data = ct()
    data["image"] = (data["image"] + 1024) / 1824 * (high - low) + low
    with pytest.raises(UserError, match=rf"a\.nii\.gz: intensities must be Hounsfield units.* got {low} to {high};"):
        CheckCTd("image")(data)


def test_a_constant_ct_is_refused():
    data = ct()
    data["image"][:] = torch.nan
    with pytest.raises(UserError, match=r"a\.nii\.gz: image is constant, got -1000 in every voxel"):
        CheckCTd("image")(data)


@pytest.mark.parametrize(("degrees", "warns"), [(0, False), (18, False), (25, True), (-40, True)])
def test_oblique_ct_is_warned_of(caplog, degrees, warns):
    with caplog.at_level(logging.WARNING):
        CheckCTd("image")(ct(degrees=degrees))
    assert (f"a.nii.gz: axes are tilted {abs(degrees)} degrees" in caplog.text) == warns
    assert bool(caplog.records) == warns
