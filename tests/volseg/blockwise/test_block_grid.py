# SPDX-License-Identifier: Apache-2.0
"""Tests of a volume cut into blocks."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest

from volseg.blockwise.block_grid import BlockGrid, inner_region

GRIDS = [((5, 9, 10), (2, 4, 5)), ((5, 9, 10), (100, 9, 3)), ((1, 1, 1), (1, 1, 1)), ((4, 7, 3), (1, 1, 1))]


@pytest.mark.parametrize(("shape", "block_shape"), GRIDS)
def test_blocks_tile_the_volume_in_the_order_of_their_numbers(shape, block_shape):
    grid = BlockGrid(shape, block_shape)
    covered = np.full(shape, -1)
    for number, block in enumerate(grid):
        assert block.number == number
        assert block == grid.at(block.position)
        assert (covered[block.core] == -1).all()
        assert covered[block.core].shape == block.shape
        covered[block.core] = number
    assert (covered >= 0).all()
    assert len(grid) == covered.max() + 1
    assert [grid[number] for number in range(len(grid))] == list(grid)
    assert all(a.position < b.position for a, b in pairwise(grid))


def test_a_block_says_where_it_is():
    assert str(BlockGrid((5, 9, 10), (2, 4, 5))[17]) == "block 17 (z 4:5, y 8:9, x 5:10)"


def test_a_halo_ends_with_the_volume():
    grid = BlockGrid((5, 9, 10), (2, 4, 5))
    block = grid.at((1, 0, 1))
    region = grid.extended(block, (1, 2, 3), (4, 1, 2))
    assert region == (slice(1, 5), slice(0, 5), slice(2, 10))
    assert inner_region(block.core, region) == (slice(1, 3), slice(0, 4), slice(3, 8))


@pytest.mark.parametrize(("shape", "block_shape"), GRIDS)
def test_intersecting_blocks_are_those_with_voxels_in_the_region(shape, block_shape):
    grid = BlockGrid(shape, block_shape)
    numbers = np.zeros(shape, int)
    for block in grid:
        numbers[block.core] = block.number
    for bounds in product(*([(a, b) for a in range(n) for b in (a + 1, n)] for n in shape)):
        region = tuple(slice(*pair) for pair in bounds)
        assert [block.number for block in grid.intersecting(region)] == np.unique(numbers[region]).tolist()


def test_upper_neighbours_follow_along_one_axis_or_more():
    grid = BlockGrid((6, 6, 6), (2, 2, 2))
    assert len(list(grid.upper_neighbours(grid[0]))) == 7
    assert [block.position for block in grid.upper_neighbours(grid.at((2, 1, 1)))] == [(2, 1, 2), (2, 2, 1), (2, 2, 2)]
    assert list(grid.upper_neighbours(grid[26])) == []


@pytest.mark.parametrize(
    ("shape", "block_shape", "message"),
    [
        ((5, 9), (1, 1, 1), r"shape must be .*, got \(5, 9\)"),
        ((5, 9, 0), (1, 1, 1), r"shape must be .*, got \(5, 9, 0\)"),
        ((5, 9, 9), (1, 1.5, 1), r"block_shape must be .*, got \(1, 1.5, 1\)"),
    ],
)
def test_bad_shapes(shape, block_shape, message):
    with pytest.raises(ValueError, match=message):
        BlockGrid(shape, block_shape)


def test_there_is_no_block_beyond_the_last():
    with pytest.raises(IndexError, match=r"from 0 to 26, got 27"):
        BlockGrid((6, 6, 6), (2, 2, 2))[27]
