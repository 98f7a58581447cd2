# SPDX-License-Identifier: Apache-2.0
"""Tests of lower resolution in a random cuboid."""

from __future__ import annotations

import pytest
import torch

from volseg.transforms.sections.grey_values import RandCutBlurd

SIZE = (5, 20, 30)


def image(channels: int = 1) -> torch.Tensor:
    return torch.rand(channels, *SIZE, generator=torch.Generator().manual_seed(0))


def test_blur_stays_in_the_cuboid():
    before = image()
    transform = RandCutBlurd("image", prob=1.0).set_random_state(0)
    after = transform({"image": before})["image"]
    assert [s.stop - s.start for s in transform.cuboid] == [2, 8, 12]
    touched = (after != before)[0].nonzero()
    assert touched.amin(0).tolist() == [s.start for s in transform.cuboid]
    assert touched.amax(0).tolist() == [s.stop - 1 for s in transform.cuboid]
    assert torch.equal(before, image())


def test_pixels_become_blocks():
    # 8 x 12 pixels, 4 times down: 2 x 3 blocks
    transform = RandCutBlurd("image", downsampling_range=(4.0, 4.0), prob=1.0).set_random_state(0)
    cuboid = transform({"image": image()})["image"][0][transform.cuboid]
    blocks = cuboid.reshape(2, 2, 4, 3, 4)
    assert torch.equal(blocks, blocks[:, :, :1, :, :1].expand_as(blocks))
    assert len(cuboid.unique()) == 2 * 2 * 3


def test_sections_do_not_mix():
    before = torch.arange(5.0).reshape(1, 5, 1, 1).expand(1, *SIZE) / 5
    after = RandCutBlurd("image", cuboid_fraction=1.0, prob=1.0).set_random_state(0)({"image": before})["image"]
    torch.testing.assert_close(after, before)


def test_finest_stripes_become_grey():
    # without an antialiasing filter black or white would come out
    stripes = (torch.arange(30) % 2).float().expand(1, *SIZE)
    transform = RandCutBlurd("image", cuboid_fraction=1.0, downsampling_range=(5.0, 5.0), prob=1.0)
    after = transform.set_random_state(0)({"image": stripes})["image"]
    # the filter is cut off at the borders
    torch.testing.assert_close(after, torch.full_like(after, 0.5), rtol=0, atol=0.1)


def test_values_stay_between_0_and_1():
    ones = torch.ones(1, *SIZE)
    transform = RandCutBlurd("image", cuboid_fraction=1.0, prob=1.0).set_random_state(0)
    for _ in range(20):
        after = transform({"image": ones})["image"]
        assert after.max() <= 1 and after.min() > 0.9999
        assert 2 <= transform.downsampling <= 8


def test_cuboid_smaller_than_a_block():
    before = torch.rand(1, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    transform = RandCutBlurd("image", cuboid_fraction=1.0, downsampling_range=(8.0, 8.0), prob=1.0)
    after = transform.set_random_state(0)({"image": before})["image"]
    assert len(after.unique()) == 1


def test_entries_share_the_cuboid_and_the_label_stays():
    label = torch.ones((1, *SIZE), dtype=torch.int32)
    data = {"image": image(2), "other": image(2)[1:], "label": label}
    result = RandCutBlurd(["image", "other"], prob=1.0).set_random_state(0)(data)
    assert torch.equal(result["image"][1:], result["other"])
    assert not torch.equal(result["other"], data["other"])
    assert result["label"] is label


def test_random_state_decides():
    def draws(seed):
        transform = RandCutBlurd("image", prob=0.5).set_random_state(seed)
        return torch.stack([transform({"image": image()})["image"] for _ in range(4)])

    assert torch.equal(draws(1), draws(1))
    assert not torch.equal(draws(1), draws(2))


def test_last_draw_repeats():
    transform = RandCutBlurd("image", prob=1.0).set_random_state(0)
    first = transform({"image": image()})["image"]
    assert torch.equal(transform({"image": image()}, randomize=False)["image"], first)


def test_never():
    data = {"image": image()}
    assert RandCutBlurd("image", prob=0.0)(data)["image"] is data["image"]


@pytest.mark.parametrize("factors", [(0.5, 2.0), (8.0, 2.0)])
def test_factors_out_of_range(factors):
    with pytest.raises(ValueError, match=r"downsampling_range must ascend from >= 1, got \(.*\)"):
        RandCutBlurd("image", downsampling_range=factors)


def test_fraction_out_of_range():
    with pytest.raises(ValueError, match=r"cuboid_fraction must be in \(0, 1\], got 0"):
        RandCutBlurd("image", cuboid_fraction=0)
