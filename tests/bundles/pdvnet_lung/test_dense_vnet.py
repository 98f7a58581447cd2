# SPDX-License-Identifier: Apache-2.0
"""The baseline 3D dense V-Net."""

from __future__ import annotations

import pytest
import torch
from pdvnet_lung.comparisons import DenseVNet

from volseg.errors import UserError


def test_convolution_weights_are_those_of_the_reference_implementation():
    convolutions = [m for m in DenseVNet().modules() if isinstance(m, torch.nn.Conv3d)]
    assert sum(p.numel() for m in convolutions for p in m.parameters()) == 872_784
    assert convolutions[-1].in_channels == 12 + 24 + 24 + 1


def test_logits_have_half_the_size_in_training_and_the_input_size_in_evaluation():
    network, x = DenseVNet(out_channels=3), torch.rand(2, 1, 16, 24, 8)
    assert network(x).shape == (2, 3, 8, 12, 4)
    assert network.eval()(x).shape == (2, 3, 16, 24, 8)


def test_size_that_cannot_be_halved_is_named():
    with pytest.raises(UserError, match=r"DenseVNet needs sizes that are multiples of 8, got 12 along Y"):
        DenseVNet()(torch.rand(1, 1, 16, 12, 8))


def test_gradients_reach_every_parameter():
    network = DenseVNet(dropout=0.5)
    network(torch.rand(1, 1, 16, 24, 8)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
