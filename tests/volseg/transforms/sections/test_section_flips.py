# SPDX-License-Identifier: Apache-2.0
"""Tests of flips and the transposition of sections."""

from __future__ import annotations

import math
from collections import Counter
from itertools import product

import pytest
import torch

from volseg.transforms.sections.in_plane import RandSectionFlipsd


def numbered(*size):
    numbers = torch.arange(math.prod(size), dtype=torch.int32).reshape(1, *size)
    return {"image": numbers.float(), "label": numbers}


def flips(**arguments):
    return RandSectionFlipsd(("image", "label"), "label", **arguments).set_random_state(0)


def test_all_four_in_this_order():
    after = flips(prob=1.0)(numbered(2, 3, 3))
    expected = [[[17, 14, 11], [16, 13, 10], [15, 12, 9]], [[8, 5, 2], [7, 4, 1], [6, 3, 0]]]
    assert after["label"][0].tolist() == expected
    assert after["image"][0].tolist() == expected
    assert after["label"].is_contiguous()


def test_the_sixteen_results_are_equally_likely():
    d, transform = numbered(2, 3, 3), flips()
    seen = Counter(tuple(transform(d)["label"].flatten().tolist()) for _ in range(3200))
    assert len(seen) == 16
    assert all(count == pytest.approx(200, abs=60) for count in seen.values())
    assert tuple(d["label"].flatten().tolist()) in seen


def test_sections_that_are_not_square_keep_their_size():
    transform = flips()
    results = {tuple(transform(numbered(2, 3, 4))["label"].flatten().tolist()) for _ in range(100)}
    numbers = numbered(2, 3, 4)["label"]
    expected = {
        tuple(numbers.flip([axis for axis, flip in enumerate(chosen, start=1) if flip]).flatten().tolist())
        for chosen in product((False, True), repeat=3)
    }
    assert results == expected
