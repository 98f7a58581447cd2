# SPDX-License-Identifier: Apache-2.0
"""Linear enlargement by two is PyTorch's."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from volseg.runtime import accelerate as runtime
from volseg.runtime import linear_upsampling
from volseg.runtime.accelerate import accelerate
from volseg.runtime.linear_upsampling import double_linearly


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_by_hand():
    x = torch.tensor([0.0, 4.0, 12.0]).view(1, 1, 3, 1, 1)
    y = double_linearly(x)
    assert y.shape == (1, 1, 6, 2, 2)
    assert y[0, 0, :, 1, 0].tolist() == [0, 1, 3, 6, 10, 12]


@pytest.mark.parametrize("slab_values", [1, 2**7, 2**20])
@pytest.mark.parametrize("shape", [(2, 3, 7, 5, 4), (1, 1, 1, 2, 3), (1, 2, 4, 1, 1)])
def test_equal_to_pytorch(shape, slab_values, monkeypatch):
    monkeypatch.setattr(linear_upsampling, "SLAB_VALUES", slab_values)
    x = noise(*shape)
    expected = F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)
    torch.testing.assert_close(double_linearly(x), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "doubled"),
    [
        ({"scale_factor": 2.0, "mode": "trilinear"}, True),
        ({"scale_factor": 2.0, "mode": "trilinear", "align_corners": True}, False),
        ({"scale_factor": 2.0, "mode": "nearest"}, False),
        ({"scale_factor": 3.0, "mode": "trilinear"}, False),
        ({"scale_factor": (2.0, 2.0, 1.0), "mode": "trilinear"}, False),
    ],
)
def test_runtime_takes_it_for_the_last_step_of_a_network(settings, doubled, monkeypatch):
    pytest.importorskip("openvino")
    network = nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.Upsample(**settings)).eval()
    calls = []
    monkeypatch.setattr(runtime, "double_linearly", lambda x: calls.append(tuple(x.shape)) or double_linearly(x))
    x = noise(1, 1, 12, 10, 8)
    with torch.no_grad():
        expected, actual = network(x), accelerate(network, mode="openvino")(x)
    assert ((1, 2, 12, 10, 8) in calls) is doubled
    assert actual.shape == expected.shape
    assert (actual - expected).norm() < 0.01 * expected.norm()
