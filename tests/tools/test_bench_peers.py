# SPDX-License-Identifier: Apache-2.0
"""Networks of MONAI beside those of the bundles: that they are comparable, and that they are measured."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from pdvnet_lung.network import PDVNet
from resunet_mitoem.network import ResUNetH, ResUNetR
from torch import nn
from vnet_prostate.network import VNet

from tools import REPOSITORY
from tools.bench import pdvnet, resunet, vnet
from tools.bench.networks import build_way, count_operations, rows_of_ways, size_note, ways_here
from tools.bench.peers import PDVNET_PEERS, RESUNET_PEERS, VNET_PEERS, Peer, describe_peers, receptive_field

FOLDER = REPOSITORY / "docs" / "benchmarks"
FEW = {"channels": (1, 1, 1, 1, 1)}
# what the fields are found with has few channels, on which they do not depend
NETWORKS = {
    "V-Net": (VNet, partial(VNet, **FEW), vnet.PARAMETERS, vnet.FIELD),
    "PDV-Net": (PDVNet, PDVNet, pdvnet.PARAMETERS, pdvnet.FIELD),
    "Res-UNet-R": (ResUNetR, partial(ResUNetR, **FEW), resunet.PARAMETERS["R"], resunet.FIELD),
    "Res-UNet-H": (ResUNetH, partial(ResUNetH, **FEW), resunet.PARAMETERS["H"], resunet.FIELD),
}
PEERS = [*VNET_PEERS.values(), *PDVNET_PEERS.values(), *RESUNET_PEERS.values()]
NAMES = [*VNET_PEERS, *PDVNET_PEERS, *RESUNET_PEERS]
RESULTS = {
    "vnet_prostate_network": (VNET_PEERS, vnet.FIELD),
    "pdvnet_lung_network": (PDVNET_PEERS, pdvnet.FIELD),
    "resunet_mitoem_r_network": (RESUNET_PEERS, resunet.FIELD),
    "resunet_mitoem_h_network": (RESUNET_PEERS, resunet.FIELD),
}


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_size_and_field_of_the_networks(name):
    whole, small, count, field = NETWORKS[name]
    assert parameters(whole()) == count
    assert receptive_field(small().double(), reach=640) == field


@pytest.mark.parametrize("peer", PEERS, ids=NAMES)
def test_size_and_field_of_their_peers(peer):
    network = peer.build()
    assert parameters(network) == peer.parameters
    assert receptive_field(network, reach=512) == peer.field


def test_peers_see_as_far():
    # any voxel of V-Net's input, and of its peers', sees all others
    assert min(vnet.FIELD + VNET_PEERS["MONAI DynUNet, eager"].field) >= 2 * max(vnet.SIZE) - 1
    for field, peers in ((pdvnet.FIELD, PDVNET_PEERS), (resunet.FIELD, RESUNET_PEERS)):
        for peer in peers.values():
            assert [a / b for a, b in zip(peer.field, field, strict=True)] == pytest.approx([1, 1, 1], abs=0.1)


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


def test_a_way_is_a_mode_or_a_peer(tmp_path):
    peers = {"peer": Peer(partial(nn.Conv3d, 1, 1, 3), 28, (3, 3, 3))}
    build = partial(build_way, cache=str(tmp_path), network=lambda: nn.Conv3d(1, 2, 1), peers=peers, seed=3)
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
    assert size_note(8_000_000_000) == "The network is 8 GFLOP"


def test_sizes_and_fields_in_words():
    assert describe_peers("Net", 1_500_000, (3, 5, 7), {"Peer, eager": Peer(nn.Identity, 20_000, (1, 2, 3))}) == (
        "Receptive fields and parameters: Net 3x5x7, 1.50 million; Peer 1x2x3, 0.02 million"
    )


@pytest.mark.parametrize("name", RESULTS)
def test_peers_are_measured_in_the_same_run(name):
    path = FOLDER / f"{name}.json"
    if not path.exists():
        pytest.skip(f"python -m tools bench {name} writes it")
    peers, field = RESULTS[name]
    result = json.loads(path.read_text(encoding="utf-8"))
    rows = {row["mode"]: row for row in result["rows"]}
    assert peers.keys() <= rows.keys()
    for way, peer in peers.items():
        assert "agreement" not in rows[way]
        assert rows[way]["peak_mb"] > 0
        for sees in (field, peer.field):
            assert f" {'x'.join(map(str, sees))}, " in result["note"]
