# SPDX-License-Identifier: Apache-2.0
"""Tests of Res-UNet-R and Res-UNet-H against the paper's architecture figure."""

from __future__ import annotations

import pytest
import torch
from resunet_mitoem.network import ResUNetH, ResUNetR
from torch import nn

from volseg.blocks import AnisotropicConvBlock
from volseg.errors import UserError

BOTH = pytest.mark.parametrize("network_type", [ResUNetR, ResUNetH])
SMALL = (4, 5, 6, 7, 8)


def make(network_type: type[nn.Module], **arguments) -> nn.Module:
    torch.manual_seed(0)
    return network_type(**{"channels": SMALL} | arguments)


@pytest.mark.parametrize("activation_after_sum", [False, True])
@pytest.mark.parametrize(("network_type", "parameters"), [(ResUNetR, 1_534_194), (ResUNetH, 2_080_066)])
def test_parameters(network_type, parameters, activation_after_sum):
    network = network_type(activation_after_sum=activation_after_sum)
    assert sum(p.numel() for p in network.parameters()) == parameters


@BOTH
def test_nothing_that_the_paper_does_not_have(network_type):
    leaves = {type(m) for m in network_type().modules() if not list(m.children())}
    assert leaves == {nn.Conv3d, nn.ELU, nn.Upsample, nn.Identity}
    assert all(m.bias is not None for m in network_type().modules() if isinstance(m, nn.Conv3d))


@BOTH
@pytest.mark.parametrize("size", [(1, 48, 16), (5, 16, 64), (32, 64, 48)])
def test_logits_have_the_size_of_the_input(network_type, size):
    network = make(network_type)
    with torch.no_grad():
        for training in (True, False):
            assert network.train(training)(torch.zeros(2, 1, *size)).shape == (2, 2, *size)


def test_features_are_halved_within_sections_only():
    with torch.no_grad():
        features = ResUNetR().encoder(torch.zeros(1, 1, 3, 32, 48))
    assert [tuple(f.shape[1:]) for f in features] == [
        (28, 3, 32, 48), (36, 3, 16, 24), (48, 3, 8, 12), (64, 3, 4, 6), (80, 3, 2, 3),
    ]  # fmt: skip


@BOTH
def test_strided_convolutions_keep_the_number_of_channels(network_type):
    strided = [m for m in network_type().modules() if isinstance(m, nn.Conv3d) and m.stride != (1, 1, 1)]
    assert [(m.in_channels, m.out_channels) for m in strided] == [(28, 28), (36, 36), (48, 48), (64, 64)]
    assert {(m.stride, m.kernel_size) for m in strided} == {((1, 2, 2), (1, 3, 3))}


@BOTH
def test_input_moved_by_a_section_moves_the_output(network_type):
    # nine blocks with two convolutions across sections each: a section sees 18 to either side
    radius, depth = 18, 41
    sections = torch.rand(1, 1, depth + 1, 16, 32, generator=torch.Generator().manual_seed(0))
    network = make(network_type)
    with torch.no_grad():
        first, moved = network(sections[:, :, :-1]), network(sections[:, :, 1:])
    inner = slice(radius, depth - radius - 1)
    expected = first[:, :, inner.start + 1 : inner.stop + 1]
    torch.testing.assert_close(moved[:, :, inner], expected, rtol=1e-5, atol=1e-6)
    assert (moved[:, :, inner] - first[:, :, inner]).abs().max() > 1e-4


def test_a_decoder_block_takes_in_the_sum_of_enlarged_features_and_skip():
    network = make(ResUNetR)
    seen = {}
    network.encoder.blocks[0].register_forward_hook(lambda m, i, output: seen.update(skip=output))
    network.decoder.up[-1].register_forward_hook(lambda m, i, output: seen.update(up=output))
    network.decoder.blocks[-1].register_forward_pre_hook(lambda m, inputs: seen.update(sum=inputs[0]))
    with torch.no_grad():
        network(torch.rand(1, 1, 3, 32, 16))
    torch.testing.assert_close(seen["sum"], seen["up"] + seen["skip"], rtol=0, atol=0)


