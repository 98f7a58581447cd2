# SPDX-License-Identifier: Apache-2.0
"""Tests of the network that predicts a section from its two neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from resunet_mitoem.interpolation import SectionInterpolationNetwork, filter_and_sum, from_unit_range, to_unit_range
from torch import nn

SMALL = (4, 6, 8)


def sections(batch: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 2, height, width, generator=torch.Generator().manual_seed(seed))


def network_with_random_head(**arguments) -> SectionInterpolationNetwork:
    """As if trained: kernels that differ from pixel to pixel."""
    torch.manual_seed(0)
    network = SectionInterpolationNetwork(SMALL, **arguments).eval()
    nn.init.normal_(network.head.weight, std=3.0)
    return network


def test_kernels_that_are_half_an_identity_give_the_average():
    x = sections(2, 5, 7)
    kernels = torch.zeros(2, 2, 9, 5, 7)
    kernels[:, :, 4] = 0.5
    torch.testing.assert_close(filter_and_sum(x, kernels.flatten(1, 2)), x.mean(1, keepdim=True))


@pytest.mark.parametrize(("kernel_size", "tap", "shift"), [(3, 1, (-1, 0)), (3, 5, (0, 1)), (5, 0, (-2, -2))])
@pytest.mark.parametrize("section", [0, 1])
def test_a_tap_takes_the_pixel_beside(kernel_size, tap, shift, section):
    x = sections(1, 6, 8)
    kernels = torch.zeros(1, 2, kernel_size**2, 6, 8)
    kernels[:, section, tap] = 1
    rows, columns = ((torch.arange(n) + s).clamp(0, n - 1) for n, s in zip((6, 8), shift, strict=True))
    expected = x[0, section][rows][:, columns]
    assert torch.equal(filter_and_sum(x, kernels.flatten(1, 2))[0, 0], expected)


def test_kernels_belong_to_pixels():
    x = sections(1, 3, 4)
    kernels = torch.zeros(1, 18, 3, 4)
    kernels[0, 4, 1, 2], kernels[0, 13, 0, 3] = 1, 2
    expected = torch.zeros(3, 4)
    expected[1, 2], expected[0, 3] = x[0, 0, 1, 2], 2 * x[0, 1, 0, 3]
    assert torch.equal(filter_and_sum(x, kernels)[0, 0], expected)


def test_untrained_network_gives_the_average():
    x = sections(1, 9, 14)
    plain = SectionInterpolationNetwork(SMALL, normalised=False)
    torch.testing.assert_close(plain(x), x.mean(1, keepdim=True))
    # with softmax 13 % of the weight lie on the 16 taps that are not the centre
    smoothed = SectionInterpolationNetwork(SMALL)(x)
    assert 0 < (smoothed - x.mean(1, keepdim=True)).abs().max() < 0.13


def test_brightness_is_kept():
    network = network_with_random_head()
    constant = torch.full((1, 2, 10, 13), 0.37)
    torch.testing.assert_close(network(constant), constant[:, :1])
    x = 0.2 + 0.3 * sections(3, 10, 13)
    y = network(x)
    assert x.min() <= y.min() and y.max() <= x.max()
    torch.testing.assert_close(network.kernels(x).sum(1), torch.ones(3, 10, 13))
    free = network_with_random_head(normalised=False)(constant)
    assert (free - 0.37).abs().max() > 0.1


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (16, 24), (17, 33), (40, 5)])
def test_any_size(size):
    network = network_with_random_head()
    assert network.divisor == 4
    y = network(sections(2, *size))
    assert y.shape == (2, 1, *size) and y.isfinite().all()


def test_reach_is_an_upper_bound():
    network = network_with_random_head()
    x = sections(1, 4, 161).requires_grad_()
    network(x)[0, 0, 2, 80].backward()
    columns = x.grad.abs().sum((0, 1, 2)).nonzero().ravel()
    assert columns.min() >= 80 - network.reach and columns.max() <= 80 + network.reach
    # and not a needlessly large one
    assert columns.max() - columns.min() > network.reach


def test_parameters():
    assert sum(p.numel() for p in SectionInterpolationNetwork().parameters()) == 209_946
    assert SectionInterpolationNetwork(SMALL, kernel_size=5).head.out_channels == 50
    with pytest.raises(ValueError, match=r"odd, got 4"):
        SectionInterpolationNetwork(SMALL, kernel_size=4)


def test_motion_is_learnt():
    """A texture that moves by two pixels from one neighbour to the other: the average of the two is blurred."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    network = SectionInterpolationNetwork(SMALL)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)

    def triplet() -> tuple[torch.Tensor, torch.Tensor]:
        texture = torch.rand(2, 1, 20, 26, generator=generator)
        return torch.cat([texture[..., :-2], texture[..., 2:]], dim=1), texture[..., 1:-1]

    for _ in range(40):
        x, target = triplet()
        loss = (network(x) - target).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, target = triplet()
    inner = (..., slice(1, -1))  # at the edges the pixel to take lies outside
    error = (network(x) - target)[inner].abs().mean()
    assert error < 0.1 * (x.mean(1, keepdim=True) - target)[inner].abs().mean()


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_unit_range_and_back(dtype):
    limit = np.iinfo(dtype).max
    numbers = np.array([[0, 1, 7], [100, limit - 1, limit]], dtype)
    unit = to_unit_range(numbers)
    assert unit.dtype == np.float32 and unit.max() == 1
    assert unit[1, 0] == pytest.approx(100 / limit)
    back = from_unit_range(unit, dtype)
    assert back.dtype == dtype and np.array_equal(back, numbers)
    outside = np.array([-0.1, 1.2, 0.6 / limit], np.float32)
    assert from_unit_range(outside, dtype).tolist() == [0, limit, 1]


def test_other_numbers_stay():
    numbers = np.array([0.25, 0.5])
    assert to_unit_range(numbers).tolist() == [0.25, 0.5] and to_unit_range(numbers).dtype == np.float32
    assert from_unit_range(np.array([0.25], np.float32), "float64").dtype == np.float64
