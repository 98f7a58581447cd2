# SPDX-License-Identifier: Apache-2.0
"""Tests of motion blur of single sections."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter1d

from volseg.transforms.sections.grey_values import RandMotionBlurd

SIZE = (6, 13, 17)


def image(channels: int = 1) -> torch.Tensor:
    return torch.rand(channels, *SIZE, generator=torch.Generator().manual_seed(0))


def test_a_point_becomes_a_line():
    before = torch.zeros(1, 1, 3, 7)
    before[0, 0, 1, 3] = 0.75
    transform = RandMotionBlurd("image", line_length_pixels=3, prob=1.0).set_random_state(0)
    seen = set()
    for _ in range(20):
        after = transform({"image": before})["image"][0, 0]
        expected = torch.zeros(3, 7)
        if transform.along_x:
            expected[1, 2:5] = 0.25
        else:
            expected[:, 3] = torch.tensor([0.375, 0.25, 0.375])  # two pixels of the line lie within at the borders
        torch.testing.assert_close(after, expected)
        seen.add(transform.along_x)
    assert seen == {True, False}


def test_two_sections_are_blurred_and_others_stay():
    before = image()
    transform = RandMotionBlurd("image", prob=1.0).set_random_state(0)
    hit = set()
    for _ in range(30):
        after = transform({"image": before})["image"]
        changed = (after != before).flatten(2).any(2)[0].nonzero()[:, 0].tolist()
        assert changed == sorted(transform.sections) and len(changed) == 2
        hit.update(changed)
    assert hit == set(range(6))
    assert torch.equal(before, image())


def test_equals_scipy_inside():
    before = image()
    transform = RandMotionBlurd("image", line_length_pixels=5, prob=1.0).set_random_state(0)
    for _ in range(6):
        after = transform({"image": before})["image"][0].numpy()
        axis = 1 if transform.along_x else 0
        for z in transform.sections:
            expected = uniform_filter1d(before[0, z].numpy(), 5, axis=axis)
            np.testing.assert_allclose(after[z, 2:-2, 2:-2], expected[2:-2, 2:-2], atol=1e-6)


def test_values_stay_between_0_and_1():
    # the line is longer than the section is high
    transform = RandMotionBlurd("image", num_sections=9, line_length_pixels=31, prob=1.0).set_random_state(0)
    for _ in range(6):
        after = transform({"image": torch.ones(1, *SIZE)})["image"]
        assert len(transform.sections) == 6
        torch.testing.assert_close(after, torch.ones(1, *SIZE))
        assert after.max() <= 1


def test_entries_share_sections_and_the_label_stays():
    label = torch.ones((1, *SIZE), dtype=torch.int32)
    data = {"image": image(2), "other": image(2)[1:], "label": label}
    result = RandMotionBlurd(["image", "other"], prob=1.0).set_random_state(0)(data)
    assert torch.equal(result["image"][1:], result["other"])
    assert result["label"] is label


def test_random_state_decides():
    def draws(seed):
        transform = RandMotionBlurd("image", prob=0.5).set_random_state(seed)
        return torch.stack([transform({"image": image()})["image"] for _ in range(6)])

    assert torch.equal(draws(1), draws(1))
    assert not torch.equal(draws(1), draws(2))


def test_last_draw_repeats():
    transform = RandMotionBlurd("image", prob=1.0).set_random_state(0)
    first = transform({"image": image()})["image"]
    assert torch.equal(transform({"image": image()}, randomize=False)["image"], first)


def test_never():
    data = {"image": image()}
    assert RandMotionBlurd("image", prob=0.0)(data)["image"] is data["image"]


@pytest.mark.parametrize("length", [10, -1])
def test_length_that_is_not_odd_and_positive(length):
    with pytest.raises(ValueError, match=f"line_length_pixels must be odd and positive, got {length}"):
        RandMotionBlurd("image", line_length_pixels=length)


def test_no_sections():
    with pytest.raises(ValueError, match=r"num_sections must be an integer >= 1, got 0"):
        RandMotionBlurd("image", num_sections=0)
