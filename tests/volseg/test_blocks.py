# SPDX-License-Identifier: Apache-2.0
"""Tests of the dense block and its checkpointing, and of the anisotropic convolution block."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from volseg.blocks import AnisotropicConvBlock, ConvBlock, DenseBlock

SHAPE = (2, 3, 6, 5, 4)


def test_conv_block_is_convolution_without_bias_norm_and_a_slope_per_channel():
    block = ConvBlock(2, 5, kernel_size=5, stride=2)
    conv, norm, activation = block
    assert (conv.kernel_size, conv.stride, conv.bias) == ((5, 5, 5), (2, 2, 2), None)
    assert (norm.num_features, activation.num_parameters) == (5, 5)
    assert block(torch.zeros(1, 2, 7, 6, 4)).shape == (1, 5, 4, 3, 2)


@pytest.mark.parametrize(("channels", "growth", "layers", "out"), [(25, 4, 5, 45), (24, 8, 10, 104), (24, 16, 10, 184)])
def test_channels_of_the_paper(channels, growth, layers, out):
    block = DenseBlock(channels, growth, layers)
    assert block.out_channels == out
    assert [layer[0].in_channels for layer in block.layers] == [channels + i * growth for i in range(layers)]
    assert block.eval()(torch.zeros(1, channels, 3, 2, 1)).shape == (1, out, 3, 2, 1)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_output_is_input_then_each_layer_of_all_before(checkpointing):
    torch.manual_seed(0)
    block = DenseBlock(3, 2, 3, checkpointing=checkpointing)
    x = torch.randn(SHAPE)
    y = block(x)
    torch.testing.assert_close(y[:, :3], x, rtol=0, atol=0)
    for i, layer in enumerate(block.layers):
        seen = 3 + 2 * i
        torch.testing.assert_close(y[:, seen : seen + 2], layer(y[:, :seen]))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_after_every_layer_but_the_last(checkpointing):
    block = DenseBlock(3, 2, 3, dropout=1.0, checkpointing=checkpointing)
    nn.init.constant_(block.layers[2][1].bias, 1.0)
    y = block(torch.ones(SHAPE))
    assert y[:, 3:7].count_nonzero() == 0
    assert y[:, 7:].count_nonzero() == y[:, 7:].numel()
    assert block.eval()(torch.ones(SHAPE))[:, 3:7].count_nonzero() > 0


def test_no_dropout_by_default():
    assert not any(isinstance(m, nn.Dropout) for m in DenseBlock(3, 2, 3).modules())


def test_checkpointing_changes_neither_outputs_nor_gradients_nor_statistics():
    torch.manual_seed(0)
    plain = DenseBlock(3, 2, 4, dropout=0.3)
    saving = copy.deepcopy(plain)
    saving.checkpointing = True
    results = []
    for block in (plain, saving):
        torch.manual_seed(1)
        x = torch.randn(SHAPE, requires_grad=True)
        for _ in range(2):  # a second step would show statistics that were counted twice
            y = block(x)
            y.square().sum().backward()
        results.append((y.detach(), x.grad, [p.grad for p in block.parameters()]))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    assert plain.state_dict().keys() == saving.state_dict().keys()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(saving.state_dict()[name], value, rtol=0, atol=0, msg=name)
    assert saving.layers[0][1].num_batches_tracked == 2


def test_checkpointing_keeps_no_concatenation_for_the_backward_pass():
    def kept_bytes(checkpointing: bool) -> int:
        block = DenseBlock(8, 2, 5, checkpointing=checkpointing)
        kept = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            y = block(torch.randn(1, 8, 16, 12, 10))
        del y
        return sum(size for size, _ in kept.values())

    # kept are the input and the outputs of the layers: 8 + 5 * 2 channels of float32
    assert kept_bytes(True) <= 1.1 * 18 * 16 * 12 * 10 * 4 < 0.5 * kept_bytes(False)


@pytest.mark.parametrize(("training", "gradients", "calls"), [(True, True, 2), (False, True, 0), (True, False, 0)])
def test_checkpointing_only_where_there_is_a_backward_pass(monkeypatch, training, gradients, calls):
    seen = []

    def checkpoint(function, *features, **options):
        seen.append(len(features))
        return function(*features)

    monkeypatch.setattr("volseg.blocks.checkpoint", checkpoint)
    with torch.set_grad_enabled(gradients):
        DenseBlock(3, 2, 2, checkpointing=True).train(training)(torch.zeros(SHAPE))
    assert seen == [1, 2][:calls]


def test_anisotropic_block_adds_two_convolutions_across_sections_to_one_within():
    torch.manual_seed(0)
    block = AnisotropicConvBlock(3, 5)
    first, second, third = (m for m in block.modules() if isinstance(m, nn.Conv3d))
    assert [m.kernel_size for m in (first, second, third)] == [(1, 3, 3), (3, 3, 3), (3, 3, 3)]
    x = torch.randn(SHAPE)
    h = F.elu(first(x))
    torch.testing.assert_close(block(x), h + F.elu(third(F.elu(second(h)))))


def test_anisotropic_block_with_the_last_activation_after_the_sum():
    torch.manual_seed(0)
    block = AnisotropicConvBlock(3, 5, activation_after_sum=True)
    first, second, third = (m for m in block.modules() if isinstance(m, nn.Conv3d))
    x = torch.randn(SHAPE)
    h = F.elu(first(x))
    torch.testing.assert_close(block(x), F.elu(h + third(F.elu(second(h)))))


def test_both_anisotropic_blocks_load_the_same_weights():
    AnisotropicConvBlock(3, 5).load_state_dict(AnisotropicConvBlock(3, 5, activation_after_sum=True).state_dict())


@pytest.mark.parametrize("activation_after_sum", [False, True])
def test_anisotropic_block_has_the_right_gradients_in_place(activation_after_sum):
    torch.manual_seed(0)
    block = AnisotropicConvBlock(2, 3, activation_after_sum).double()
    x = torch.randn(1, 2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x,))
    kept = x.detach().clone()
    block(x)
    torch.testing.assert_close(x.detach(), kept, rtol=0, atol=0)


def test_anisotropic_block_sees_two_sections_to_either_side():
    torch.manual_seed(0)
    x = torch.zeros(1, 1, 9, 5, 6, requires_grad=True)
    AnisotropicConvBlock(1, 2)(x)[:, :, 4].sum().backward()
    assert x.grad.abs().sum((0, 1, 3, 4)).nonzero().flatten().tolist() == [2, 3, 4, 5, 6]
