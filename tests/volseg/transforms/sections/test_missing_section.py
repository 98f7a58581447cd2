# SPDX-License-Identifier: Apache-2.0
"""Tests of missing sections."""

from __future__ import annotations

import pytest
import torch

from volseg.transforms.sections.missing_section import RandMissingSectiond

KEYS = ("image", "label")


def block(depth: int = 7) -> dict[str, torch.Tensor]:
    """Image and label that tell the number of each section."""
    label = torch.arange(depth, dtype=torch.int32).reshape(1, -1, 1, 1).expand(1, depth, 2, 3).contiguous()
    return {"image": label / depth, "label": label}


def numbers(result: dict[str, torch.Tensor]) -> list[int]:
    assert torch.equal(result["label"], result["label"][..., :1, :1].expand_as(result["label"]))
    return result["label"][0, :, 0, 0].tolist()


def test_inner_sections_of_image_and_label_go_together():
    transform = RandMissingSectiond(KEYS, prob=1.0).set_random_state(0)
    gone = set()
    for _ in range(40):
        result = transform(block())
        kept = numbers(result)
        assert result["image"].shape == result["label"].shape == (1, 5, 2, 3)
        assert kept == sorted(kept) and kept[0] == 0 and kept[-1] == 6
        torch.testing.assert_close(result["image"], result["label"] / 7)
        gone |= set(range(7)) - set(kept)
    assert gone == {1, 2, 3, 4, 5}


@pytest.mark.parametrize(
    ("num_sections", "kept"), [(1, [0, 1, 2, 3, 4, 5]), (2, [1, 2, 3, 4, 5]), (3, [1, 2, 3, 4]), (4, [2, 3, 4])]
)
def test_others_are_cropped_to_the_same_depth(num_sections, kept):
    result = RandMissingSectiond(KEYS, num_sections, prob=0.0)(block())
    assert numbers(result) == kept
    torch.testing.assert_close(result["image"], result["label"] / 7)
    assert len(numbers(RandMissingSectiond(KEYS, num_sections, prob=1.0)(block()))) == len(kept)


def test_kinds_stay_and_the_input_too():
    data = block()
    result = RandMissingSectiond(KEYS, prob=1.0)(data)
    assert result["image"].dtype == torch.float32 and result["label"].dtype == torch.int32
    assert torch.equal(data["label"], block()["label"])


def test_only_the_ends_are_left():
    assert numbers(RandMissingSectiond(KEYS, num_sections=5, prob=1.0)(block())) == [0, 6]


def test_random_state_decides():
    def draws(seed):
        transform = RandMissingSectiond(KEYS, prob=0.5).set_random_state(seed)
        return [numbers(transform(block(30))) for _ in range(8)]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)


def test_last_draw_repeats():
    transform = RandMissingSectiond(KEYS, prob=1.0).set_random_state(0)
    first = numbers(transform(block(30)))
    assert numbers(transform(block(30), randomize=False)) == first


def test_too_few_sections():
    with pytest.raises(ValueError, match=r"blocks must have at least 7 sections, got 6"):
        RandMissingSectiond(KEYS, num_sections=5)(block(6))


def test_entries_of_different_depths():
    with pytest.raises(ValueError, match=r"must have one depth, got \[7, 8\] sections"):
        RandMissingSectiond(KEYS)({"image": block(7)["image"], "label": block(8)["label"]})


def test_no_sections():
    with pytest.raises(ValueError, match=r"num_sections must be an integer >= 1, got 0"):
        RandMissingSectiond(KEYS, num_sections=0)


def test_missing_entries():
    transform = RandMissingSectiond(KEYS, allow_missing_keys=True)
    assert transform({"id": "a"}) == {"id": "a"}
    assert transform({"image": block()["image"]})["image"].shape == (1, 5, 2, 3)
