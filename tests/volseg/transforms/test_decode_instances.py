# SPDX-License-Identifier: Apache-2.0
"""Tests of instance decoding in a pipeline."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from volseg.instances.decoding import Decoding, decode_instances
from volseg.transforms.decode_instances import DecodeInstancesd

OPTIONS = {"mask_threshold": 0.8, "boundary_threshold": 0.5, "foreground_threshold": 0.5, "min_size": 3}


def prediction() -> torch.Tensor:
    return torch.rand(2, 4, 9, 13, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", ["connected_components", "watershed"])
@pytest.mark.parametrize("logits", [False, True])
def test_equals_the_function(method, logits):
    pred = prediction()
    decode = DecodeInstancesd("pred", Decoding(method, dilation=(1, 1, 3), **OPTIONS), logits)
    labels = decode({"pred": torch.logit(pred) if logits else pred, "image": 1})["pred"]
    assert labels.shape == (1, 4, 9, 13) and labels.dtype == torch.int32
    expected = decode_instances(pred[0], pred[1], Decoding(method, dilation=(1, 1, 3), **OPTIONS))
    assert expected.max() > 5
    np.testing.assert_array_equal(labels[0], expected.astype(np.int32))


def test_meta_data_and_input_stay():
    affine = torch.diag(torch.tensor([30.0, 8.0, 8.0, 1.0], dtype=torch.float64))
    pred = MetaTensor(prediction(), affine=affine, meta={"filename_or_obj": "a.h5"})
    data = {"pred": pred}
    labels = DecodeInstancesd(decoding=Decoding(**OPTIONS))(data)["pred"]
    assert torch.equal(labels.affine, affine) and labels.meta["filename_or_obj"] == "a.h5"
    assert data["pred"] is pred and torch.equal(pred.as_tensor(), prediction())


def test_numpy_stays_numpy():
    labels = DecodeInstancesd("p", Decoding(**OPTIONS))({"p": prediction().numpy()})["p"]
    assert isinstance(labels, np.ndarray) and labels.dtype == np.int32 and labels.shape == (1, 4, 9, 13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8])
def test_other_types(dtype):
    pred = prediction()
    decoding = Decoding("watershed", **OPTIONS)
    pred = (255 * pred).to(dtype) if dtype == torch.uint8 else pred.to(dtype)
    labels = DecodeInstancesd(decoding=decoding)({"pred": pred})["pred"]
    comparable = pred.float() if dtype == torch.bfloat16 else pred
    np.testing.assert_array_equal(labels[0], decode_instances(*comparable, decoding).astype(np.int32))


def test_low_precision_logits():
    logits = torch.logit(prediction()).bfloat16()
    decode = DecodeInstancesd("pred", Decoding(**OPTIONS), logits=True)
    assert torch.equal(decode({"pred": logits})["pred"], decode({"pred": logits.float()})["pred"])


@pytest.mark.parametrize("shape", [(3, 4, 5, 6), (2, 5, 6), (1, 2, 4, 5, 6)])
def test_other_shapes(shape):
    with pytest.raises(ValueError, match=r"pred must be \(2, D, H, W\), mask and boundary, got "):
        DecodeInstancesd()({"pred": torch.zeros(shape)})


def test_missing_key():
    assert DecodeInstancesd(allow_missing_keys=True)({"image": 1}) == {"image": 1}
