# SPDX-License-Identifier: Apache-2.0
"""Tests of the scale of intensities."""

from __future__ import annotations

import pytest
import torch
from vnet_prostate.intensity import LocalContrastd, ZScored, local_contrast, z_score


def test_voxels_above_the_lowest_have_mean_0_and_deviation_1():
    image = torch.tensor([[-3.0, 1, 2], [-3, 5, 8]]).reshape(1, 1, 2, 3)
    scaled = z_score(image).flatten()
    inside = scaled[[1, 2, 4, 5]]
    torch.testing.assert_close(inside.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(inside.std(correction=0), torch.tensor(1.0))
    # mean 4 and variance 7.5 of 1, 2, 5, 8
    torch.testing.assert_close(scaled[0], torch.tensor(-7 / 7.5**0.5))


def test_scale_and_offset_of_the_scanner_do_not_matter():
    image = torch.rand(1, 4, 5, 6)
    torch.testing.assert_close(z_score(1500 * image - 90), z_score(image), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.int16, torch.uint8, torch.float32, torch.float64])
def test_any_type_is_scaled(dtype):
    scaled = z_score(torch.tensor([[0, 1, 2], [0, 5, 8]], dtype=dtype).reshape(1, 1, 2, 3))
    assert scaled.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert float(scaled.flatten()[1]) == pytest.approx(-3 / 7.5**0.5)


def test_rounding_of_the_lowest_voxels_does_not_make_them_count():
    image = torch.tensor([-1024.0, -1023.9999, 1, 2, 5, 8]).reshape(1, 1, 2, 3)
    torch.testing.assert_close(z_score(image).flatten()[2:].mean(), torch.tensor(0.0), atol=1e-6, rtol=0)


def test_constant_images_become_0():
    assert not z_score(torch.full((1, 2, 3, 4), 7.0)).any()


def test_two_values_do_not_divide_by_zero():
    image = torch.zeros(1, 2, 3, 4)
    image[0, 0] = 5
    assert z_score(image).flatten().tolist() == [0.0] * 12 + [-5.0] * 12


def test_dictionary_form_leaves_other_entries_alone():
    data = {"image": torch.rand(1, 2, 3, 4), "label": torch.ones(1, 2, 3, 4)}
    scaled = ZScored("image")(data)
    torch.testing.assert_close(scaled["image"], z_score(data["image"]))
    assert scaled["label"] is data["label"]


def test_a_coil_is_evened_out():
    """Two tissues of contrast 2 below a sensitivity that falls thirtyfold."""
    x = torch.arange(48.0).reshape(-1, 1, 1).expand(48, 40, 12)
    tissue = 1 + (torch.arange(40).reshape(1, -1, 1) // 4 % 2).expand(48, 40, 12).float()
    sensitivity = 30 / (1 + (x / 9) ** 2)
    even = local_contrast((tissue * sensitivity)[None], (6, 6, 4))[0, 6:-6, 6:-6]
    means = torch.stack([even.mean(2)[:, tissue[0, 6:-6, 0] == t].mean(1) for t in (1, 2)])
    assert (means[1] / means[0] > 1.6).all()  # the contrast of the tissues stays
    assert (means.amax(1) / means.amin(1) < 6).all()  # that of the sensitivity, 15 here, does not


@pytest.mark.parametrize(("factor", "offset"), [(1, -1024), (0.001, 3), (20, 0)])
def test_local_contrast_knows_no_offset_and_no_scale(factor, offset):
    image = torch.rand(1, 9, 8, 5, generator=torch.Generator().manual_seed(0))
    expected = LocalContrastd("image", 4.0, (1, 2, 4))({"image": image})["image"]
    torch.testing.assert_close(local_contrast(factor * image + offset, (4, 2, 1)), expected, rtol=1e-3, atol=1e-3)


def test_local_contrast_of_nothing_is_nothing():
    assert not local_contrast(torch.full((1, 2, 3, 4), 7.0), (1, 1, 1)).any()
