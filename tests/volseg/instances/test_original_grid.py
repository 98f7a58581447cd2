# SPDX-License-Identifier: Apache-2.0
"""Instances from the grid of a network on the grid of their volume."""

from __future__ import annotations

import numpy as np
import pytest

from volseg.instances.decoding import Decoding, decode_instances
from volseg.instances.original_grid import labels_in_volume, labels_of_volume

WATERSHED = Decoding("watershed", foreground_threshold=0.5)
COMPONENTS = Decoding("connected_components")


def noise(shape: tuple[int, ...]) -> np.ndarray:
    """A volume without blank voxels."""
    return np.random.default_rng(0).integers(1, 256, shape).astype(np.uint8)


def row(values: list[float], dtype: type = np.float32) -> np.ndarray:
    return np.array(values, dtype).reshape(1, 1, -1)


@pytest.mark.parametrize("scale", [1, 255])
def test_an_outline_is_where_the_interpolated_probability_is(scale):
    labels = row([3, 3, 0, 0, 0], np.uint32)
    # from 1 to 0.2 between the centres of the second and the third: 0.5 is 3.1 of the volume's voxels from the former
    mask = np.array([[[1, 1, 0.2, 0, 0]]], np.float32)
    # the last two are inside, but nobody's
    crowded = np.array([[[1, 1, 0.2, 1, 1]]], np.float32)
    for probabilities in (mask, crowded):
        stored = probabilities if scale == 1 else (255 * probabilities).astype(np.uint8)
        found = labels_of_volume(labels, stored, WATERSHED, noise((1, 1, 25)))
        assert found.ravel().tolist() == [3] * 11 + [0] * 14


def test_connected_components_have_the_outline_that_they_grew_to():
    labels = row([3, 3, 0, 0, 4], np.uint32)
    found = labels_of_volume(labels, row([0, 0, 0, 0, 0]), COMPONENTS, noise((1, 1, 20)))
    assert found.ravel().tolist() == [3] * 8 + [0] * 8 + [4] * 4


def test_ids_that_touch_keep_their_border():
    found = labels_of_volume(row([1, 2, 2], np.uint32), row([1, 1, 1]), WATERSHED, noise((1, 1, 9)))
    assert found.ravel().tolist() == [1] * 3 + [2] * 6


def test_blank_voxels_have_no_label():
    labels, mask = np.ones((2, 10, 10), np.uint32), np.ones((2, 10, 10), np.float32)
    volume = noise((2, 20, 20))
    volume[1, :16, :17] = 0
    expected = np.ones(volume.shape)
    expected[1, :16, :17] = 0
    np.testing.assert_array_equal(labels_of_volume(labels, mask, WATERSHED, volume), expected)


@pytest.mark.parametrize("decoding", [WATERSHED, COMPONENTS])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_a_region_is_what_it_is_in_the_whole(decoding, dtype, monkeypatch):
    shape, new_shape = (6, 8, 10), (4, 21, 13)
    mask = (np.random.default_rng(1).random(shape) * (1 if dtype == np.float32 else 255)).astype(dtype)
    labels = decode_instances(mask, np.zeros(shape, dtype), Decoding(decoding.method, 0.9, 1, 0.5, 1, (1, 1, 1)))
    assert labels.max() > 3
    volume = noise(new_shape)
    whole = labels_of_volume(labels, mask, decoding, volume)
    assert set(np.unique(whole)) > {0}
    for region in (np.s_[0:2, 0:9, 5:13], np.s_[2:4, 9:21, 0:5], np.s_[1:2, 20:21, 12:13]):
        np.testing.assert_array_equal(labels_in_volume(labels, mask, decoding, volume, region), whole[region])
    monkeypatch.setattr("volseg.instances.original_grid.SLAB_VOXELS", 1)
    monkeypatch.setattr("volseg.instances.original_grid.TILE", (1, 5, 4))
    np.testing.assert_array_equal(labels_of_volume(labels, mask, decoding, volume), whole)
