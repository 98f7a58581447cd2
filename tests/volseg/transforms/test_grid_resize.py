# SPDX-License-Identifier: Apache-2.0
"""Tests of rescaling to the network's grid and back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, Orientationd

from volseg.transforms.grid_resize import GridResize, GridResized, area_weights, linear_weights, resample

SIZE = (7, 4, 10)
# voxel axes run to posterior, superior, left; 5 degrees oblique about the patient's long axis
TURN = np.array([[np.cos(0.087), -np.sin(0.087), 0], [np.sin(0.087), np.cos(0.087), 0], [0, 0, 1]])
AFFINE = np.eye(4)
AFFINE[:3, :3] = TURN @ np.array([[0, 0, -1.5], [-0.7, 0, 0], [0, 2.5, 0]])
AFFINE[:3, 3] = (12, -30, 400)


def volume(size: tuple[int, ...] = SIZE) -> MetaTensor:
    values = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    return MetaTensor(values, affine=torch.from_numpy(AFFINE), meta={"filename_or_obj": "a.nii"})


def outline_corners_mm(image: MetaTensor) -> np.ndarray:
    """World coordinates of the eight corners of the box that the voxels fill, not of the corner voxels' centres."""
    ends = [(-0.5, n - 0.5) for n in image.shape[1:]]
    corners = np.array(np.meshgrid(*ends, [1], indexing="ij")).reshape(4, -1)
    return (np.asarray(image.affine, dtype=np.float64) @ corners)[:3]


@pytest.mark.parametrize("size", [(4, 4, 4), (14, 8, 20), (3, 9, 10), (1, 1, 1)])
def test_outline_stays_where_it_is(size):
    image = volume()
    resized = GridResize(size)(image)
    assert resized.shape == (1, *size)
    assert resized.meta["filename_or_obj"] == "a.nii"
    np.testing.assert_allclose(outline_corners_mm(resized), outline_corners_mm(image), atol=1e-4)
    np.testing.assert_allclose(outline_corners_mm(image)[:, 0], AFFINE[:3] @ [-0.5, -0.5, -0.5, 1], atol=1e-4)


def test_averages_where_the_grid_is_coarser_and_interpolates_where_it_is_finer():
    image = volume()
    resized = GridResize((3, 9, 10))(image).as_tensor()[0]
    expected = resample(image.as_tensor()[0], (3, 4, 10), area_weights)
    expected = resample(expected, (3, 9, 10), linear_weights)
    torch.testing.assert_close(resized, expected)


def test_inverse_restores_shape_affine_and_trace():
    image = volume()
    resize = GridResize((3, 9, 5))
    resized = resize(image)
    assert len(resized.applied_operations) == 1
    back = resize.inverse(resized)
    assert back.shape == image.shape
    assert back.applied_operations == []
    np.testing.assert_allclose(back.affine, AFFINE, atol=1e-6)
    torch.testing.assert_close(back.as_tensor()[0], resample(resized.as_tensor()[0], SIZE, linear_weights))


@pytest.mark.parametrize("size", [(3, 9, 5), (14, 2, 10)])
def test_constant_stays_constant(size):
    image = MetaTensor(torch.full((1, *SIZE), -873.5), affine=torch.from_numpy(AFFINE))
    resize = GridResize(size)
    resized = resize(image)
    torch.testing.assert_close(resized.as_tensor(), torch.full((1, *size), -873.5))
    torch.testing.assert_close(resize.inverse(resized).as_tensor(), image.as_tensor())


def test_ramp_survives_the_way_to_a_finer_grid_and_back():
    image = MetaTensor(torch.arange(10.0).expand(1, 7, 4, 10).clone(), affine=torch.from_numpy(AFFINE))
    resize = GridResize((14, 8, 20))
    back = resize.inverse(resize(image))
    # the two voxels at each end are bent by the values beyond the outline that are not known
    torch.testing.assert_close(back[..., 1:-1].as_tensor(), image[..., 1:-1].as_tensor())


def test_monai_inverts_it_after_an_orientation():
    image = volume()
    preprocessing = Compose([Orientationd("image", "RAS", labels=None), GridResized("image", (14, 20, 5))])
    data = preprocessing({"image": image})
    assert data["image"].shape == (1, 14, 20, 5)
    np.testing.assert_allclose(
        sorted(outline_corners_mm(data["image"]).T.round(3).tolist()),
        sorted(outline_corners_mm(image).T.round(3).tolist()),
        atol=2e-3,
    )
    # what the network makes of it: twice the image, without a trace of its own
    data["pred"] = MetaTensor(2 * data["image"].as_tensor())
    back = Invertd("pred", preprocessing, orig_keys="image", nearest_interp=False)(data)["pred"]
    assert back.shape == image.shape
    np.testing.assert_allclose(back.affine, AFFINE, atol=1e-5)
    # (X, Y, Z) of the file are P, S, L: 7 -> 20, 4 -> 5 and 10 -> 14 voxels are all finer
    there = resample(image.as_tensor()[0], (20, 5, 14), linear_weights)
    torch.testing.assert_close(back.as_tensor()[0], 2 * resample(there, SIZE, linear_weights), rtol=1e-4, atol=1e-5)


def test_keys_that_may_be_missing():
    data = {"image": volume()}
    assert set(GridResized(["image", "label"], (2, 2, 2), allow_missing_keys=True)(data)) == {"image"}
    with pytest.raises(KeyError):
        GridResized(["image", "label"], (2, 2, 2))(data)
