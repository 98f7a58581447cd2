# SPDX-License-Identifier: Apache-2.0
"""Tests of lost bands of sections."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import binary_dilation
from skimage.draw import line

from volseg.transforms.sections.grey_values import RandMissingPartsd

SIZE = (9, 23, 37)


def image(channels: int = 1) -> torch.Tensor:
    return torch.rand(channels, *SIZE, generator=torch.Generator().manual_seed(0))


def test_bands_are_dilated_lines_of_the_sections_mean():
    before = image(2)
    transform = RandMissingPartsd("image", half_width_pixels=3, prob=1.0).set_random_state(0)
    for _ in range(5):
        after = transform({"image": before})["image"]
        expected = before.clone()
        for z, (start, end) in transform.lines.items():
            band = np.zeros(SIZE[1:], dtype=bool)
            band[line(*start, *end)] = True
            band = torch.from_numpy(binary_dilation(band, iterations=3))
            for channel in range(2):
                expected[channel, z][band] = before[channel, z].mean()
        torch.testing.assert_close(after, expected)
    assert torch.equal(before, image(2))


def test_known_band():
    before = torch.tensor([[[[1.0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0.5], [0, 0, 0, 0, 0, 0]]]])  # mean 1/12
    transform = RandMissingPartsd("image", half_width_pixels=1, prob=1.0)
    transform.lines = {0: ((0, 0), (2, 0))}
    m = 1 / 12
    expected = torch.tensor([[m, m, 0, 0, 0, 0], [m, m, 0, 0, 0, 0.5], [m, m, 0, 0, 0, 0]])
    torch.testing.assert_close(transform({"image": before}, randomize=False)["image"][0, 0], expected)


def test_lines_run_from_side_to_opposite_side():
    transform = RandMissingPartsd("image", prob=1.0).set_random_state(0)
    along_y, lines = 0, []
    for _ in range(40):
        transform.randomize(SIZE)
        lines += transform.lines.values()
    for (y0, x0), (y1, x1) in lines:
        assert (y0, y1) == (0, 22) or (x0, x1) == (0, 36)
        assert 0 <= min(y0, y1) <= max(y0, y1) <= 22 and 0 <= min(x0, x1) <= max(x0, x1) <= 36
        along_y += (y0, y1) == (0, 22)
    assert 0.3 < along_y / len(lines) < 0.7


def test_two_sections_after_a_band_stay_whole():
    transform = RandMissingPartsd("image", section_prob=1.0, prob=1.0).set_random_state(0)
    transform.randomize(SIZE)
    assert list(transform.lines) == [0, 3, 6]
    transform = RandMissingPartsd("image", section_prob=0.5, intact_sections=1, prob=1.0).set_random_state(0)
    gaps = set()
    for _ in range(30):
        transform.randomize(SIZE)
        gaps |= set(np.diff(list(transform.lines)).tolist())
    assert min(gaps) == 2 and len(gaps) > 2


def test_values_stay_between_0_and_1():
    transform = RandMissingPartsd("image", half_width_pixels=3, prob=1.0).set_random_state(0)
    after = transform({"image": (image() > 0.5).float()})["image"]
    assert after.min() == 0 and after.max() == 1


def test_entries_share_bands_and_the_label_stays():
    label = torch.ones((1, *SIZE), dtype=torch.int32)
    data = {"image": image(2), "other": image(2)[1:], "label": label}
    transform = RandMissingPartsd(["image", "other"], half_width_pixels=3, prob=1.0).set_random_state(0)
    result = transform(data)
    assert torch.equal(result["image"][1:], result["other"])
    assert not torch.equal(result["other"], data["other"])
    assert result["label"] is label


def test_random_state_decides():
    def draws(seed):
        transform = RandMissingPartsd("image", half_width_pixels=2, prob=0.5).set_random_state(seed)
        return torch.stack([transform({"image": image()})["image"] for _ in range(4)])

    assert torch.equal(draws(1), draws(1))
    assert not torch.equal(draws(1), draws(2))


def test_last_draw_repeats():
    transform = RandMissingPartsd("image", half_width_pixels=2, prob=1.0).set_random_state(0)
    first = transform({"image": image()})["image"]
    assert torch.equal(transform({"image": image()}, randomize=False)["image"], first)


def test_never():
    data = {"image": image()}
    assert RandMissingPartsd("image", prob=0.0)(data)["image"] is data["image"]
    unhidden = RandMissingPartsd("image", section_prob=0.0, prob=1.0)(data)["image"]
    assert torch.equal(unhidden, data["image"])
