# SPDX-License-Identifier: Apache-2.0
"""Tests of noise in a random cuboid."""

from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from volseg.transforms.sections.grey_values import RandCutNoised

SIZE = (5, 10, 15)


def image(channels: int = 1) -> torch.Tensor:
    return torch.rand(channels, *SIZE, generator=torch.Generator().manual_seed(0))


def test_noise_stays_in_the_cuboid():
    before = torch.full((1, *SIZE), 0.5)
    transform = RandCutNoised("image", prob=1.0).set_random_state(0)
    for _ in range(5):
        change = (transform({"image": before})["image"] - before)[0]
        touched = change.nonzero()
        assert [s.stop - s.start for s in transform.cuboid] == [2, 4, 6]
        assert touched.amin(0).tolist() == [s.start for s in transform.cuboid]
        assert touched.amax(0).tolist() == [s.stop - 1 for s in transform.cuboid]
        torch.testing.assert_close(change[transform.cuboid], transform.noise)
    assert (before == 0.5).all()


def test_noise_is_uniform():
    transform = RandCutNoised("image", cuboid_fraction=1.0, prob=1.0).set_random_state(0)
    noise = transform({"image": torch.full((1, 7, 60, 50), 0.5)})["image"] - 0.5
    levels = torch.linspace(0, 1, 7)
    torch.testing.assert_close(noise.flatten().quantile(levels), 0.6 * levels - 0.3, rtol=0, atol=0.01)


def test_values_stay_between_0_and_1():
    before = image()
    transform = RandCutNoised("image", cuboid_fraction=1.0, prob=1.0).set_random_state(0)
    after = transform({"image": before})["image"]
    torch.testing.assert_close(after[0], (before[0] + transform.noise).clamp(0, 1))
    assert after.min() == 0 and after.max() == 1


def test_every_place_can_be_hit():
    transform = RandCutNoised("image", prob=1.0).set_random_state(0)
    starts = set()
    for _ in range(60):
        transform.randomize(SIZE)
        starts.add(transform.cuboid[0].start)
    assert starts == {0, 1, 2, 3}


def test_single_section():
    before = torch.full((1, 1, 10, 15), 0.5)
    after = RandCutNoised("image", prob=1.0).set_random_state(0)({"image": before})["image"]
    assert (after != before).sum() == 4 * 6


def test_entries_share_the_noise_and_the_label_stays():
    label = torch.ones((1, *SIZE), dtype=torch.int32)
    data = {"image": torch.full((2, *SIZE), 0.5), "other": torch.full((1, *SIZE), 0.5), "label": label}
    result = RandCutNoised(["image", "other"], prob=1.0).set_random_state(0)(data)
    assert torch.equal(result["image"][:1], result["other"])
    assert torch.equal(result["image"][1:], result["other"])
    assert result["label"] is label


def test_random_state_decides():
    def draws(seed):
        transform = RandCutNoised("image", prob=0.5).set_random_state(seed)
        return torch.stack([transform({"image": image()})["image"] for _ in range(4)])

    assert torch.equal(draws(1), draws(1))
    assert not torch.equal(draws(1), draws(2))


def test_last_draw_repeats():
    transform = RandCutNoised("image", prob=1.0).set_random_state(0)
    first = transform({"image": image()})["image"]
    assert torch.equal(transform({"image": image()}, randomize=False)["image"], first)


def test_never():
    data = {"image": image()}
    assert RandCutNoised("image", prob=0.0)(data)["image"] is data["image"]


def test_kind_stays():
    affine = torch.diag(torch.tensor([30.0, 8, 8, 1])).double()
    result = RandCutNoised("image", prob=1.0)({"image": MetaTensor(image(), affine=affine)})["image"]
    assert isinstance(result, MetaTensor) and result.dtype == torch.float32
    assert torch.equal(result.affine, affine)


@pytest.mark.parametrize("fraction", [0.0, 1.1])
def test_fraction_out_of_range(fraction):
    with pytest.raises(ValueError, match=rf"cuboid_fraction must be in \(0, 1\], got {fraction}"):
        RandCutNoised("image", cuboid_fraction=fraction)


def test_missing_entry():
    assert RandCutNoised("image", prob=1.0, allow_missing_keys=True)({"id": "a"}) == {"id": "a"}
    with pytest.raises(KeyError, match="image"):
        RandCutNoised("image", prob=1.0)({"id": "a"})
