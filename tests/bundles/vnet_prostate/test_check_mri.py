# SPDX-License-Identifier: Apache-2.0
"""Tests of the check of MRI."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.spatial.transform import Rotation
from vnet_prostate.check_mri import CheckMRId, _is_ct

from volseg.data.volume_reader import load_volume
from volseg.errors import UserError

REAL = Path(__file__).resolve().parents[4] / "shared" / "data"

# voxel axes run to posterior, superior, left
AXIAL = np.array([[0, 0, -3.2], [-3.0, 0, 0], [0, 4.8, 0]])


def mri(size=(22, 9, 20), degrees: float = 0, axes: np.ndarray = AXIAL) -> dict[str, MetaTensor]:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("x", degrees, degrees=True).as_matrix() @ axes
    voxels = torch.linspace(0, 800, int(np.prod(size))).reshape(1, *size)
    return {"image": MetaTensor(voxels, affine=torch.from_numpy(affine), meta={"filename_or_obj": "a.nii.gz"})}


@pytest.mark.parametrize("degrees", [0, 35])
def test_axial_and_oblique_volumes_pass_unchanged(caplog, degrees):
    data = mri(degrees=degrees)
    assert torch.equal(CheckMRId("image")(data)["image"], data["image"])
    assert caplog.records == []


def test_too_few_slices_along_the_patient():
    with pytest.raises(
        UserError, match=r"a\.nii\.gz: too few slices for an MRI of the prostate: at least 8 needed, got 7;"
    ):
        CheckMRId("image")(mri(size=(22, 7, 20)))


def test_a_constant_image_is_refused():
    data = mri()
    data["image"][:] = 3
    with pytest.raises(UserError, match=r"a\.nii\.gz: image is constant, got 3 in every voxel"):
        CheckMRId("image")(data)


def test_a_mask_is_refused():
    data = mri()
    data["image"][:] = data["image"] > 400
    with pytest.raises(UserError, match=r"a\.nii\.gz: every voxel is 0 or 1, a mask and not an MRI of the prostate;"):
        CheckMRId("image")(data)


@pytest.mark.parametrize(("tissue", "warned"), [((-120, 140), True), ((-450, 700), False)])
def test_hounsfield_units_are_warned_of(caplog, tissue, warned):
    data = mri()
    data["image"][:] = torch.linspace(*tissue, data["image"].numel()).reshape(data["image"].shape)
    data["image"][:, :5] = torch.linspace(-1010, -990, 20)  # air
    CheckMRId("image")(data)
    assert ("a.nii.gz: grey values are Hounsfield units of a CT" in caplog.text) == warned


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real scans")
def test_real_mri_with_an_offset_is_told_from_real_ct():
    scans = [*REAL.glob("prostate/promise12_pairs/more/*_image.nii.gz"), *REAL.glob("prostate/prostatex_t2/*.nii.gz")]
    assert len(scans) == 21
    for path in scans:
        assert not _is_ct(load_volume(path) - 1024), path.name
    for name in ("totalsegmentator/example_ct.nii.gz", "cip/ct-64.nrrd"):
        assert _is_ct(load_volume(REAL / "lung" / name)), name


def test_voxels_that_are_no_number_become_0(caplog):
    data = mri()
    data["image"][0, 1, 2, 3:6] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    assert not CheckMRId("image")(data)["image"][0, 1, 2, 3:6].any()
    assert "set 3 non-finite voxels to 0" in caplog.text


@pytest.mark.parametrize(
    ("data", "warning"),
    [
        (mri(axes=AXIAL * [1.3, 0.3, 1]), "slices must be axial, got a spacing of"),
        (mri(axes=AXIAL * [0.2, 1, 0.2]), "field of view of 13 x 13 mm in plane; check the spacing"),
        (mri(axes=AXIAL * [1, 1.2, 1]), "slices are 5.8 mm apart, in MRI of the prostate at most 5 mm; check"),
        (mri(degrees=44), "axes are tilted 44 degrees"),
    ],
)  # fmt: skip
def test_warnings(caplog, data, warning):
    caplog.set_level(logging.WARNING)
    CheckMRId("image")(data)
    assert warning in caplog.text
