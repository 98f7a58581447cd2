# SPDX-License-Identifier: Apache-2.0
"""Tests of the floor."""

from __future__ import annotations

import torch
from vnet_prostate.location_prior import LocationPrior


def cases() -> list[dict[str, torch.Tensor]]:
    """Three glands along an axis of six voxels: 0 to 2, 1 to 2 and 1 to 4."""
    masks = torch.zeros(3, 1, 6, 1, 2)
    masks[0, 0, 0:3] = masks[1, 0, 1:3] = masks[2, 0, 1:5] = 1
    return [{"label": mask} for mask in masks]


def test_the_places_of_most_glands_at_the_best_threshold():
    """Dice with 1 to 2: 4/5, 1 and 4/6, mean 0.82; with 0 to 4: 6/8, 4/7 and 8/9, mean 0.74."""
    logits = LocationPrior(cases())(torch.rand(2, 1, 6, 1, 2))
    assert logits.shape == (2, 2, 6, 1, 2)
    assert logits.argmax(1)[0, :, 0, 0].tolist() == [0, 1, 1, 0, 0, 0]
    assert torch.equal(logits[0], logits[1])


def test_the_image_does_not_matter():
    prior = LocationPrior(cases()).eval()
    assert torch.equal(prior(torch.rand(1, 1, 6, 1, 2)), prior(torch.zeros(1, 1, 6, 1, 2)))
