# SPDX-License-Identifier: Apache-2.0
"""Tests of mixed precision."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from volseg.inferers import autocast as autocast_inferer
from volseg.inferers.autocast import AutocastInferer
from volseg.runtime.accelerate import bfloat16_is_native


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


@pytest.mark.parametrize(
    ("enabled", "native", "seen"),
    [(True, True, torch.bfloat16), (True, False, torch.float32), (False, True, torch.float32)],
)
def test_on_a_cpu_that_has_bfloat16_the_network_runs_in_it(monkeypatch, enabled, native, seen):
    monkeypatch.setattr(autocast_inferer, "bfloat16_is_native", lambda: native)
    network, x = Spy(), torch.randn(1, 1, 5, 4, 6)
    inferer = AutocastInferer(enabled)
    with torch.no_grad():
        output = inferer(x, network)
        assert (network.seen, output.dtype) == (seen, torch.float32)
        expected = network(x)
    assert torch.equal(output, expected) == (seen == torch.float32)
    torch.testing.assert_close(output, expected, atol=0.03, rtol=0.03)


@pytest.mark.skipif(not bfloat16_is_native(), reason="no bfloat16 on this CPU")
def test_on_a_cpu_gradients_reach_weights_in_float32():
    torch.manual_seed(0)
    network, x = Spy(), torch.randn(2, 1, 6, 8, 7)
    network(x).square().sum().backward()
    expected, network.conv.weight.grad = network.conv.weight.grad, None
    AutocastInferer()(x, network).square().sum().backward()
    assert network.seen == torch.bfloat16
    assert network.conv.weight.grad is not None
    assert network.conv.weight.grad.dtype == torch.float32
    assert (network.conv.weight.grad - expected).norm() < 0.02 * expected.norm()


@pytest.mark.skipif(not bfloat16_is_native(), reason="no bfloat16 on this CPU")
@pytest.mark.parametrize(("kernel", "size"), [(5, (8, 4, 6)), (5, (2, 3, 2)), (3, (6, 5, 2)), (3, (2, 2, 2))])
def test_gradients_where_the_grid_is_smaller_than_the_kernel(kernel, size):
    torch.manual_seed(0)
    conv, x = nn.Conv3d(16, 8, kernel, padding=kernel // 2), torch.randn(2, 16, *size)
    conv(x).square().sum().backward()
    expected, conv.weight.grad = conv.weight.grad, None
    AutocastInferer()(x, conv).square().sum().backward()
    assert expected is not None and conv.weight.grad is not None
    assert (conv.weight.grad - expected).norm() < 0.02 * expected.norm()


def test_several_outputs_become_float32():
    outputs = AutocastInferer()(torch.randn(1, 1, 5, 4, 6), lambda x: (x.bfloat16(), x.half()))
    assert [output.dtype for output in outputs] == [torch.float32] * 2


def test_output_in_another_precision_becomes_float32():
    assert AutocastInferer()(torch.randn(1, 1, 5, 4, 6), lambda x: x.bfloat16()).dtype == torch.float32
