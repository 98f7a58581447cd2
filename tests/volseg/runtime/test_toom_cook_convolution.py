# SPDX-License-Identifier: Apache-2.0
"""A convolution with half of the products is the convolution."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from volseg.runtime.toom_cook_convolution import PolyphaseNetwork, ToomCookConv3d, is_applicable, is_eligible


def convolution(kernel=(3, 3, 5), channels=(16, 17), bias=True, **arguments):
    torch.manual_seed(0)
    padding = tuple(size // 2 for size in kernel)
    return nn.Conv3d(*channels, kernel, **{"padding": padding, "bias": bias, "dtype": torch.float64} | arguments)


def image(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


class Planar(nn.Module):
    """Looks across planes in two convolutions only; one of them is followed by its activation."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv3d(1, 16, (1, 3, 5), padding=(0, 1, 2))
        self.norm = nn.BatchNorm3d(16)
        self.body = nn.Sequential(nn.Conv3d(16, 18, 3, padding=1), nn.ELU(inplace=True), nn.Upsample(scale_factor=1.0))
        self.last = nn.Conv3d(18, 16, 3, padding="same")

    def forward(self, x):
        x = self.norm(self.first(x))
        return self.last(self.body(x)) + x


@pytest.mark.parametrize("depth", [8, 12, 20])
@pytest.mark.parametrize("bias", [True, False])
def test_equal_to_the_convolution(depth, bias):
    conv, x = convolution(bias=bias), image(2, 16, depth, 5, 7)
    network = PolyphaseNetwork(nn.Sequential(conv))
    assert type(network.network[0]) is ToomCookConv3d
    torch.testing.assert_close(network(x), conv(x).detach(), rtol=0, atol=1e-13)


def test_planes_by_hand():
    conv = convolution((3, 1, 1), (16, 16), bias=False)
    with torch.no_grad():
        conv.weight.zero_()[0, 0, :, 0, 0] = torch.tensor([100.0, 10.0, 1.0])
    x = torch.zeros(1, 16, 8, 1, 1, dtype=torch.float64)
    x[0, 0, :, 0, 0] = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8])
    by_phase = torch.cat([x[:, :, phase::4] for phase in range(4)])
    y = ToomCookConv3d(conv)(by_phase)  # (phase, channel, plane of the phase)
    assert y[:, 0, :, 0, 0].round(decimals=10).tolist() == [[12, 456], [123, 567], [234, 678], [345, 780]]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 0.02)])
def test_rounding_is_amplified_a_little_only(dtype, tolerance):
    conv, x = convolution(channels=(32, 32)), image(1, 32, 16, 9, 8)
    expected = conv(x)
    actual = PolyphaseNetwork(nn.Sequential(copy.deepcopy(conv).to(dtype)))(x.to(dtype)).double()
    assert (actual - expected).norm() < tolerance * expected.norm()


def test_a_network_and_its_copy():
    network, x = Planar().eval(), image(2, 1, 8, 6, 10, dtype=torch.float32)
    called = []
    network.last.register_forward_hook(lambda *_: called.append(1))
    twin = PolyphaseNetwork(network)
    with torch.no_grad():
        expected = network(x)
    assert called == [1]
    torch.testing.assert_close(twin(x), expected, rtol=0, atol=2e-6)
    assert called == [1]
    assert not twin(x).requires_grad
    assert type(network.body[0]) is nn.Conv3d
    assert twin.network.first.weight is network.first.weight
    assert [type(module) for module in twin.network.body] == [ToomCookConv3d, nn.Identity, nn.Upsample]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"padding": "same"}, True),
        ({"padding": 0}, False),
        ({"padding_mode": "reflect"}, False),
        ({"stride": (1, 2, 1)}, False),
        ({"dilation": (1, 1, 2)}, False),
        ({"kernel": (5, 3, 3)}, False),
        ({"kernel": (1, 3, 3)}, False),
        ({"kernel": (3, 2, 3)}, False),
        ({"channels": (16, 15)}, False),
        ({"channels": (32, 32), "groups": 2}, False),
    ],
)
def test_eligible(change, expected):
    conv = convolution(**change)
    assert is_eligible(conv) is expected
    if not expected:
        with pytest.raises(ValueError, match=r"ToomCookConv3d needs .* Received: Conv3d"):
            ToomCookConv3d(conv)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((2, 1, 8, 6, 10), True), ((1, 1, 4, 6, 10), False), ((1, 1, 18, 6, 10), False), ((1, 1, 16, 16), False)],
)
def test_applicable_to_depths_of_four_phases(shape, expected):
    assert is_applicable(Planar(), shape) is expected


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv3d(16, 16, (1, 3, 3), stride=(2, 1, 1)),
        nn.Conv3d(16, 16, 5, padding=2),
        nn.ConvTranspose3d(16, 16, 2, 2),
        nn.Conv2d(16, 16, 3),
    ],
)
def test_applicable_to_no_other_convolution_across_planes(layer):
    shape = (1, 16, 16, 6, 10)
    assert is_applicable(nn.Sequential(convolution()), shape)
    assert not is_applicable(nn.Sequential(convolution(), layer), shape)
    assert not is_applicable(nn.Sequential(nn.Conv3d(16, 16, (1, 3, 3))), shape)
