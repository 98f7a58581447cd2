# SPDX-License-Identifier: Apache-2.0
"""Tests of V-Net against the paper's Table 1, its Dice loss and the released definition."""

from __future__ import annotations

import json
import math

import pytest
import torch
from monai.losses import DiceLoss
from torch import nn
from vnet_prostate.network import Stage, VNet, parameter_groups

from volseg.errors import UserError

SMALL = {"channels": (4, 8, 8, 8, 16)}
RELEASED = {"encoder_convs": (1, 1, 2, 3, 3), "decoder_convs": (3, 2, 1, 1), "head_kernel_size": 5}
INPUT = (1, 1, 48, 32, 16)


def receptive_fields(network: VNet) -> list[int]:
    """Voxels along an axis that a voxel of each stage's output depends on: L1 to L5, R4 to R1, and the logits."""
    field, jump, fields = 1, 1, []

    def go_through(module: nn.Module) -> None:
        nonlocal field, jump
        for conv in module.modules():
            if isinstance(conv, nn.ConvTranspose3d):
                jump //= conv.stride[0]
                field += (conv.kernel_size[0] - 1) * jump
            elif isinstance(conv, nn.Conv3d):
                field += (conv.kernel_size[0] - 1) * jump
                jump *= conv.stride[0]

    for level, stage in enumerate(network.encoder):
        if level > 0:
            go_through(network.down[level - 1])
        go_through(stage)
        fields.append(field)
    for up, stage in zip(network.up, network.decoder, strict=True):
        go_through(up)
        go_through(stage)
        fields.append(field)
    go_through(network.head)
    return [*fields, field]


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_receptive_fields_are_those_of_table_1():
    # the paper's table ends with R1; the 1x1x1 head adds nothing
    assert receptive_fields(VNet()) == [5, 22, 72, 172, 372, 476, 528, 546, 551, 551]


def test_receptive_fields_of_the_released_definition():
    assert receptive_fields(VNet(**RELEASED)) == [5, 14, 48, 148, 348, 452, 488, 498, 503, 507]


@pytest.mark.parametrize(
    ("arguments", "parameters"), [({}, 65_175_314), (RELEASED, 61_982_682), ({"head_kernel_size": 5}, 65_183_258)]
)
def test_parameters(arguments, parameters):
    assert count(VNet(**arguments)) == parameters


def test_a_slope_per_channel_and_nothing_that_the_paper_does_not_have():
    network = VNet()
    assert sum(m.weight.numel() for m in network.modules() if isinstance(m, nn.PReLU)) == 3456
    leaves = {type(m) for m in network.modules() if not list(m.children())}
    assert leaves == {nn.Conv3d, nn.ConvTranspose3d, nn.PReLU, nn.Identity}


def test_initialisation():
    network = VNet()
    conv = network.decoder[1].convs[0][0]  # 128 to 128 channels
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (128 * 125)), rel=0.01)
    assert conv.weight.mean().abs().item() < 1e-4
    assert all(not p.any() for name, p in network.named_parameters() if name.endswith("bias"))
    assert {float(v) for m in network.modules() if isinstance(m, nn.PReLU) for v in m.weight.detach()} == {0.25}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("norm", [None, "batch", "instance"])
def test_logits_have_the_size_of_the_input(batch, norm):
    with torch.no_grad():
        assert VNet(**SMALL, norm=norm)(torch.zeros(batch, *INPUT[1:4], 32)).shape == (batch, 2, 48, 32, 32)


def zero_convolutions(module: nn.Module) -> None:
    for conv in module.modules():
        if isinstance(conv, nn.Conv3d):
            nn.init.zeros_(conv.weight)
            nn.init.zeros_(conv.bias)


def test_a_stage_whose_convolutions_do_nothing_activates_its_input():
    stage = Stage(6, 6, 3)
    zero_convolutions(stage)
    x = torch.randn(1, 6, 5, 4, 3)
    torch.testing.assert_close(stage(x), torch.where(x > 0, x, 0.25 * x), rtol=0, atol=0)


