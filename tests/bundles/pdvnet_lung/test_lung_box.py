# SPDX-License-Identifier: Apache-2.0
"""Tests of the coarse look that finds the lungs, and of the crop to their box."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from pdvnet_lung.lung_box import CropToLungsd, FindLungsd, coarse_lungs, lung_box

SPACING = np.array([4.0, 5.0, 3.0])


def chest() -> np.ndarray:
    """A trunk with two lungs, gas in stomach and colon, a windpipe and a foam table behind it."""
    hu = np.full((80, 60, 120), -1000, np.float32)
    hu[10:70, 14:50] = 30
    hu[16:36, 20:44, 60:110] = -850
    hu[44:64, 20:44, 60:110] = -850
    hu[38:42, 30:34, 90:] = -1000
    hu[20:30, 30:40, 40:54] = -990
    hu[50:60, 30:40, 10:40] = -800
    hu[5:75, 4:12] = -920
    return hu


def box(hu: np.ndarray, margin_mm: float = 0.0) -> tuple[slice, ...] | None:
    image = MetaTensor(torch.from_numpy(hu)[None], affine=np.diag([*SPACING, 1]))
    return lung_box(coarse_lungs(image), hu.shape, SPACING, margin_mm)


def ends(found: tuple[slice, ...] | None) -> list[int]:
    assert found is not None
    return [v for s in found for v in (s.start, s.stop)]


@pytest.mark.parametrize("margin_mm", [0.0, 12.0])
def test_box_holds_both_lungs_and_neither_table_nor_bowel_nor_neck(margin_mm):
    expected = np.array([16, 64, 20, 44, 60, 110]) + np.repeat(margin_mm / SPACING, 2) * np.tile([-1, 1], 3)
    np.testing.assert_allclose(ends(box(chest(), margin_mm)), expected, atol=3)


@pytest.mark.parametrize("cut", [np.s_[24:], np.s_[:, :36], np.s_[:, :, 80:], np.s_[:, :, :90]])
def test_cut_fields_of_view_keep_what_is_left(cut):
    mask = np.zeros(chest().shape, bool)
    mask[16:64, 20:44, 60:110] = True
    seen = np.argwhere(mask[cut])
    expected = np.stack([seen.min(axis=0), seen.max(axis=0) + 1], axis=1).ravel()
    np.testing.assert_allclose(ends(box(np.ascontiguousarray(chest()[cut]))), expected, atol=3)


def test_one_lung_is_enough():
    hu = chest()
    hu[16:36, 20:44, 60:110] = 20
    assert ends(box(hu))[0] > 40


def test_no_lungs_no_crop():
    hu = chest()
    hu[16:64, 20:44, 60:110] = 30
    hu[50:60, 30:40, 10:40] = 30
    assert box(hu) is None
    image = MetaTensor(torch.from_numpy(hu)[None], affine=np.diag([*SPACING, 1]))
    crop = CropToLungsd("image")
    out = crop({"image": image})
    assert out["image"].shape == image.shape
    assert crop.inverse(out)["image"].shape == image.shape


def test_inverse_puts_the_box_back_and_fills_with_background():
    hu = chest()
    image = MetaTensor(torch.from_numpy(hu)[None], affine=np.diag([*SPACING, 1]))
    crop = CropToLungsd("image", margin_mm=12)
    cropped = crop({"image": image})
    assert cropped["image"].shape[1] < 62
    back = crop.inverse(cropped)["image"]
    lungs = hu == -850
    np.testing.assert_array_equal(back[0].numpy()[lungs], hu[lungs])
    np.testing.assert_array_equal(back.affine, image.affine)
    assert back[0, 0, 0, 0] == 0


def test_windpipe_and_main_bronchi_are_no_lung():
    hu = chest()
    hu[30:50, 30:34, 88:94] = -1000  # into both lungs
    image = MetaTensor(torch.from_numpy(hu)[None], affine=np.diag([*SPACING, 1]))
    lungs = coarse_lungs(image).numpy()
    assert not lungs[37:43, 30:34].any()
    assert lungs[20:28, 24:40, 50:78].all() and lungs[52:60, 24:40, 50:78].all()


def test_the_mask_that_was_found_decides_the_crop():
    image = MetaTensor(torch.from_numpy(chest())[None], affine=np.diag([*SPACING, 1]))
    found = FindLungsd("image")({"image": image})
    assert found["lungs"].shape == (1, 80, 60, 90)  # cells of 4 mm; voxels of 4x5x3 mm are no finer along y
    assert torch.equal(found["lungs"][0], coarse_lungs(image))
    found["lungs"][:, :, :, :60] = 0
    assert CropToLungsd("image", margin_mm=0)(found)["image"].shape[3] < 45
