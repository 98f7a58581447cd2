# SPDX-License-Identifier: Apache-2.0
"""Tests of the Dice that a network expects, and of the warning of a low one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from volseg.transforms.expected_dice import ExpectedDiced, expected_dice


@pytest.mark.parametrize(
    ("probability", "expected"),
    [
        ([1, 1, 1, 0, 0, 0], 1.0),
        # twice the 1.4 inside, over 2 voxels and 1.5 in all
        ([0.8, 0.6, 0.1, 0, 0, 0], 2 * 1.4 / (2 + 1.5)),
        ([0.4, 0.3, 0, 0, 0, 0], math.nan),
    ],
)
def test_expected_dice(probability, expected):
    volume = torch.tensor(probability, dtype=torch.float32).reshape(1, 6, 1)
    assert expected_dice(volume, volume > 0.5) == pytest.approx(expected, nan_ok=True)


def test_expectation_is_what_truths_drawn_from_the_probabilities_give():
    rng = np.random.default_rng(0)
    distance = np.linalg.norm(np.indices((14, 16, 12)).T - (7, 8, 6), axis=-1).T
    probability = 1 / (1 + np.exp(2 * (distance - 4)))
    mask = probability > 0.4
    scores = []
    for _ in range(200):
        truth = rng.random(probability.shape) < probability
        scores.append(2 * np.count_nonzero(mask & truth) / (mask.sum() + truth.sum()))
    expected = expected_dice(torch.as_tensor(probability), torch.as_tensor(mask))
    assert expected == pytest.approx(np.mean(scores), abs=0.005)


def _logits(shape: tuple[int, int, int]) -> torch.Tensor:
    """Three classes ``(3, X, Y, Z)``: the first structure is sure, the second is not, elsewhere is background."""
    probabilities = torch.zeros(3, *shape)
    probabilities[0] = 1
    x, y, z = shape
    probabilities[:, : x // 2, : y // 2, : z // 2] = torch.tensor([0.05, 0.9, 0.05]).reshape(3, 1, 1, 1)
    probabilities[:, x // 2 :, y // 2 :, z // 2 :] = torch.tensor([0.35, 0.1, 0.55]).reshape(3, 1, 1, 1)
    return probabilities.log()


@pytest.mark.parametrize("shape", [(8, 10, 12), (160, 140, 120)], ids=["all voxels", "every second one"])
def test_only_the_unsure_structure_is_warned_of(caplog, shape):
    names = {"1": "upper", "2": "lower"}
    item = {"pred": _logits(shape), "image": MetaTensor(torch.zeros(1, 2, 2, 2), meta={"filename_or_obj": "ct.nii.gz"})}
    quality = ExpectedDiced("pred", names)(item)["image"].meta["quality"]
    assert quality == {"expected_dice": {"upper": round(1.8 / 2, 3), "lower": round(1.1 / 1.6, 3)}}
    [message] = caplog.messages
    assert message.startswith("ct.nii.gz: the network is unsure: it expects a Dice with the truth of 0.69 for lower,")


@pytest.mark.parametrize(("largest_piece", "expected"), [(True, 2 * 2.4 / (3 + 4)), (False, 2 * 4 / (5 + 4))])
def test_smaller_pieces_count_as_missed_where_they_are_removed(largest_piece, expected):
    probability = torch.tensor([0.8, 0.8, 0.8, 0, 0.8, 0.8]).reshape(1, 1, 6, 1)
    transform = ExpectedDiced("pred", {"0": "cells"}, 0.5, logits=False, largest_piece=largest_piece)
    item = transform({"pred": probability, "image": MetaTensor(torch.zeros(1, 1, 6, 1))})
    assert item["image"].meta["quality"]["expected_dice"] == {"cells": round(expected, 3)}


def test_nothing_is_expected_where_the_image_is_blank():
    probability = torch.tensor([0.8, 0.8, 0.4, 0.9]).reshape(1, 1, 4, 1)
    image = MetaTensor(torch.tensor([0.3, 0.2, torch.nan, torch.nan]).reshape(1, 1, 4, 1))
    item = ExpectedDiced("pred", {"0": "cells"}, 0.5, logits=False)({"pred": probability, "image": image})
    assert item["image"].meta["quality"]["expected_dice"] == {"cells": round(2 * 1.6 / (2 + 1.6), 3)}


def test_threshold_decides_what_is_found():
    item = {"pred": _logits((8, 10, 12)), "image": MetaTensor(torch.zeros(1, 2, 2, 2))}
    for threshold, found in ((0.5, {"lower": 0.688}), (0.6, {})):
        transform = ExpectedDiced("pred", {"2": "lower"}, threshold)
        assert transform(item)["image"].meta["quality"] == {"expected_dice": found}