def test_features_are_enlarged_linearly_within_sections():
    up = make(ResUNetR).decoder.up[-1]
    conv, activation = up[0]
    nn.init.zeros_(conv.weight)
    conv.weight.data[0, 0] = 1
    nn.init.zeros_(conv.bias)
    x = torch.zeros(1, SMALL[1], 2, 1, 3)
    x[0, 0, 1, 0] = torch.tensor([0.0, 4.0, 8.0])
    expected = torch.tensor([0.0, 1.0, 3.0, 5.0, 7.0, 8.0])
    y = up(x)
    assert isinstance(activation, nn.ELU)
    assert not y[0, 0, 0].any()
    torch.testing.assert_close(y[0, 0, 1], expected.expand(2, 6))


def test_decoders_of_h_share_no_weight():
    network = make(ResUNetH)
    mask, boundary = list(network.mask_decoder.parameters()), list(network.boundary_decoder.parameters())
    assert [p.shape for p in mask] == [p.shape for p in boundary]
    assert not {p.data_ptr() for p in mask} & {p.data_ptr() for p in boundary}


@pytest.mark.parametrize(("channel", "other"), [(0, "boundary_decoder"), (1, "mask_decoder")])
def test_a_channel_of_h_teaches_its_decoder_and_the_encoder(channel, other):
    network = make(ResUNetH)
    network(torch.rand(1, 1, 3, 32, 16))[:, channel].square().sum().backward()
    without = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == {name for name, _ in network.named_parameters() if name.startswith(other)}


def test_every_parameter_of_r_learns():
    network = make(ResUNetR)
    network(torch.rand(1, 1, 3, 32, 16)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@BOTH
def test_order_of_activations_reaches_every_block(network_type):
    network = make(network_type, activation_after_sum=True)
    blocks = [m for m in network.modules() if isinstance(m, AnisotropicConvBlock)]
    assert len(blocks) == (9 if network_type is ResUNetR else 13)
    assert all(isinstance(block.activation, nn.ELU) for block in blocks)


@pytest.mark.parametrize(("network_type", "name"), [(ResUNetR, "Res-UNet-R"), (ResUNetH, "Res-UNet-H")])
@pytest.mark.parametrize(("size", "axis", "wrong"), [((3, 40, 32), "H", 40), ((16, 32, 24), "W", 24)])
def test_sizes_that_cannot_be_halved_four_times(network_type, name, size, axis, wrong):
    message = f"{name}: H and W must be multiples of 16, got {wrong} along {axis}"
    with pytest.raises(UserError, match=message):
        make(network_type)(torch.zeros(1, 1, *size))


def test_fewer_levels_need_fewer_halvings():
    with torch.no_grad():
        assert make(ResUNetR, in_channels=3, channels=(4, 6))(torch.zeros(1, 3, 5, 6, 2)).shape == (1, 2, 5, 6, 2)


@BOTH
def test_plain_residual_blocks_in_place_of_the_anisotropic_ones(network_type):
    plain = make(network_type, channels=(2, 3, 4), block="residual")
    assert not any(isinstance(m, AnisotropicConvBlock) for m in plain.modules())
    assert plain(torch.rand(1, 1, 3, 8, 12)).shape == (1, 2, 3, 8, 12)


def test_unknown_blocks_are_refused():
    with pytest.raises(ValueError, match=r"anisotropic, residual, got 'dense'"):
        ResUNetR(block="dense")


@BOTH
def test_dropout_has_no_weights_and_acts_in_training_only(network_type):
    torch.manual_seed(0)
    plain, with_dropout = network_type(channels=(4, 6)), network_type(channels=(4, 6), dropout=0.5)
    with_dropout.load_state_dict(plain.state_dict())
    x = torch.rand(1, 1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(with_dropout.eval()(x), plain(x))
        assert not torch.equal(with_dropout.train()(x), with_dropout(x))
    assert not any(isinstance(module, nn.Dropout) for module in plain.modules())
