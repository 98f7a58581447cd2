# SPDX-License-Identifier: Apache-2.0
"""Tests of the floor."""

from __future__ import annotations

import torch
from pdvnet_lung.lobe_atlas import LobeAtlas


def lobe_map(fissure: int) -> dict[str, torch.Tensor]:
    """One lung of 56 x 40 x 64 mm, the upper lobe above a cell along z, in cells of 2 mm with a margin of 6."""
    shares = torch.zeros(5, 40, 32, 44)
    shares[0, 6:-6, 6:-6, fissure:-6] = 1
    shares[1, 6:-6, 6:-6, 6:fissure] = 1
    return {"lobe_map": shares}


def test_lobes_where_most_maps_have_them():
    atlas = LobeAtlas([lobe_map(16), lobe_map(16), lobe_map(28)], (38, 15, 42), margin_mm=10.0)
    logits = atlas(torch.rand(2, 1, 38, 15, 42))
    assert logits.shape == (2, 6, 38, 15, 42)
    column = logits.argmax(1)[0, 19, 7].tolist()
    # the grid is 84 mm long, 10 mm of it before the lungs; the fissure of most maps lies 20 mm higher
    assert column == [0] * 5 + [2] * 10 + [1] * 22 + [0] * 5
    assert logits.argmax(1)[0, :, 7, 10].tolist() == [0] * 5 + [2] * 28 + [0] * 5


def test_the_image_does_not_matter():
    atlas = LobeAtlas([lobe_map(20)], (8, 9, 10))
    assert torch.equal(atlas(torch.rand(1, 1, 8, 9, 10)), atlas(torch.zeros(1, 1, 8, 9, 10)))
