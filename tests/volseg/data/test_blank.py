# SPDX-License-Identifier: Apache-2.0
"""Tests of what counts as no tissue."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from volseg.data.blank import find_blank, find_blank_in
from volseg.data.open_volume import open_chunked_volume

REAL = Path(__file__).parents[4] / "shared" / "data" / "mito" / "sbem_cdeep3m" / "images"
SHAPE = (3, 70, 90)


def tissue(dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(3, 250, SHAPE).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.uint32, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("fill", [0, 2, 127])
def test_borders_squares_and_sections_of_one_value_are_blank(dtype, fill):
    voxels, expected = tissue(dtype), np.zeros(SHAPE, bool)
    for part in ((0, slice(8)), (0, slice(None), slice(-8, None)), (1,), (2, slice(20, 35), slice(40, 55))):
        voxels[part], expected[part] = fill, True
    found = find_blank(voxels)
    assert found[expected].all()
    assert (found != expected).sum() <= 3  # pixels of tissue beside it that have its value


def test_smaller_parts_of_one_value_are_tissue():
    voxels = tissue()
    voxels[0, 20:34, 40:60] = 0
    voxels[1, :7] = 255
    assert not find_blank(voxels).any()


def test_a_rotated_border_is_blank_up_to_the_tissue():
    voxels = tissue()
    rows, columns = np.mgrid[:70, :90]
    corner = rows + columns < 40
    voxels[:, corner] = 1
    assert np.array_equal(find_blank(voxels), np.broadcast_to(corner, SHAPE))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_blank_and_nothing_beside_it(value):
    voxels, expected = tissue(np.float32), np.zeros(SHAPE, bool)
    expected[1, 3, 5] = expected[2, :, 30:] = True
    voxels[expected] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(find_blank(voxels), expected)


def test_a_region_is_as_in_the_whole_volume():
    voxels = np.random.default_rng(1).integers(3, 250, (2, 150, 160)).astype(np.uint8)
    voxels[:, :40, :60] = voxels[0, 60:80, 50:80] = voxels[1, 100:, 17:33] = voxels[1, 80:100, 19] = 9
    whole = find_blank(voxels)
    for y in range(0, 150, 19):
        for x in range(0, 160, 23):
            region = (slice(0, 2), slice(y, min(150, y + 19)), slice(x, min(160, x + 23)))
            assert np.array_equal(find_blank_in(voxels, region), whole[region])


@pytest.mark.skipif(not REAL.is_dir(), reason="the real sections are not on this machine")
def test_nothing_of_real_tissue_is_blank():
    assert not find_blank(open_chunked_volume(REAL)[:]).any()
