# SPDX-License-Identifier: Apache-2.0
"""Tests of the weighted multinomial logistic loss."""

from __future__ import annotations

import math

import pytest
import torch
from vnet_prostate.logistic_loss import WeightedLogisticLoss

TARGET = torch.tensor([1.0, 0, 0, 0, 0, 0]).reshape(1, 1, 3, 2, 1)


def test_both_classes_weigh_the_same():
    logits = torch.zeros(1, 2, 3, 2, 1)
    logits[:, 1] = 3.0  # everything looks like class 1: right for one voxel, wrong for five
    right, wrong = math.log1p(math.exp(-3)), math.log1p(math.exp(3))
    assert WeightedLogisticLoss()(logits, TARGET).item() == pytest.approx((right + wrong) / 2)


def test_a_class_that_is_absent_weighs_nothing():
    logits = torch.randn(1, 2, 3, 2, 1)
    expected = torch.nn.functional.cross_entropy(logits, torch.zeros(1, 3, 2, 1, dtype=torch.long))
    torch.testing.assert_close(WeightedLogisticLoss()(logits, torch.zeros_like(TARGET)), expected)


def test_three_classes():
    target = torch.tensor([2.0, 0, 0, 1, 0, 1]).reshape(1, 1, 3, 2, 1)
    logits = torch.randn(1, 3, 3, 2, 1, dtype=torch.float64)
    losses = -torch.log_softmax(logits, 1).gather(1, target.long())[0, 0].flatten()
    label = target.flatten()
    expected = sum(losses[label == value].mean() for value in range(3)) / 3
    torch.testing.assert_close(WeightedLogisticLoss()(logits, target), expected)
