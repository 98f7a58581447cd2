# SPDX-License-Identifier: Apache-2.0
"""Volumes at another voxel size: exact means and interpolation, in any block, without what is blank."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from volseg.data import resampling
from volseg.data.ome_zarr import create_ome_zarr
from volseg.data.open_volume import open_chunked_volume
from volseg.data.resampling import NearestVolume, ResampledVolume, network_shape, resampled, source_region
from volseg.errors import UserError

SHAPE, NEW_SHAPE = (5, 12, 9), (7, 5, 9)


def test_axes_within_ten_percent_stay_and_the_log_says_from_and_to(caplog):
    caplog.set_level(logging.INFO)
    assert network_shape("a.h5", (5, 12, 20), (24, 10, 12), (30, 32, 13)) == (4, 4, 20)
    assert "a.h5: resampled for the network from 24x10x12 to 30x30x12 nm, 5x12x20 to 4x4x20 voxels" in caplog.text
    assert network_shape("a.h5", (5, 12, 20), (28, 34, 32), (30, 32, 32)) is None
    assert network_shape("a.h5", (9, 40, 60), (8, 8, 8), (30, 32, 32)) == (2, 10, 15)
    assert network_shape("a.h5", (1, 12, 20), (5, 32, 64), (30, 32, 32)) == (1, 12, 40)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 1, 2, 3, 4], [0.8, 3.2]),
        ([1, 5], [1, 1.4, 3, 4.6, 5]),
        ([2, 4, 9], [2, 4, 9]),
        ([7], [7, 7]),
    ],
)
def test_means_over_areas_and_linear_interpolation(axis, values, expected):
    shape, new_shape = [1, 1, 1], [1, 1, 1]
    shape[axis], new_shape[axis] = len(values), len(expected)
    whole = tuple(slice(0, n) for n in new_shape)
    found = resampled(np.array(values, np.uint8).reshape(shape), (0, 0, 0), shape, new_shape, whole)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-6)


def test_a_region_is_what_it_is_in_the_whole():
    voxels = np.random.default_rng(0).integers(0, 256, SHAPE).astype(np.uint8)
    whole = resampled(voxels, (0, 0, 0), SHAPE, NEW_SHAPE, tuple(slice(0, n) for n in NEW_SHAPE))
    assert whole.shape == NEW_SHAPE
    for region in (np.s_[0:3, 0:2, 0:4], np.s_[3:7, 2:5, 4:9], np.s_[6:7, 4:5, 0:1]):
        source = source_region(SHAPE, NEW_SHAPE, region)
        starts = [along.start for along in source]
        np.testing.assert_array_equal(resampled(voxels[source], starts, SHAPE, NEW_SHAPE, region), whole[region])


def test_ids_are_those_where_the_centres_of_new_voxels_lie(tmp_path):
    ids = np.arange(2 * 3 * 5, dtype=np.uint32).reshape(2, 3, 5) + 70_000
    with create_ome_zarr(tmp_path / "a.ome.zarr", ids.shape, np.uint32, (30, 8, 8)) as written:
        written[:] = ids
    nearest = NearestVolume(open_chunked_volume(tmp_path / "a.ome.zarr"), (4, 3, 2))
    np.testing.assert_array_equal(nearest[:], ids[[0, 0, 1, 1]][:, :, [1, 3]])
    np.testing.assert_array_equal(nearest[1:3, 2:3, 1:2], ids[[0, 1], 2:3, 3:4])
    assert nearest[2:2].shape == (0, 3, 2)


def test_blank_voxels_are_no_part_of_means(tmp_path, monkeypatch):
    voxels = np.full((2, 4, 6), 5, np.float32)
    voxels[0, :3, 0] = voxels[1, :, 4:] = np.nan
    voxels[0, 0, 1] = 8
    with create_ome_zarr(tmp_path / "a.ome.zarr", voxels.shape, np.float32, (30, 8, 8), (1, 4, 4)) as array:
        array[:] = voxels
    volume = ResampledVolume(open_chunked_volume(tmp_path / "a.ome.zarr"), (2, 2, 3))
    expected = np.full((2, 2, 3), 5, np.float32)
    expected[0, 0, 0] = 6.5
    expected[1, :, 2] = np.nan
    np.testing.assert_allclose(volume[:], expected, rtol=1e-6)
    assert (volume.dtype, volume.chunks) == (np.float32, (1, 2, 2))
    monkeypatch.setattr(resampling, "SLAB_VOXELS", 1)
    np.testing.assert_allclose(volume[0:2, 1:2], expected[:, 1:2], rtol=1e-6)
    assert volume[0:0].shape == (0, 2, 3)


def test_voxels_of_a_scanner_are_refused():
    with pytest.raises(UserError, match=r"a.nii: voxels of 3e\+06x500000x500000 nm .* give --voxel_size_nm"):
        network_shape("a.nii", (9, 10, 11), (3e6, 5e5, 5e5), (30, 32, 32))
