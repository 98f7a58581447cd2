# SPDX-License-Identifier: Apache-2.0
"""Convolutions by Fourier transforms are the convolutions, to rounding."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from volseg.runtime import dft_convolution
from volseg.runtime.dft_convolution import DftConv3d, count_work, is_eligible, replace_convolutions, tile_length


def convolution(kernel=(5, 5, 5), channels=(16, 17), dtype=torch.float64, bias=True):
    torch.manual_seed(0)
    padding = tuple(size // 2 for size in kernel)
    return nn.Conv3d(*channels, kernel, padding=padding, bias=bias, dtype=dtype).eval()


def image(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.fixture
def every_length(monkeypatch):
    """Small images too are worth a transform."""
    monkeypatch.setattr(dft_convolution, "WEIGHT_VOXELS", 0)
    monkeypatch.setattr(dft_convolution, "WORTHWHILE", 10.0)


@pytest.mark.usefixtures("every_length")
@pytest.mark.parametrize("size", [1, 2, 3, 8, 15, 16, 17, 33, 40])
def test_equal_to_the_convolution_at_every_size(size):
    conv = convolution()
    x = image(2, 16, size, 3, 6)
    with torch.no_grad():
        torch.testing.assert_close(DftConv3d(conv, torch.float64)(x), conv(x), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("length", range(8, 21, 2))
def test_equal_with_every_length_of_tiles(length, monkeypatch):
    monkeypatch.setattr(dft_convolution, "tile_length", lambda *_: length)
    conv = convolution(channels=(16, 16), bias=False)
    x = image(1, 16, 19, 4, 3)
    with torch.no_grad():
        torch.testing.assert_close(DftConv3d(conv, torch.float64)(x), conv(x), rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("every_length")
@pytest.mark.parametrize("kernel", [(5, 1, 3), (7, 5, 3), (9, 3, 1)])
def test_equal_with_other_kernels(kernel):
    conv = convolution(kernel, channels=(19, 16))
    x = image(1, 19, 21, 5, 4)
    with torch.no_grad():
        torch.testing.assert_close(DftConv3d(conv, torch.float64)(x), conv(x), rtol=1e-11, atol=1e-11)


@pytest.mark.usefixtures("every_length")
def test_tiles_worked_on_one_by_one_and_together(monkeypatch):
    dft = DftConv3d(convolution(), torch.float64)
    x = image(1, 16, 50, 3, 6)
    together = dft(x)
    monkeypatch.setattr(dft_convolution, "WORKSPACE_BYTES", 1)
    torch.testing.assert_close(dft(x), together, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("every_length")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 8e-3)])
def test_rounding_is_not_amplified(dtype, tolerance):
    """In bfloat16 the root mean square error is about twice that of one rounding, 2**-8 / sqrt(3)."""
    conv = convolution(channels=(32, 16))
    x = image(1, 32, 32, 6, 9)
    with torch.no_grad():
        expected = conv(x)
    actual = DftConv3d(conv, dtype)(x)
    assert actual.dtype == dtype
    assert (actual - expected).norm() <= tolerance * expected.norm()


def test_layouts_of_the_input_do_not_matter():
    conv = convolution(dtype=torch.float32)
    x = image(2, 16, 32, 12, 9, dtype=torch.float32)
    dft = DftConv3d(conv)
    assert torch.equal(dft(x.contiguous(memory_format=torch.channels_last_3d)), dft(x))
    assert dft(x).is_contiguous(memory_format=torch.channels_last_3d)


def test_weights_are_shared_and_derived_ones_counted():
    conv = convolution()
    dft = DftConv3d(conv, torch.bfloat16)
    assert dft.weight is conv.weight
    assert dft.bias is conv.bias
    assert dft.derived_bytes() == 0
    dft(image(1, 16, 32, 24, 18))
    assert dft.derived_bytes() == 17 * 16 * 17 * 25 * 2  # tiles of 12
    dft(image(1, 16, 4, 2, 3))  # too small for a transform
    assert dft.derived_bytes() == 125 * 16 * 17 * 2


@pytest.mark.parametrize(
    ("sizes", "taps", "expected"),
    [
        ((128, 128, 64), 5, 16),  # 11 tiles of 12
        ((16, 16, 8), 5, 12),  # 2 tiles of 8; one of 16 takes more weights than it saves products
        ((8, 64, 64), 5, 12),  # 1 tile
        ((8, 8, 4), 5, None),  # few voxels, many weights
        ((2, 64, 64), 5, None),
        ((64, 32, 32), 21, None),  # no tile
    ],
)
def test_tile_length(sizes, taps, expected):
    assert tile_length(sizes, taps) == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, True),
        ({"padding": "same"}, True),
        ({"kernel_size": (5, 3, 1), "padding": (2, 1, 0)}, True),
        ({"kernel_size": (3, 5, 5), "padding": (1, 2, 2)}, False),
        ({"kernel_size": (6, 5, 5), "padding": "same"}, False),
        ({"padding": 1}, False),
        ({"padding_mode": "circular"}, False),
        ({"stride": 2}, False),
        ({"dilation": 2, "padding": 4}, False),
        ({"groups": 2}, False),
        ({"in_channels": 1}, False),
        ({"out_channels": 2}, False),
    ],
)
def test_eligible(change, expected):
    conv = nn.Conv3d(**({"in_channels": 16, "out_channels": 32, "kernel_size": 5, "padding": 2} | change))
    assert is_eligible(conv) is expected
    if not expected:
        with pytest.raises(ValueError, match=r"'same' zero padding, 16 or more channels.* Received: Conv3d\("):
            DftConv3d(conv)


def test_other_modules_are_not_eligible():
    assert not is_eligible(nn.Conv2d(16, 16, 5, padding=2))
    assert not is_eligible(DftConv3d(convolution()))
    assert not is_eligible(nn.utils.parametrizations.weight_norm(convolution()))


def test_replace_convolutions_leaves_the_network_as_it_is():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 16, 3, padding=1), nn.PReLU(16), nn.Sequential(convolution(channels=(16, 16))))
    network = network.float().eval()
    seen = []
    network[1].register_forward_hook(lambda *_: seen.append(1))
    copied = replace_convolutions(network)
    assert isinstance(copied[2][0], DftConv3d)
    assert type(network[2][0]) is nn.Conv3d
    assert copied[1].weight is network[1].weight
    x = image(1, 1, 32, 12, 9, dtype=torch.float32)
    with torch.no_grad():
        actual = copied(x)
        assert not seen
        torch.testing.assert_close(actual, network(x), rtol=1e-5, atol=1e-5)
    assert seen
    assert replace_convolutions(network, torch.bfloat16)[0].weight.dtype == torch.bfloat16
    assert network[0].weight.dtype == torch.float32
    assert isinstance(replace_convolutions(network[2][0]), DftConv3d)


def test_count_work():
    conv = convolution(channels=(16, 16), dtype=torch.float32)
    up = nn.ConvTranspose3d(16, 1, 2, stride=2)
    network = replace_convolutions(nn.Sequential(conv, up).eval())
    with count_work(network, (1, 16, 8, 4, 2), (1, 16, 128, 64, 32)) as work:
        network(torch.zeros(1, 16, 8, 4, 2))
    voxels = 128 * 64 * 32
    assert work.plain == voxels * 16 * (16 * 125 + 8)
    assert work.left == pytest.approx(voxels * 16 * (16 * 25 * 23 * 11 / 128 + 8))
    network(torch.zeros(1, 16, 8, 4, 2))  # no longer counted
    assert work.plain == voxels * 16 * (16 * 125 + 8)
