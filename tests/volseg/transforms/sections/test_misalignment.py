# SPDX-License-Identifier: Apache-2.0
"""Tests of slipped sections."""

from __future__ import annotations

import math

import pytest
import torch

from volseg.transforms.sections.in_plane import RandMisalignmentd, pixel_positions

SIZE = (4, 7, 9)


def numbered(size=SIZE):
    """Every pixel another number, as image and as label."""
    numbers = torch.arange(math.prod(size), dtype=torch.int32).reshape(1, *size)
    return {"image": numbers.float(), "label": numbers}


def transform(seed=0, **arguments):
    return RandMisalignmentd(("image", "label"), "label", prob=1.0, **arguments).set_random_state(seed)


def draws(count, size=SIZE, **arguments):
    slip = transform(**arguments)
    for _ in range(count):
        slip.randomize(size)
        yield slip


def test_a_shift_moves_whole_pixels():
    for slip in draws(50, max_shift_pixels=3):
        if not slip.is_shift:
            continue
        dy, dx = (slip.positions - pixel_positions(SIZE[1:]))[:, 0, 0].long().tolist()
        before, after = numbered(), {k: slip.move(v, nearest=k == "label") for k, v in numbered().items()}
        inside = [slice(max(-d, 0), n - max(d, 0)) for d, n in zip((dy, dx), SIZE[1:], strict=True)]
        outside = [slice(max(d, 0), n - max(-d, 0)) for d, n in zip((dy, dx), SIZE[1:], strict=True)]
        for key in before:
            moved = after[key][:, slip.sections]
            # exact also where the image is float
            assert torch.equal(moved[:, :, *inside], before[key][:, slip.sections, *outside])


def test_only_the_drawn_sections_move():
    for slip in draws(30, max_shift_pixels=3):
        before = numbered()["label"]
        after = slip.move(before, nearest=True)
        still = torch.ones(SIZE[0], dtype=torch.bool)
        still[slip.sections] = False
        assert still.any() and still[0]
        assert torch.equal(after[:, still], before[:, still])


def test_all_four_kinds_and_all_sections_are_drawn_equally_often():
    kinds, firsts = torch.zeros(2, 2), torch.zeros(SIZE[0])
    for slip in draws(1200):
        kinds[int(slip.is_shift), int(slip.sections.stop == SIZE[0])] += 1 / 1200
        firsts[slip.sections.start] += 1 / 1200
    # with the last section first, one section is all after it
    torch.testing.assert_close(kinds, torch.tensor([[1 / 3, 2 / 3]] * 2) / 2, rtol=0, atol=0.05)
    torch.testing.assert_close(firsts, torch.tensor([0, 1 / 3, 1 / 3, 1 / 3]), rtol=0, atol=0.05)


def test_nothing_moves_further_than_the_largest_shift():
    largest = {True: 0.0, False: 0.0}
    for slip in draws(400, size=(3, 41, 58), max_shift_pixels=5):
        displacement = slip.positions - pixel_positions((41, 58))
        # a shift counts along each axis, a rotation as the crow flies
        length = displacement.abs().max() if slip.is_shift else displacement.norm(dim=0).max()
        largest[slip.is_shift] = max(largest[slip.is_shift], length.item())
    assert largest[True] == 5
    assert 4.9 < largest[False] < 5 + 1e-9


@pytest.mark.parametrize("section", [(1, 1), (5, 1), (2, 3)])
def test_sections_smaller_than_the_shift(section):
    for seed in range(8):
        after = transform(seed, max_shift_pixels=16)(numbered((3, *section)))
        assert after["label"].shape == (1, 3, *section) and after["image"].isfinite().all()


def test_a_single_section_stays():
    before = numbered((1, 5, 6))
    assert torch.equal(transform()(before)["label"], before["label"])
