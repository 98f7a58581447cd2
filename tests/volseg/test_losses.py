# SPDX-License-Identifier: Apache-2.0
"""Tests of the weighted binary cross entropy."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from volseg.losses import WeightedBCELoss, class_balance_weight

GOLDEN = Path(__file__).parents[3] / "shared" / "data" / "mito" / "golden" / "targets_and_decoding.npz"

# a quarter, and three quarters, are foreground
TARGET = torch.tensor([[[[[1.0, 0, 0, 0]]], [[[1.0, 1, 0, 1]]]]])


def example(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(shape, generator=generator) < torch.linspace(0.1, 0.9, shape[1]).view(1, -1, 1, 1, 1)
    return 3 * torch.randn(shape, generator=generator), target.float()


def foreground_of(voxels: int, foreground: int) -> torch.Tensor:
    return (torch.arange(voxels) < foreground).float().view(1, 1, 1, 1, voxels)


def test_the_rarer_class_weighs_more_whichever_it_is():
    torch.testing.assert_close(
        class_balance_weight(TARGET).flatten().tolist(), [3.0, 1.0, 1.0, 1.0, 1.0, 1.0, 3.0, 1.0]
    )


def test_both_classes_weigh_the_same_in_all():
    _, target = example(2, 3, 4, 6, 5)
    weight = class_balance_weight(target)
    assert weight.min() == 1
    foreground, background = (weight * target).sum((2, 3, 4)), (weight * (1 - target)).sum((2, 3, 4))
    torch.testing.assert_close(foreground, background)


@pytest.mark.parametrize(
    ("foreground", "on_foreground", "on_background"), [(1, 19, 1), (10, 9, 1), (50, 1, 1), (80, 1, 4), (99, 1, 99)]
)
def test_fractions_are_clipped(foreground, on_foreground, on_background):
    weight = class_balance_weight(foreground_of(100, foreground)).flatten()
    torch.testing.assert_close(
        weight[[0, -1]].tolist(), [float(on_foreground), float(on_background)], rtol=1e-6, atol=0
    )


def test_the_highest_weight_of_background():
    assert class_balance_weight(foreground_of(1000, 999)).max().item() == pytest.approx(99, rel=1e-5)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_target_that_is_the_same_everywhere_weighs_one(value):
    assert (class_balance_weight(torch.full((1, 2, 3, 4, 5), value)) == 1).all()


def test_every_block_and_channel_is_weighted_by_itself():
    _, target = example(2, 2, 3, 5, 4)
    weight = class_balance_weight(target)
    for b in range(2):
        for c in range(2):
            alone = class_balance_weight(target[b : b + 1, c : c + 1])
            torch.testing.assert_close(weight[b : b + 1, c : c + 1], alone, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float16])
def test_types_of_targets(dtype):
    _, target = example(1, 2, 3, 5, 4)
    torch.testing.assert_close(class_balance_weight(target.to(dtype)), class_balance_weight(target), rtol=0, atol=0)


def test_loss_of_undecided_logits():
    # each channel: ln 2 times a mean weight of 6 / 4
    assert WeightedBCELoss()(torch.zeros_like(TARGET), TARGET).item() == pytest.approx(3 * math.log(2))


def test_loss_is_the_sum_over_channels_of_the_mean_over_voxels():
    logits, target = example(2, 3, 4, 6, 5)
    expected = [
        (class_balance_weight(target[:, c : c + 1]) * F.softplus((1 - 2 * target) * logits)[:, c : c + 1]).mean()
        for c in range(3)
    ]
    assert WeightedBCELoss()(logits, target).item() == pytest.approx(sum(expected).item())
    weighted = WeightedBCELoss(channel_weights=(0.5, 0, 2))(logits, target)
    assert weighted.item() == pytest.approx((0.5 * expected[0] + 2 * expected[2]).item())


def test_gradient():
    logits, target = example(1, 2, 3, 5, 4)
    logits.requires_grad_()
    WeightedBCELoss()(logits, target).backward()
    expected = class_balance_weight(target) * (torch.sigmoid(logits.detach()) - target) / 60
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision(dtype, autocast):
    logits, target = example(1, 2, 3, 5, 4)
    low = logits.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = WeightedBCELoss()(low, target.to(dtype))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, WeightedBCELoss()(low.float(), target), rtol=0, atol=0)


def test_logits_at_the_end_of_half_precision():
    logits = torch.tensor([65504.0, -65504.0]).half().view(1, 1, 1, 1, 2).requires_grad_()
    loss = WeightedBCELoss()(logits, torch.tensor([0.0, 1.0]).view(1, 1, 1, 1, 2))
    loss.backward()
    assert loss.item() == 65504
    assert logits.grad.flatten().tolist() == [0.5, -0.5]


def test_shapes_that_differ():
    with pytest.raises(ValueError, match="size"):
        WeightedBCELoss()(torch.zeros(1, 2, 3, 4, 5), torch.zeros(1, 1, 3, 4, 5))


def test_as_many_factors_as_channels():
    with pytest.raises(ValueError, match=r"one value per channel \(2\), got \(1, 1, 1\)"):
        WeightedBCELoss((1, 1, 1))(torch.zeros_like(TARGET), TARGET)


@pytest.mark.skipif(not GOLDEN.is_file(), reason=f"no reference arrays in {GOLDEN}")
def test_reference_weights():
    with np.load(GOLDEN) as reference:
        weight = class_balance_weight(torch.from_numpy(reference["mask"])[None, None])[0, 0]
        np.testing.assert_array_equal(weight.numpy(), reference["weight_mask"])
