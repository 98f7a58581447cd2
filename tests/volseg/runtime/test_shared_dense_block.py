# SPDX-License-Identifier: Apache-2.0
"""A dense block whose input is convolved once is the dense block."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from volseg.blocks import ConvBlock, DenseBlock
from volseg.runtime.accelerate import accelerate
from volseg.runtime.shared_dense_block import SharedDenseBlock, is_applicable, share_dense_blocks


class Net(nn.Module):
    """A dense block, what leaves it, and on demand a second reader of its output."""

    def __init__(self, stride=1, second_reader=False):
        super().__init__()
        torch.manual_seed(0)
        self.dense = DenseBlock(2, 3, 4, dropout=0.5)
        self.leave = ConvBlock(self.dense.out_channels, 5, stride=stride)
        self.second_reader = second_reader
        for module in self.modules():
            if isinstance(module, nn.BatchNorm3d):
                nn.init.uniform_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.normal_(module.bias)
        self.eval()

    def forward(self, x):
        x = self.dense(x)
        return self.leave(x) + x[:, :5] if self.second_reader else self.leave(x)


def image(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize(("stride", "shared"), [(1, nn.Identity), (2, ConvBlock)])
def test_equal_to_the_network(stride, shared):
    network = Net(stride).double()
    before = copy.deepcopy(network.state_dict())
    twin = share_dense_blocks(network, image(1, 2, 4, 4, 4))
    assert [type(child) for child in twin.children()] == [SharedDenseBlock, shared]
    assert [type(child) for child in network.children()] == [DenseBlock, ConvBlock]
    x = image(2, 2, 7, 6, 4)
    torch.testing.assert_close(twin(x), network(x), rtol=0, atol=1e-13)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


def test_input_is_convolved_once_for_all_layers():
    block = share_dense_blocks(Net(), image(1, 2, 4, 4, 4, dtype=torch.float32)).dense
    assert block.of_input.shape == (4 * 3 + 5, 2, 3, 3, 3)
    assert [tuple(weight.shape[:2]) for weight in block.of_added] == [(3, 3), (3, 6), (3, 9), (5, 12)]


def test_hooks_stay_behind():
    network, called = Net(), []
    network.leave.register_forward_hook(lambda *_: called.append(1))
    twin = share_dense_blocks(network, image(1, 2, 4, 4, 4, dtype=torch.float32))
    twin(image(1, 2, 5, 4, 6, dtype=torch.float32))
    assert called == []
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in twin.modules())


def test_runtime_leaves_a_block_with_two_readers_alone():
    pytest.importorskip("openvino")
    network, x = Net(second_reader=True), image(1, 2, 12, 10, 8, dtype=torch.float32)
    with torch.no_grad():
        expected = network(x)
        assert (share_dense_blocks(network, x)(x) - expected).abs().max() > 0.1
        actual = accelerate(network, mode="openvino")(x)
    assert (actual - expected).norm() < 0.02 * expected.norm()


def test_only_where_there_are_dense_blocks():
    assert is_applicable(Net())
    assert not is_applicable(ConvBlock(1, 2))
    assert not is_applicable(DenseBlock(1, 2, 3))
