# SPDX-License-Identifier: Apache-2.0
"""Tests of PDV-Net against the paper's figure."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from pdvnet_lung.network import PDVNet
from torch import nn

INPUT = (1, 1, 64, 48, 16)
HALF, QUARTER, EIGHTH = (32, 24, 8), (16, 12, 4), (8, 6, 2)

SHAPE_TABLE = {
    "stem": (24, HALF),
    "dense1": (45, HALF),
    "skip1": (24, HALF),
    "down1": (24, QUARTER),
    "dense2": (104, QUARTER),
    "skip2": (24, QUARTER),
    "down2": (24, EIGHTH),
    "dense3": (184, EIGHTH),
    "skip3": (24, EIGHTH),
    "output1": (6, HALF),
    "output2": (6, HALF),
    "output3": (6, HALF),
}


@pytest.fixture
def network() -> PDVNet:
    torch.manual_seed(0)
    return PDVNet()


def run_with_shapes(network: PDVNet, shape: tuple[int, ...]) -> tuple[dict, dict]:
    """Shapes ``(channels, grid)`` of what goes into and out of each part of the network."""
    into, out = {}, {}

    def note(name):
        def hook(module, inputs, output):
            into[name], out[name] = ((t.shape[1], tuple(t.shape[2:])) for t in (inputs[0], output))

        return hook

    for name, module in network.named_children():
        module.register_forward_hook(note(name))
    with torch.no_grad():
        network(torch.zeros(shape))
    return into, out


def test_shape_table(network):
    into, out = run_with_shapes(network, INPUT)
    assert out == SHAPE_TABLE
    assert into["stem"] == (1, INPUT[2:])
    assert into["dense1"] == (25, HALF)  # stem and pooled input
    assert [into[f"output{i}"] for i in (1, 2, 3)] == [(24, HALF)] * 3


def test_blocks_hang_together_through_the_skips(network):
    into, out = {}, {}
    for name, module in network.named_children():
        module.register_forward_pre_hook(lambda _, inputs, name=name: into.update({name: inputs[0]}))
        module.register_forward_hook(lambda _, inputs, output, name=name: out.update({name: output}))
    with torch.no_grad():
        network(torch.randn(INPUT))
    chain = ("dense1", "skip1", "down1", "dense2", "skip2", "down2", "dense3", "skip3")
    assert [after for before, after in pairwise(chain) if into[after] is not out[before]] == []
    torch.testing.assert_close(into["output1"], out["skip1"], rtol=0, atol=0)
    enlarged = {f: nn.Upsample(scale_factor=f, mode="trilinear") for f in (2, 4)}
    torch.testing.assert_close(into["output2"], out["skip1"] + enlarged[2](out["skip2"]))
    torch.testing.assert_close(into["output3"], into["output2"] + enlarged[4](out["skip3"]))


def test_concatenated_merges_stack_the_skips():
    into, _ = run_with_shapes(PDVNet(merge="concat"), INPUT)
    assert [into[f"output{i}"] for i in (1, 2, 3)] == [(24, HALF), (48, HALF), (72, HALF)]


def test_second_input_of_dense1_is_the_pooled_image(network):
    seen = []
    network.dense1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = torch.arange(8.0**3).reshape(1, 1, 8, 8, 8)
    with torch.no_grad():
        network.eval()(x)
    pooled = seen[0][0, 24]
    assert pooled[0, 0, 0] == x[0, 0, :2, :2, :2].mean()
    assert pooled[3, 1, 2] == x[0, 0, 6:, 2:4, 4:6].mean()


@pytest.mark.parametrize(
    ("options", "convolutions", "parameters"),
    [
        ({}, 823_710, 824_922),
        ({"merge": "concat"}, 835_374, 836_586),
        ({"growth_rates": (4, 6, 8)}, 426_810, 427_722),
    ],
)
def test_number_of_parameters(options, convolutions, parameters):
    network = PDVNet(**options)
    in_convolutions = [p for m in network.modules() if isinstance(m, nn.Conv3d) for p in m.parameters()]
    assert sum(p.numel() for p in in_convolutions) == convolutions
    assert sum(p.numel() for p in in_convolutions if p.ndim == 1) == 18
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_training_gives_three_outputs_on_the_half_grid_and_evaluation_one_on_the_full_grid():
    network = PDVNet(in_channels=2, out_channels=4)
    x = torch.zeros(2, 2, 24, 16, 8)
    outputs = network(x)
    assert isinstance(outputs, tuple) and [tuple(y.shape) for y in outputs] == [(2, 4, 12, 8, 4)] * 3
    assert network.eval()(x).shape == (2, 4, 24, 16, 8)


def test_evaluation_is_the_last_output_enlarged_linearly(network):
    x = torch.randn(INPUT)
    last = []
    network.eval().output3.register_forward_hook(lambda module, inputs, output: last.append(output))
    with torch.no_grad():
        y = network(x)
    half = last[0]
    # between cell centres of the half grid the full grid lies at 1/4 and 3/4
    expected = 0.75 * half[..., 1:-1] + 0.25 * half[..., 2:]
    line = y[:, :, 0, 0, 3:-2:2]  # at the outline the first cell's value holds along X and Y
    torch.testing.assert_close(line, expected[:, :, 0, 0], rtol=1e-4, atol=1e-5)


def test_every_output_depends_on_its_merge_alone(network):
    outputs = network(torch.randn(1, 1, 16, 16, 8))
    reached = []
    for y in outputs:
        network.zero_grad()
        y.sum().backward(retain_graph=True)
        reached.append({n.split(".")[0] for n, p in network.named_parameters() if p.grad is not None})
    first = {"stem", "dense1", "skip1"}
    second = first | {"down1", "dense2", "skip2"}
    third = second | {"down2", "dense3", "skip3"}
    assert reached == [first | {"output1"}, second | {"output2"}, third | {"output3"}]


def test_gradients_reach_every_parameter_through_the_outputs(network):
    outputs = network(torch.randn(2, 1, 32, 24, 16))
    sum(y.square().mean() for y in outputs).backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_checkpointing_gives_the_same_gradients_and_statistics_with_dropout():
    torch.manual_seed(0)
    plain = PDVNet(dropout=0.2)
    saving = PDVNet(dropout=0.2, checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(1, 1, 24, 16, 16)
    for network in (plain, saving):
        torch.manual_seed(1)
        sum(y.square().mean() for y in network(x)).backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=0, atol=0, msg=name)
    torch.testing.assert_close(dict(saving.named_buffers()), dict(plain.named_buffers()), rtol=0, atol=0)


@pytest.mark.parametrize(("axis", "name", "size"), [(0, "X", 20), (1, "Y", 17), (2, "Z", 12)])
@pytest.mark.parametrize("training", [True, False])
def test_size_that_is_no_multiple_of_8(network, axis, name, size, training):
    shape = [32, 24, 16]
    shape[axis] = size
    with pytest.raises(ValueError, match=rf"multiples of 8, got {size} along {name} of \(1, 1, "):
        network.train(training)(torch.zeros(1, 1, *shape))


def test_receptive_field(network):
    """Width, in input voxels, of what a voxel sees: each convolution adds (kernel - 1) times the step before it."""
    width, step, found = 1, 1, []
    for name in ("stem", "dense1", "skip1", "down1", "dense2", "skip2", "down2", "dense3", "skip3"):
        for conv in (m for m in getattr(network, name).modules() if isinstance(m, nn.Conv3d)):
            assert len(set(conv.kernel_size)) == len(set(conv.stride)) == 1
            width += (conv.kernel_size[0] - 1) * step
            step *= conv.stride[0]
        if name.startswith("skip"):
            found.append(width)
    assert found == [29, 121, 305]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"merge": "add"}, "'sum' or 'concat', got 'add'"),
        ({"growth_rates": (4, 8)}, r"must have 3 values, got \(4, 8\)"),
        ({"num_layers": (5, 10, 10, 10)}, r"must have 3 values, got .*\(5, 10, 10, 10\)"),
    ],
)
def test_arguments_that_make_no_network(options, message):
    with pytest.raises(ValueError, match=message):
        PDVNet(**options)
