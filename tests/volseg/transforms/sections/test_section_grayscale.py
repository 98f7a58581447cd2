# SPDX-License-Identifier: Apache-2.0
"""Tests of contrast, brightness and gamma of sections."""

from __future__ import annotations

import torch

from volseg.transforms.sections.grey_values import RandSectionGrayscaled

SIZE = (4, 5, 6)


def image(channels: int = 1) -> torch.Tensor:
    return torch.rand(channels, *SIZE, generator=torch.Generator().manual_seed(0))


def test_known_values():
    transform = RandSectionGrayscaled("image", per_section_prob=1.0, prob=1.0)
    transform.randomize((2, 1, 4))
    transform.contrast = torch.tensor([1.0, 2.0]).reshape(2, 1, 1)
    transform.brightness = torch.tensor([0.0, -0.5]).reshape(2, 1, 1)
    transform.gamma = torch.tensor([2.0, 0.5]).reshape(2, 1, 1)
    before = torch.tensor([0.0, 0.25, 0.5, 1.0]).expand(1, 2, 1, 4)
    after = transform({"image": before}, randomize=False)["image"]
    torch.testing.assert_close(after, torch.tensor([[[[0, 0.0625, 0.25, 1]], [[0, 0, 0.5**0.5, 1]]]]))
    assert before[0, 1, 0].tolist() == [0, 0.25, 0.5, 1]


def test_each_section_or_the_volume():
    grey = torch.full((1, *SIZE), 0.5)
    per_section = RandSectionGrayscaled("image", per_section_prob=1.0, prob=1.0).set_random_state(0)({"image": grey})
    assert len(per_section["image"].unique()) == 4
    per_volume = RandSectionGrayscaled("image", per_section_prob=0.0, prob=1.0).set_random_state(0)({"image": grey})
    assert len(per_volume["image"].unique()) == 1
    assert per_volume["image"].unique() != 0.5
    transform = RandSectionGrayscaled("image", prob=1.0).set_random_state(0)
    assert {len(transform({"image": grey})["image"].unique()) for _ in range(20)} == {1, 4}


def test_ranges():
    transform = RandSectionGrayscaled("image", per_section_prob=1.0, prob=1.0).set_random_state(0)
    transform.randomize((4000, 1, 1))
    quarters = torch.linspace(0, 1, 5)
    for values, expected in (
        (transform.contrast, [0.85, 0.925, 1, 1.075, 1.15]),
        (transform.brightness, [-0.15, -0.075, 0, 0.075, 0.15]),
        (transform.gamma.log2(), [-1, -0.5, 0, 0.5, 1]),
    ):
        assert values.shape == (4000, 1, 1)
        torch.testing.assert_close(values.flatten().quantile(quarters), torch.tensor(expected), rtol=0, atol=0.04)


def test_the_three_are_independent():
    for name in ("contrast_width", "brightness_width", "gamma_octaves"):
        off = {"contrast_width": 0.0, "brightness_width": 0.0, "gamma_octaves": 0.0}
        before = image() / 2 + 0.25
        unchanged = RandSectionGrayscaled("image", **off, prob=1.0).set_random_state(0)({"image": before})["image"]
        torch.testing.assert_close(unchanged, before)
        changed = RandSectionGrayscaled("image", **{**off, name: 0.2}, prob=1.0).set_random_state(0)
        assert (changed({"image": before})["image"] - before).abs().max() > 0.005


def test_values_stay_between_0_and_1():
    transform = RandSectionGrayscaled("image", prob=1.0).set_random_state(0)
    for _ in range(30):
        after = transform({"image": (image() > 0.5).float()})["image"]
        assert after.min() >= 0 and after.max() <= 1


def test_entries_share_values_and_the_label_stays():
    label = torch.ones((1, *SIZE), dtype=torch.int32)
    data = {"image": image(2), "other": image(2)[1:], "label": label}
    result = RandSectionGrayscaled(["image", "other"], prob=1.0).set_random_state(0)(data)
    torch.testing.assert_close(result["image"][1:], result["other"])
    assert not torch.equal(result["other"], data["other"])
    assert result["label"] is label


def test_random_state_decides():
    def draws(seed):
        transform = RandSectionGrayscaled("image", prob=0.5).set_random_state(seed)
        return torch.stack([transform({"image": image()})["image"] for _ in range(4)])

    assert torch.equal(draws(1), draws(1))
    assert not torch.equal(draws(1), draws(2))


def test_last_draw_repeats():
    transform = RandSectionGrayscaled("image", prob=1.0).set_random_state(0)
    first = transform({"image": image()})["image"]
    assert torch.equal(transform({"image": image()}, randomize=False)["image"], first)


def test_never():
    data = {"image": image()}
    assert RandSectionGrayscaled("image", prob=0.0)(data)["image"] is data["image"]
