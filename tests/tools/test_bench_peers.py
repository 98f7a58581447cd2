# SPDX-License-Identifier: Apache-2.0
"""Networks of MONAI beside those of the bundles: that they are comparable, and that they are measured."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from pdvnet_lung.network import PDVNet
from resunet_mitoem.network import ResUNetH, ResUNetR
from torch import nn
from vnet_prostate.network import VNet

from tools import REPOSITORY
from tools.bench.networks import build_way, count_operations, rows_of_ways, ways_here
from tools.bench.subjects import SUBJECTS, Peer, describe_peers

FOLDER = REPOSITORY / "docs" / "benchmarks"
FEW = {"channels": (1, 1, 1, 1, 1)}
# what the fields are found with has few channels, on which they do not depend
SMALL = {
    "vnet_prostate": partial(VNet, **FEW),
    "pdvnet_lung": PDVNet,
    "resunet_mitoem_r": partial(ResUNetR, **FEW),
    "resunet_mitoem_h": partial(ResUNetH, **FEW),
}
PEERS = {(name, way): peer for name, subject in SUBJECTS.items() for way, peer in subject.peers.items()}


def receptive_field(network, reach, across=16):
    """Voxels of the input that the central voxel of the output depends on, along each axis.

    Found by gradients of the network with all weights positive and alike, so that none cancels.
    Normalisations are taken out: those that look at the whole volume would make the field infinite.

    Args:
        network: takes one channel; changed. Make it float64 where float32 would round small shares to nothing, as those
            of long ways through dense blocks.
        reach: size of the input along the axis that is looked at; more than the field.
        across: size along the other two.

    Raises:
        ValueError: the field ends outside the input.
    """
    network.eval()
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.InstanceNorm3d | nn.BatchNorm3d):
                setattr(module, name, nn.Identity())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1 / parameter[0].numel() if parameter.ndim == 5 else 0.25)
    found = []
    for axis in range(3):
        shape = [across] * 3
        shape[axis] = reach
        image = torch.ones(1, 1, *shape, dtype=next(network.parameters()).dtype, requires_grad=True)
        output = network(image)
        centre = output[(0, 0, *(size // 2 for size in output.shape[2:]))]
        (gradient,) = torch.autograd.grad(centre, image)
        others = [other for other in range(3) if other != axis]
        seen = gradient[0, 0].ne(0).any(others[1]).any(others[0]).nonzero().flatten()
        first, last = int(seen[0]), int(seen[-1])
        if first == 0 or last == reach - 1:
            raise ValueError(f"the field ends outside the input along axis {axis}. Received: reach {reach}")
        found.append(last - first + 1)
    return found[0], found[1], found[2]


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", SUBJECTS)
def test_size_and_field_of_the_networks(name):
    subject = SUBJECTS[name]
    assert parameters(subject.untrained(0)) == subject.parameters
    assert receptive_field(SMALL[name]().double(), reach=640) == subject.field


@pytest.mark.parametrize("peer", dict.fromkeys(PEERS.values()), ids=lambda peer: peer.build.__name__)
def test_size_and_field_of_their_peers(peer):
    network = peer.build()
    assert parameters(network) == peer.parameters
    assert receptive_field(network, reach=512) == peer.field


def test_peers_see_as_far():
    # any voxel of V-Net's input, and of its peers', sees all others
    network = SUBJECTS["vnet_prostate"]
    assert min(network.field + network.peers["MONAI DynUNet, eager"].field) >= 2 * max(network.size) - 1
    for (name, _), peer in PEERS.items():
        if name != "vnet_prostate":
            ratios = [a / b for a, b in zip(peer.field, SUBJECTS[name].field, strict=True)]
            assert ratios == pytest.approx([1, 1, 1], abs=0.1)


def test_field_of_known_layers():
    layers = nn.Sequential(
        nn.Conv3d(1, 2, (3, 1, 5)), nn.InstanceNorm3d(2), nn.Conv3d(2, 1, (3, 1, 1), stride=(2, 1, 1))
    )
    assert receptive_field(layers, reach=16, across=8) == (5, 1, 5)


def test_a_field_that_leaves_the_input_is_an_error():
    with pytest.raises(ValueError, match="reach 8"):
        receptive_field(nn.Conv3d(1, 1, 9, padding=4), reach=8, across=8)


def test_operations_are_those_of_the_convolutions():
    network = nn.Sequential(nn.Conv3d(2, 3, (1, 3, 5), padding=(0, 1, 2)), nn.ELU())
    assert count_operations(network, (1, 2, 4, 6, 8)) == 2 * (3 * 2 * 15) * (4 * 6 * 8)


def test_gpus_have_rows_where_there_is_one():
    peers = {"peer": Peer(nn.Identity, 0, (1, 1, 1))}
    assert ways_here(("eager", "bf16"), peers, cuda=False) == ("eager", "bf16", "peer")
    assert ways_here(("eager", "bf16"), peers, cuda=True) == (
        "eager", "bf16", "peer", "CUDA, eager", "CUDA, cuda_amp", "CUDA, compile"
    )  # fmt: skip
    assert ("CUDA, eager" in ways_here(("eager",), {})) == torch.cuda.is_available()


def test_a_way_is_a_mode_or_a_peer(tmp_path, monkeypatch):
    peers = {"peer": Peer(partial(nn.Conv3d, 1, 1, 3), 28, (3, 3, 3))}
    subject = replace(SUBJECTS["pdvnet_lung"], bundle=tmp_path, peers=peers)
    monkeypatch.setitem(SUBJECTS, "pdvnet_lung", subject)
    build = partial(build_way, "pdvnet_lung", cache=str(tmp_path), seed=3)
    first, second = build("peer"), build("peer")
    assert not first.training
    assert torch.equal(first.weight, second.weight)
    assert "accelerated='bf16'" in repr(build("bf16"))


def test_rates_are_those_of_the_way_s_own_network():
    seconds = {"eager": [9.0, 4.0], "fast": [9.0, 1.0], "peer": [9.0, 2.0]}
    memory = {way: {"peak_mb": 1} for way in seconds}
    operations, ran = {"eager": 8e9, "peer": 2e9}, dict.fromkeys(seconds, "eager")
    rows = rows_of_ways(seconds, memory, {"fast": {"agreement": 0.5}}, operations, ran)
    assert [row["gflop_per_s"] for row in rows] == [2, 8, 1]
    assert [row["ratio"] for row in rows] == [1, 4, 2]
    assert [row.get("agreement") for row in rows] == [None, 0.5, None]


def test_sizes_and_fields_in_words():
    assert describe_peers("Net", 1_500_000, (3, 5, 7), {"Peer, eager": Peer(nn.Identity, 20_000, (1, 2, 3))}) == (
        "Receptive fields and parameters: Net 3x5x7, 1.50 million; Peer 1x2x3, 0.02 million"
    )


@pytest.mark.parametrize("name", SUBJECTS)
def test_peers_are_measured_in_the_same_run(name):
    path = FOLDER / f"{name}_network.json"
    if not path.exists():
        pytest.skip(f"python -m tools bench {name}_network writes it")
    peers, field = SUBJECTS[name].peers, SUBJECTS[name].field
    result = json.loads(path.read_text(encoding="utf-8"))
    rows = {row["mode"]: row for row in result["rows"]}
    assert peers.keys() <= rows.keys()
    for way, peer in peers.items():
        assert "agreement" not in rows[way]
        assert rows[way]["peak_mb"] > 0
        for sees in (field, peer.field):
            assert f" {'x'.join(map(str, sees))}, " in result["note"]
