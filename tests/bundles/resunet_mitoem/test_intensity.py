# SPDX-License-Identifier: Apache-2.0
"""Tests of the scale of grey values."""

from __future__ import annotations

import warnings

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from resunet_mitoem import intensity
from resunet_mitoem.intensity import ScaleGreyValuesd

from volseg.data.volume_formats.tiff_stack import ids_from_colors
from volseg.transforms.load_em_volume import to_tensor

SHAPE = (1, 3, 40, 50)


def scaled(image: torch.Tensor | np.ndarray) -> torch.Tensor:
    return ScaleGreyValuesd("image")({"image": image})["image"]


def ramp() -> torch.Tensor:
    """0 to 5999, in no order."""
    return torch.from_numpy(np.random.default_rng(0).permutation(6000)).reshape(SHAPE)


def test_bytes_are_scaled_as_others():
    image = (ramp() % 200 + 20).to(torch.uint8)
    assert scaled(image).dtype == torch.float32
    torch.testing.assert_close(scaled(image), scaled(image.int() * 7 - 3000), atol=1e-5, rtol=0)
    assert (scaled(image).min(), scaled(image).max()) == (0, 1)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64])
def test_others_run_from_percentile_to_percentile(dtype):
    image = (ramp() / 4 if dtype == torch.float16 else ramp()).to(dtype)
    result = scaled(image)
    assert result.dtype == torch.float32
    low, high = 0.001 * 5999, 0.999 * 5999
    expected = ((ramp() - low) / (high - low)).clamp(0, 1).float()
    torch.testing.assert_close(result, expected, atol=1e-3 if dtype == torch.float16 else 1e-5, rtol=0)


def test_shades_of_grey_in_colour_are_bytes():
    grey = (ramp().numpy() % 256).astype(np.uint8)
    colors = np.stack([grey] * 3, axis=-1)
    torch.testing.assert_close(scaled(to_tensor(ids_from_colors(colors))), scaled(grey), atol=1e-5, rtol=0)
    colors[..., 2] = 0
    assert scaled(to_tensor(ids_from_colors(colors))).max() == 1


def test_16_bits_of_numpy():
    image = ramp().numpy().astype(np.uint16) * 10
    torch.testing.assert_close(scaled(image), scaled(ramp()), atol=1e-5, rtol=0)


def test_scale_and_offset_do_not_matter():
    image = ramp().float()
    torch.testing.assert_close(scaled(-40 + 3 * image), scaled(image), atol=1e-4, rtol=0)


@pytest.mark.parametrize("blank", [0.5, 0])
def test_values_that_are_not_finite_become_blank(blank):
    image = ramp().float()
    expected = scaled(image)
    odd = (0, 1, 7)
    image[odd] = torch.tensor([float(v) for v in ("nan", "inf", "-inf")]).repeat(17)[:50]
    result = ScaleGreyValuesd("image", blank)({"image": image})["image"]
    assert (result[odd] == blank).all()
    expected[odd] = blank
    torch.testing.assert_close(result, expected, atol=0.005, rtol=0)
    assert torch.isnan(image[odd]).any()  # the input is left alone


@pytest.mark.parametrize("value", [7.0, float("nan")])
def test_images_of_one_value_are_blank(value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (scaled(torch.full(SHAPE, value)) == 0.5).all()


def test_a_border_has_no_part_in_the_range():
    image = ramp().float()
    spoilt = image.clone()
    spoilt[:, :, :9] = -30000
    low, high = np.percentile(image[:, :, 9:], (0.1, 99.9))
    result = ScaleGreyValuesd("image", float("nan"))({"image": spoilt})["image"]
    assert result[:, :, :9].isnan().all()
    expected = ((image[:, :, 9:] - low) / (high - low)).clamp(0, 1)
    torch.testing.assert_close(result[:, :, 9:].as_subclass(torch.Tensor), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32])
def test_input_is_left_alone_and_meta_data_stay(dtype):
    image = MetaTensor((ramp() % 256).to(dtype), meta={"name": "a"})
    before = image.clone()
    result = scaled(image)
    assert torch.equal(image, before)
    assert isinstance(result, MetaTensor)
    assert result.meta["name"] == "a"


def test_a_crop_is_scaled_as_its_file(tmp_path):
    voxels = ramp().numpy()[0].astype(np.int16)
    nib.save(nib.Nifti1Image(voxels.T, np.eye(4)), tmp_path / "a.nii.gz")
    crop = MetaTensor(ramp()[:, :1, :4, :5], meta={"filename_or_obj": tmp_path / "a.nii.gz"})
    torch.testing.assert_close(scaled(crop), scaled(ramp())[:, :1, :4, :5], atol=1e-5, rtol=0, check_device=False)


def test_percentiles_of_a_sample(monkeypatch):
    """Of 6000 voxels, whose rows have 50 columns, about 600 from all columns are looked at."""
    monkeypatch.setattr(intensity, "SAMPLE", 600)
    image = torch.arange(50).expand(SHAPE).contiguous()
    sizes = []
    percentile = np.percentile
    monkeypatch.setattr(np, "percentile", lambda sample, q: sizes.append(sample.size) or percentile(sample, q))
    result = scaled(image)
    assert sizes == [546]  # every 11th
    assert (result.min(), result.max()) == (0, 1)
    torch.testing.assert_close(result[0, 0, 0], torch.arange(50) / 49, atol=0.01, rtol=0)


def test_other_entries_and_missing_keys():
    label = torch.ones(SHAPE)
    data = ScaleGreyValuesd(["image", "absent"], allow_missing_keys=True)({"image": ramp(), "label": label})
    assert data["label"] is label
    with pytest.raises(KeyError):
        ScaleGreyValuesd("absent")({"image": ramp()})
