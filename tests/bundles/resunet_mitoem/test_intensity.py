# SPDX-License-Identifier: Apache-2.0
"""Tests of the scale of grey values."""

from __future__ import annotations

import warnings

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


def test_bytes_are_divided_by_255():
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    assert scaled(image).flatten().tolist() == pytest.approx([0, 0.2, 1])
    assert scaled(image).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64])
def test_others_run_from_percentile_to_percentile(dtype):
    image = (ramp() / 4 if dtype == torch.float16 else ramp()).to(dtype)
    result = scaled(image)
    assert result.dtype == torch.float32
    low, high = 0.001 * 5999, 0.999 * 5999
    expected = ((ramp() - low) / (high - low)).clamp(0, 1).float()
    torch.testing.assert_close(result, expected, atol=1e-3 if dtype == torch.float16 else 1e-5, rtol=0)


def test_shades_of_grey_in_colour_are_bytes():
    grey = np.array([0, 51, 254], np.uint8).reshape(1, 1, 1, 3)
    colors = np.stack([grey] * 3, axis=-1)
    assert scaled(to_tensor(ids_from_colors(colors))).flatten().tolist() == pytest.approx([0, 0.2, 254 / 255])
    colors[..., 2] = 0
    assert scaled(to_tensor(ids_from_colors(colors))).max() == 1


def test_16_bits_of_numpy():
    image = ramp().numpy().astype(np.uint16) * 10
    torch.testing.assert_close(scaled(image), scaled(ramp()), atol=1e-5, rtol=0)


def test_scale_and_offset_do_not_matter():
    image = ramp().float()
    torch.testing.assert_close(scaled(-40 + 3 * image), scaled(image), atol=1e-4, rtol=0)


def test_values_that_are_not_finite_become_0():
    image = ramp().float()
    expected = scaled(image)
    odd = (0, 1, 7)
    image[odd] = torch.tensor([float(v) for v in ("nan", "inf", "-inf")]).repeat(17)[:50]
    result = scaled(image)
    assert not result[odd].any()
    torch.testing.assert_close(result, expected.index_put(tuple(torch.tensor([i]) for i in odd), torch.zeros(50)),
                               atol=0.005, rtol=0)  # fmt: skip
    assert torch.isnan(image[odd]).any()  # the input is left alone


@pytest.mark.parametrize("value", [7.0, float("nan")])
def test_images_of_one_value_become_0(value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not scaled(torch.full(SHAPE, value)).any()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32])
def test_input_is_left_alone_and_meta_data_stay(dtype):
    image = MetaTensor((ramp() % 256).to(dtype), meta={"filename_or_obj": "a.h5"})
    before = image.clone()
    result = scaled(image)
    assert torch.equal(image, before)
    assert isinstance(result, MetaTensor)
    assert result.meta["filename_or_obj"] == "a.h5"


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
