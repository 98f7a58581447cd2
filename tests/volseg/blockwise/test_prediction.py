# SPDX-License-Identifier: Apache-2.0
"""Blended windows block by block against the whole volume."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from torch.nn import functional as F

from volseg.blockwise.grey_range import GreyRange
from volseg.blockwise.prediction import predict_block, to_bytes, window_work
from volseg.data.ome_zarr import create_ome_zarr
from volseg.data.open_volume import open_chunked_volume
from volseg.inferers.sliding_window import BlendedSlidingWindow, gaussian_blend_weight

KERNEL = torch.randn(3, 1, 3, 5, 5, generator=torch.Generator().manual_seed(0))


def network(x):
    """Three outputs that depend on neighbours, on zeros beyond the window, and on what is up, left and in front."""
    return F.conv3d(x, KERNEL, padding=(1, 2, 2))


def voxels(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 256, shape).astype(dtype)


def blocks(shape, block_shape):
    """Slices of all blocks, ragged ones at the ends."""
    ranges = (range(0, size, step) for size, step in zip(shape, block_shape, strict=True))
    for corner in itertools.product(*ranges):
        sizes = zip(corner, block_shape, shape, strict=True)
        yield tuple(slice(start, min(start + step, size)) for start, step, size in sizes)


def predict_by_blocks(volume, block_shape, windows, **arguments):
    result = np.full((3, *volume.shape), np.nan, np.float32)
    for core in blocks(volume.shape, block_shape):
        result[(slice(None), *core)] = predict_block(volume, core, network, windows, **arguments).numpy()
    return result


BLOCK_SHAPES = [(100, 100, 100), (4, 16, 16), (3, 17, 23), (5, 7, 64)]


@pytest.mark.parametrize("block_shape", BLOCK_SHAPES)
@pytest.mark.parametrize(
    "shape",
    [(9, 40, 56), (3, 9, 70), (1, 16, 16), (12, 1, 5), (30, 33, 20)],
    ids=["larger", "smaller in z and y", "smaller", "thin", "deeper"],
)
def test_blocks_equal_the_whole_volume(shape, block_shape):
    volume = voxels(*shape)
    windows = BlendedSlidingWindow((8, 32, 32))
    whole = windows(torch.from_numpy(volume)[None, None] / 255, network)[0].numpy()
    np.testing.assert_allclose(predict_by_blocks(volume, block_shape, windows), whole, atol=1e-6)


@pytest.mark.parametrize("augmentation", [4, 16])
@pytest.mark.parametrize("block_shape", [(4, 16, 16), (3, 17, 23)])
def test_blocks_equal_the_whole_volume_with_augmentation(augmentation, block_shape):
    volume = voxels(9, 40, 56)
    windows = BlendedSlidingWindow((8, 32, 48), test_time_augmentation=augmentation)
    whole = windows(torch.from_numpy(volume)[None, None] / 255, network)[0].numpy()
    np.testing.assert_allclose(predict_by_blocks(volume, block_shape, windows), whole, atol=2e-6)


@pytest.mark.parametrize("block_shape", BLOCK_SHAPES[1:])
@pytest.mark.parametrize("activation", ["sigmoid", "softmax", "none"])
def test_blocks_equal_monai_on_the_whole_volume(activation, block_shape):
    volume = voxels(11, 45, 60)
    window = (6, 32, 32)
    outputs = sliding_window_inference(
        torch.from_numpy(volume)[None, None] / 255,
        window,
        1,
        network,
        overlap=0.5,
        roi_weight_map=gaussian_blend_weight(window),
    )[0]
    expected = {"sigmoid": outputs.sigmoid(), "softmax": outputs.softmax(0), "none": outputs}[activation]
    windows = BlendedSlidingWindow(window, overlap=(0.5, 0.5, 0.5), padding=(0, 0, 0), batch_size=3)
    predicted = predict_by_blocks(volume, block_shape, windows, activation=activation)
    assert np.abs(predicted - expected.numpy()).max() < 1e-3


def test_blended_outputs_are_the_same_to_the_last_bit_in_any_block():
    volume = voxels(9, 40, 56)
    windows = BlendedSlidingWindow((8, 32, 32))
    results = [predict_by_blocks(volume, block_shape, windows, activation="none") for block_shape in BLOCK_SHAPES]
    assert all(np.array_equal(result, results[0]) for result in results)


def test_grey_values_are_scaled_alike_in_dark_and_bright_blocks():
    volume = np.zeros((2, 16, 64), np.uint16)
    volume[..., 32:] = 3000
    windows = BlendedSlidingWindow((2, 16, 16))
    grey_range = GreyRange(1000, 3000)

    def means(core):
        return predict_block(volume, core, lambda x: x, windows, grey_range, "none").unique().tolist()

    assert means((slice(0, 2), slice(0, 16), slice(0, 16))) == [0]
    assert means((slice(0, 2), slice(0, 16), slice(48, 64))) == [1]


def test_values_that_are_not_finite_become_0():
    scaled = GreyRange(1, 3)(np.array([np.nan, np.inf, 2, 9], np.float32))
    assert scaled.tolist() == [0, 0, 0.5, 1]
    assert GreyRange(1, 3, clipped=False)(np.array([0, 5], np.int16)).tolist() == [-0.5, 2]


def test_only_the_chunks_around_a_block_are_read(tmp_path):
    shape = (4, 64, 256)
    with create_ome_zarr(tmp_path / "a.ome.zarr", shape, np.uint8, None, chunks=(4, 64, 16)) as array:
        array[:] = voxels(*shape)
    stored = open_chunked_volume(tmp_path / "a.ome.zarr")
    read = []

    class Watched:
        shape, dtype = stored.shape, stored.dtype

        def __getitem__(self, block):
            read.append(block)
            return stored[block]

    core = (slice(0, 4), slice(0, 64), slice(96, 128))
    predict_block(Watched(), core, network, BlendedSlidingWindow((4, 64, 32)))
    (block,) = read
    assert block[2].start >= 96 - 32
    assert block[2].stop <= 128 + 32


def test_bytes_are_truncated():
    assert to_bytes(torch.tensor([0.0, 0.5, 0.999, 1.0])).tolist() == [0, 127, 254, 255]


def test_window_work_counts_the_windows_that_run_twice():
    windows = BlendedSlidingWindow((100, 256, 256))
    assert window_work((100, 4096, 4096), (100, 4096, 4096), windows) == 1
    # 33 windows along an axis; blocks of 1024 take 9 each where they have neighbours on both sides, 9 at the ends too
    assert window_work((100, 4096, 4096), (100, 1024, 4096), windows) == pytest.approx(36 / 33)


def test_other_activations_are_refused():
    with pytest.raises(ValueError, match="softmax"):
        predict_block(voxels(1, 2, 2), (slice(0, 1),) * 3, network, BlendedSlidingWindow(), activation="tanh")
