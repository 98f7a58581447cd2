# SPDX-License-Identifier: Apache-2.0
"""Tests of mixed precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from volseg.autocast_inferer import AutocastInferer


class Spy(nn.Module):
    """A convolution that remembers the type of what it made."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv(x)
        self.seen = out.dtype
        return out


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@needs_gpu
def test_on_a_gpu_the_network_runs_in_bfloat16_and_its_output_is_float32():
    network, x = Spy().cuda(), torch.randn(1, 1, 5, 4, 6).cuda()
    output = AutocastInferer()(x, network)
    assert (network.seen, output.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(output, network(x), atol=0.03, rtol=0.03)


@needs_gpu
def test_on_a_gpu_gradients_reach_weights_in_float32():
    network = Spy().cuda()
    AutocastInferer()(torch.randn(1, 1, 5, 4, 6).cuda(), network).square().sum().backward()
    assert network.conv.weight.grad is not None
    assert network.conv.weight.grad.dtype == torch.float32
    assert network.conv.weight.grad.any()


@pytest.mark.parametrize("enabled", [True, False])
def test_on_a_cpu_nothing_changes(enabled):
    network, x = Spy(), torch.randn(1, 1, 5, 4, 6)
    assert torch.equal(AutocastInferer(enabled)(x, network), network(x))
    assert network.seen == torch.float32


def test_output_in_another_precision_becomes_float32():
    assert AutocastInferer()(torch.randn(1, 1, 5, 4, 6), lambda x: x.bfloat16()).dtype == torch.float32
