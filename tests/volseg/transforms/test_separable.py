# SPDX-License-Identifier: Apache-2.0
"""Tests of resampling between grids that share an outline."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from volseg.transforms.grid_resize import area_average, area_weights, linear_weights, resample


def close(a: torch.Tensor, b: list | torch.Tensor, atol: float = 1e-6) -> None:
    torch.testing.assert_close(a.double(), torch.as_tensor(b).double(), rtol=0, atol=atol)


def test_area_weights():
    close(area_weights(3, 2), [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]])
    close(area_weights(4, 2), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    close(area_weights(2, 3), [[1, 0], [0.5, 0.5], [0, 1]])
    close(area_weights(1, 2), [[1], [1]])


def test_linear_weights():
    close(linear_weights(2, 4), [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    close(linear_weights(3, 1), [[0, 1, 0]])
    close(linear_weights(1, 3), [[1], [1], [1]])


@pytest.mark.parametrize("weights", [area_weights, linear_weights])
@pytest.mark.parametrize(("size", "new_size"), [(7, 3), (3, 7), (512, 113), (113, 512), (5, 5)])
def test_rows_add_up_to_one(weights, size, new_size):
    matrix = weights(size, new_size)
    assert matrix.shape == (new_size, size)
    assert (matrix >= 0).all()
    close(matrix.sum(dim=1), torch.ones(new_size), atol=1e-12)
    if size == new_size:
        close(matrix, torch.eye(size), atol=1e-12)


def test_area_average_of_voxels_in_two_cells():
    volume = torch.tensor([0.0, 3.0, 6.0])[:, None, None].expand(3, 2, 5)
    close(area_average(volume, (2, 2, 5)), torch.tensor([1.0, 5.0])[:, None, None].expand(2, 2, 5))


@pytest.mark.parametrize("size", [(3, 5, 2), (7, 4, 9), (1, 1, 1), (8, 11, 10)])
def test_area_average_preserves_the_mean(size):
    volume = torch.rand(7, 11, 5, generator=torch.Generator().manual_seed(0))
    averaged = area_average(volume, size)
    assert averaged.shape == size
    assert float(averaged.mean()) == pytest.approx(float(volume.mean()), abs=1e-6)


@pytest.mark.parametrize("size", [(5, 21, 3), (14, 4, 9), (7, 11, 8)])
def test_linear_resampling_is_that_of_torch(size):
    volume = torch.randn(7, 11, 5, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(volume[None, None], size=size, mode="trilinear", align_corners=False)[0, 0]
    close(resample(volume, size, linear_weights), expected, atol=1e-5)


def test_each_axis_has_its_own_matrix():
    volume = torch.zeros(4, 6, 8)
    volume[3, 0, 2] = 8 * 6 * 4
    averaged = area_average(volume, (2, 3, 4))
    assert averaged.nonzero().tolist() == [[1, 0, 1]]
    assert averaged[1, 0, 1] == 8 * 6 * 4 / 8


def test_result_is_float_and_the_identity_keeps_every_voxel():
    volume = torch.arange(24, dtype=torch.int16).reshape(2, 3, 4)
    same = area_average(volume, (2, 3, 4))
    assert same.dtype == torch.float32
    assert torch.equal(same, volume.float())


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
def test_the_order_in_memory_does_not_matter(order):
    volume = torch.randn(7, 11, 5, generator=torch.Generator().manual_seed(0))
    stored = volume.permute(order).contiguous().permute([order.index(axis) for axis in range(3)])
    close(area_average(stored, (3, 4, 5)), area_average(volume, (3, 4, 5)))
    close(resample(stored, (9, 4, 6), linear_weights), resample(volume, (9, 4, 6), linear_weights))
