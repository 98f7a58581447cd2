# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest

from volseg.data.image_file import nifti_channel, read_itk, read_metaimage_grid, read_nifti
from volseg.data.volume_reader import load_volume
from volseg.errors import UserError

SHAPE = (9, 7, 5)
ANGLE = np.deg2rad(18)
OBLIQUE = np.array([[np.cos(ANGLE), 0, np.sin(ANGLE)], [0, 1, 0], [-np.sin(ANGLE), 0, np.cos(ANGLE)]])


@pytest.fixture
def metaimage(tmp_path: Path) -> Path:
    image = itk.image_from_array(np.arange(315, dtype=np.int16).reshape(5, 7, 9))  # z, y, x
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-20.5, 11.25, -300))
    image.SetDirection(OBLIQUE)
    itk.imwrite(image, str(tmp_path / "a.mhd"))
    return tmp_path / "a.mhd"


@pytest.fixture
def nifti(tmp_path: Path) -> Path:
    """Two channels, int16."""
    voxels = np.arange(630, dtype=np.int16).reshape(*SHAPE, 2)
    nib.save(nib.Nifti1Image(voxels, np.diag([0.7, -0.8, 2.5, 1])), tmp_path / "a.nii.gz")
    return tmp_path / "a.nii.gz"


def test_metaimage_by_header_and_by_voxels_is_what_a_network_gets(metaimage: Path):
    voxels, grid = read_itk(metaimage)
    loaded = load_volume(metaimage)
    assert voxels.dtype == np.int16 and voxels.shape == grid.shape == read_metaimage_grid(metaimage).shape == SHAPE
    np.testing.assert_array_equal(voxels, loaded[0].numpy())
    np.testing.assert_allclose(grid.affine, loaded.affine.numpy(), atol=1e-9)
    np.testing.assert_allclose(read_metaimage_grid(metaimage).affine, grid.affine, atol=1e-9)


def test_signed_bytes(metaimage: Path):
    voxels = np.random.default_rng(0).integers(-128, 128, (5, 7, 9)).astype(np.int8)
    metaimage.with_suffix(".raw").write_bytes(voxels.tobytes())
    metaimage.write_text(metaimage.read_text().replace("MET_SHORT", "MET_CHAR"))
    assert read_metaimage_grid(metaimage).shape == SHAPE
    np.testing.assert_array_equal(read_itk(metaimage)[0], voxels.transpose())


def test_metaimage_without_all_its_voxels(metaimage: Path):
    raw = metaimage.with_suffix(".raw")
    raw.write_bytes(raw.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"a\.mhd: voxels are missing: a\.raw has 629 bytes, needs at least 630;"):
        read_metaimage_grid(metaimage)
    metaimage.write_text("Not Found")
    for read in (read_metaimage_grid, read_itk):
        with pytest.raises(UserError, match=r"a\.mhd: cannot be read"):
            read(metaimage)


def test_nifti_and_its_channels(nifti: Path, tmp_path: Path):
    voxels, grid = read_nifti(nifti)
    assert grid.shape == (*SHAPE, 2)
    second = nifti_channel(nifti, 1)
    nib.save(second, tmp_path / "second.nii.gz")
    found, found_grid = read_nifti(tmp_path / "second.nii.gz")
    assert found.dtype == np.int16 and found_grid.shape == SHAPE
    np.testing.assert_array_equal(found, voxels[..., 1])
    np.testing.assert_array_equal(found_grid.affine, grid.affine)


def test_damaged_nifti(nifti: Path):
    nifti.write_bytes(nifti.read_bytes()[:-60])
    for read in (read_nifti, lambda path: nifti_channel(path, 1)):
        with pytest.raises(UserError, match=r"a\.nii\.gz: cannot be read, .*; copy the file again"):
            read(nifti)
    with pytest.raises(UserError, match="cannot be read"):
        read_nifti(nifti.with_name("absent.nii.gz"))