@pytest.mark.parametrize("in_channels", [1, 2, 4])
def test_fewer_channels_enter_the_sum_repeated(in_channels):
    stage = Stage(in_channels, 8, 1)
    zero_convolutions(stage)
    x = torch.rand(1, in_channels, 3, 4, 5)
    torch.testing.assert_close(stage(x), torch.cat([x] * (8 // in_channels), dim=1), rtol=0, atol=0)


def test_channels_that_do_not_divide_enter_the_sum_projected():
    stage = Stage(3, 8, 1)
    zero_convolutions(stage.convs)
    x = torch.randn(1, 3, 4, 5, 6)
    torch.testing.assert_close(stage(x), stage.activation(stage.shortcut(x)))
    assert stage.shortcut.weight.shape == (8, 3, 1, 1, 1)


def test_one_activation_a_convolution_and_the_last_after_the_sum():
    stage = Stage(4, 4, 2)
    first, last = stage.convs[0], stage.convs[1]
    x = torch.randn(1, 4, 5, 6, 7)
    expected = stage.activation(last(first[1](first[0](x))) + x)
    torch.testing.assert_close(stage(x), expected)
    assert isinstance(last, nn.Conv3d)


def test_a_decoder_stage_takes_in_upsampled_features_then_the_skip():
    network = VNet(**SMALL).eval()
    seen = {}
    network.encoder[0].register_forward_hook(lambda m, i, output: seen.update(skip=output))
    network.up[-1].register_forward_hook(lambda m, i, output: seen.update(up=output))
    network.decoder[-1].register_forward_pre_hook(lambda m, inputs: seen.update(joined=inputs[0]))
    with torch.no_grad():
        network(torch.randn(INPUT))
    torch.testing.assert_close(seen["joined"], torch.cat([seen["up"], seen["skip"]], dim=1), rtol=0, atol=0)
    assert seen["up"].shape[1] == 4


def test_normalisation_comes_before_activation_or_sum():
    stage = Stage(4, 4, 2, norm="batch")
    assert [type(m) for m in stage.convs.modules() if not list(m.children())] == [
        nn.Conv3d, nn.BatchNorm3d, nn.PReLU, nn.Conv3d, nn.BatchNorm3d,
    ]  # fmt: skip


def test_dropout_acts_in_training_only():
    network = VNet(**SMALL, dropout=0.5)
    x = torch.randn(INPUT)
    with torch.no_grad():
        assert not torch.equal(network.train()(x), network(x))
        assert torch.equal(network.eval()(x), network(x))


@pytest.mark.parametrize(("size", "axis", "wrong"), [((32, 32, 24), "Z", 24), ((40, 32, 32), "X", 40)])
def test_sizes_that_cannot_be_halved_four_times(size, axis, wrong):
    with pytest.raises(UserError, match=f"V-Net needs sizes that are multiples of 16, got {wrong} along {axis}"):
        VNet(**SMALL)(torch.zeros(1, 1, *size))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"norm": "group"}, "norm must be None"), ({"encoder_convs": (1, 2, 3)}, "one entry per stage")],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        VNet(**arguments)


def test_biases_learn_twice_as_fast_and_do_not_decay():
    network = VNet(**SMALL)
    others, biases = parameter_groups(network, 4e-4, 1.25e-4)
    assert (others["lr"], others["weight_decay"]) == (4e-4, 1.25e-4)
    assert (biases["lr"], biases["weight_decay"]) == (8e-4, 0.0)
    assert len(biases["params"]) == sum(isinstance(m, nn.Conv3d | nn.ConvTranspose3d) for m in network.modules())
    assert {id(p) for g in (others, biases) for p in g["params"]} == {id(p) for p in network.parameters()}


def test_every_parameter_learns():
    network = VNet(**SMALL)
    network(torch.randn(INPUT)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_scripted_network_agrees():
    network = VNet(in_channels=2, **SMALL).eval()
    x = torch.randn(1, 2, 32, 16, 48)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(network)(x), network(x))


def test_loss_of_the_config_is_the_papers_equation_with_its_gradient(configured_loss):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 5, 4, 3, dtype=torch.float64, generator=generator)
    logits[:, 0] = 0  # then p is the sigmoid of the other channel, and the chain rule is one factor
    logits.requires_grad_()
    target = (torch.rand(1, 1, 5, 4, 3, generator=generator) > 0.6).double()
    loss = configured_loss(logits, target)
    loss.backward()
    p, g = torch.sigmoid(logits.detach()[:, 1:]), target
    union = p.square().sum() + g.square().sum()
    dice = 2 * (p * g).sum() / union
    dice_by_p = 2 * (g * union - 2 * p * (p * g).sum()) / union**2
    assert loss.item() == pytest.approx(1 - dice.item(), abs=1e-6)  # the config's 1e-5 in the denominator
    torch.testing.assert_close(logits.grad[:, 1:], -dice_by_p * p * (1 - p), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(logits.grad[:, 0], -logits.grad[:, 1])


def test_loss_of_a_perfect_and_of_an_opposite_answer(configured_loss):
    target = torch.zeros(1, 1, 4, 3, 2)
    target[..., :2, :] = 1
    answer = torch.cat([-target, target], dim=1) * 80 - torch.tensor([-40.0, 40.0]).view(1, 2, 1, 1, 1)
    assert configured_loss(answer, target).item() == pytest.approx(0, abs=1e-5)
    assert configured_loss(-answer, target).item() == pytest.approx(1, abs=1e-5)


@pytest.fixture
def configured_loss(configs) -> DiceLoss:
    """The loss of train.json."""
    arguments = json.loads((configs / "train.json").read_text())["loss"]
    assert arguments.pop("_target_") == "DiceLoss"
    arguments.pop("_desc_")
    return DiceLoss(**arguments)
