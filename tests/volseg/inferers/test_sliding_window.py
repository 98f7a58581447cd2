# SPDX-License-Identifier: Apache-2.0
"""Blending, borders and test-time augmentation of the sliding window."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from volseg.errors import UserError
from volseg.inferers.sliding_window import BlendedSlidingWindow, gaussian_blend_weight

GOLDEN = Path(__file__).resolve().parents[4] / "shared" / "data" / "mito" / "golden" / "targets_and_decoding.npz"


@pytest.mark.skipif(not GOLDEN.is_file(), reason="needs the golden arrays of targets and decoding")
def test_blend_weight_equals_the_golden_array():
    golden = np.load(GOLDEN)["blend_gaussian_8_32_32"]
    np.testing.assert_allclose(gaussian_blend_weight((8, 32, 32)).numpy(), golden, atol=1e-6)


def test_blend_weight_by_hand():
    # three voxels at -1, 0, 1: exp(-1 / 0.08) = 3.7e-6 at the ends
    np.testing.assert_allclose(gaussian_blend_weight((1, 1, 3))[0, 0], [1.0373e-4, 1.0001, 1.0373e-4], rtol=1e-4)


def two_logits(x):
    """A network of single voxels: what windows, borders and flips are used changes nothing."""
    return torch.cat([x - 0.5, 1 - 2 * x], dim=1)


@pytest.mark.parametrize("size", [(7, 40, 56), (3, 9, 130), (1, 16, 16), (12, 1, 5)])
@pytest.mark.parametrize("augmentation", [0, 4, 16])
def test_a_network_of_single_voxels_gives_what_it_gives_to_the_whole(size, augmentation):
    volume = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0))
    infer = BlendedSlidingWindow((4, 32, 48), test_time_augmentation=augmentation)
    out = infer(volume, two_logits)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, torch.sigmoid(two_logits(volume)), atol=1e-6, rtol=1e-5)


def test_windows_without_tissue_are_not_predicted():
    volume = torch.rand(1, 1, 2, 16, 96, generator=torch.Generator().manual_seed(0))
    volume[..., 40:] = torch.nan
    seen = []

    def network(x):
        seen.append(x)
        return two_logits(x)

    out = BlendedSlidingWindow((2, 16, 16), overlap=(0, 0, 0), padding=(0, 0, 0))(volume, network)
    assert len(seen) == 3
    torch.testing.assert_close(out[..., :40], torch.sigmoid(two_logits(volume[..., :40])))
    assert out[0, :, :, :, 40:].amax((1, 2, 3)).tolist() == [0, 1]


def test_windows_are_no_larger_than_the_volume_and_divisible():
    seen = []

    def network(x):
        seen.append(tuple(x.shape[2:]))
        return x

    BlendedSlidingWindow((100, 64, 96))(torch.rand(1, 1, 5, 50, 200), network)
    assert set(seen) == {(5, 64, 96)}  # 50 rows go up to 64, 5 sections stay 5


def test_small_volumes_are_continued_by_reflection():
    row = torch.arange(3.0).reshape(1, 1, 1, 1, 3)

    seen = []
    BlendedSlidingWindow((1, 1, 16), divisor=(1, 1, 16))(row, lambda x: seen.append(x.clone()) or x)
    # six before, seven after, period 4
    assert seen[0].flatten().tolist() == [2, 1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2, 1, 0, 1]


def test_padding_moves_the_border_into_the_windows():
    """A network that sees zeros beyond its window errs at the border of the volume; with padding it does not."""
    volume = torch.ones(1, 1, 2, 32, 64)
    blur = torch.full((1, 1, 1, 5, 5), 1 / 25)

    def network(x):
        return F.conv3d(x, blur, padding=(0, 2, 2))

    without = BlendedSlidingWindow((2, 16, 32), padding=(0, 0, 0))(volume, network)
    padded = BlendedSlidingWindow((2, 16, 32))(volume, network)
    expected = torch.sigmoid(torch.tensor(1.0))
    assert (without[..., 0, 0] < expected - 0.1).all()
    torch.testing.assert_close(padded, expected.expand_as(padded), atol=2e-3, rtol=0)


def test_augmentation_averages_over_flips_and_transpositions():
    """A network that adds 1 to the logits of the first column: each of the 16 predictions marks one side."""

    def network(x):
        y = torch.zeros_like(x)
        y[..., 0] = 1
        return y

    out = BlendedSlidingWindow((3, 16, 16), test_time_augmentation=16)(torch.zeros(1, 1, 3, 16, 16), network)
    marked, plain = torch.sigmoid(torch.tensor(1.0)), 0.5
    side = (marked + 3 * plain) / 4  # first column in 4 of 16, last column, first and last row likewise
    corner = (2 * marked + 2 * plain) / 4
    torch.testing.assert_close(out[0, 0, 0, 5, 0], side)
    torch.testing.assert_close(out[0, 0, 1, 15, 5], side)
    torch.testing.assert_close(out[0, 0, 2, 0, 15], corner)
    torch.testing.assert_close(out[0, 0, 0, 5, 5], torch.tensor(plain))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 16}, r"^window must be three .* such as \[100,256,256\], got 16$"),
        ({"window": [16, 64]}, r"^window .*, got \[16, 64\]$"),
        ({"window": [16, 64, 0]}, r"^window .*>= 1 .*, got \[16, 64, 0\]$"),
        ({"overlap": [0, 0.5, 1]}, r"^window_overlap .*< 1 .*, got \[0, 0\.5, 1\]$"),
        ({"overlap": 0.5}, r"^window_overlap .*, got 0\.5$"),
        ({"padding": [0, -0.5, 0]}, r"^window_padding .*, got \[0, -0\.5, 0\]$"),
        ({"test_time_augmentation": 8}, r"^test_time_augmentation must be 0, 4 or 16 .*, got 8$"),
        ({"test_time_augmentation": "8"}, r"^test_time_augmentation must be 0, 4 or 16 .*, got '8'$"),
    ],
)
def test_invalid_options(options, message):
    with pytest.raises(UserError, match=message) as caught:
        BlendedSlidingWindow(**options)
    assert "\n" not in str(caught.value)
