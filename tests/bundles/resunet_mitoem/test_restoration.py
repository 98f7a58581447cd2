# SPDX-License-Identifier: Apache-2.0
"""Tests of the replacement of noisy sections."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from resunet_mitoem.interpolation import SectionInterpolationNetwork, interpolate_section
from resunet_mitoem.restoration import restore_sections
from torch import nn

from volseg.errors import UserError

SHAPE = (7, 20, 26)


@pytest.fixture(scope="module")
def average() -> SectionInterpolationNetwork:
    """Untrained and without softmax: the exact mean of its two inputs."""
    return SectionInterpolationNetwork((4, 6), normalised=False)


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, SHAPE).astype(np.uint8)


def mean_of(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return (before.astype(float) + after) / 2


class Recorder:
    """An array of a file: remembers what is written, and gives no more than asked."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.written: list[int | slice] = []

    def __getitem__(self, key: int | slice) -> np.ndarray:
        return self.array[key].copy()

    def __setitem__(self, key: int | slice, value: np.ndarray) -> None:
        self.written.append(key)
        self.array[key] = value


def test_sections_are_replaced_and_all_others_stay(average, volume, caplog):
    before = volume.copy()
    with caplog.at_level("INFO"):
        restored = restore_sections(volume, average, [2, 4, 5])
    assert np.array_equal(volume, before)
    assert restored.dtype == np.uint8
    for section in (0, 1, 3, 6):
        assert np.array_equal(restored[section], volume[section])
    # rounded, halves to either side
    assert np.abs(restored[2] - mean_of(volume[1], volume[3])).max() <= 0.501
    for section in (4, 5):
        assert np.abs(restored[section] - mean_of(volume[3], volume[6])).max() <= 0.501
    assert [record.getMessage() for record in caplog.records] == [
        "Section 2 replaced: interpolated from sections 1 and 3",
        "Section 4 replaced: interpolated from sections 3 and 6",
        "Section 5 replaced: interpolated from sections 3 and 6",
    ]


def test_noisy_sections_are_looked_for(average, volume):
    volume[:] = volume[3]
    volume += np.arange(7, dtype=np.uint8)[:, None, None]
    volume = np.concatenate([volume[:3], np.zeros_like(volume[:1]), volume[4:]])
    restored = restore_sections(volume, average)
    assert np.abs(restored[3] - mean_of(volume[2], volume[4])).max() <= 0.501
    assert np.array_equal(np.delete(restored, 3, 0), np.delete(volume, 3, 0))
    assert np.array_equal(restore_sections(volume, average, []), volume)


def test_first_and_last_stay(average, volume, caplog):
    assert np.array_equal(restore_sections(volume, average, [0, 6]), volume)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


def test_in_place_only_the_noisy_are_written(average, volume):
    expected = restore_sections(volume, average, [1, 3])
    file = Recorder(volume)
    assert restore_sections(file, average, [1, 3], output=file) is file
    assert file.written == [1, 3]
    assert np.array_equal(volume, expected)


def test_output_is_written_slab_by_slab(average, volume):
    output = Recorder(np.zeros_like(volume))
    restore_sections(Recorder(volume), average, [3], output=output, slab_depth=4)
    assert output.written == [slice(0, 4), slice(4, 8), 3]
    assert np.array_equal(output.array, restore_sections(volume, average, [3]))


@pytest.mark.parametrize("like", [np.zeros((7, 26, 20), np.uint8), np.zeros(SHAPE, np.float32)])
def test_output_that_does_not_fit(average, volume, like):
    with pytest.raises(UserError, match=r"^output must have .* of the volume, uint8 \(7, 20, 26\), got "):
        restore_sections(volume, average, [3], output=like)
    with pytest.raises(UserError, match=", got 7"):
        restore_sections(volume, average, [7])


def test_float_volumes(average, volume):
    unit = volume.astype(np.float64) / 255
    restored = restore_sections(unit, average, [3])
    assert restored.dtype == np.float64
    np.testing.assert_allclose(restored[3], mean_of(unit[2], unit[4]), atol=1e-6)


@pytest.mark.parametrize("size", [(101, 150), (23, 37)])
def test_tiles_do_not_matter(size):
    torch.manual_seed(0)
    network = SectionInterpolationNetwork((4, 6, 8))
    nn.init.normal_(network.head.weight, std=3.0)
    before, after = np.random.RandomState(0).rand(2, *size).astype(np.float32)
    whole = interpolate_section(network, before, after, tile_size=256)
    assert not np.allclose(whole, mean_of(before, after), atol=0.1)
    for tile_size in (20, 64):
        np.testing.assert_allclose(interpolate_section(network, before, after, tile_size), whole, atol=1e-5)
    with pytest.raises(ValueError, match=r"multiple of 4, got 18"):
        interpolate_section(network, before, after, tile_size=18)


def test_network_sees_a_tile_at_a_time(average):
    sizes = []
    hook = average.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape)))
    interpolate_section(average, *np.zeros((2, 200, 130), np.uint8), tile_size=40)
    hook.remove()
    assert len(sizes) == 5 * 4
    # the reach of 19 pixels, made a multiple of the divisor 2, lies around a tile of 40
    assert max(sizes) == (1, 2, 80, 80)
