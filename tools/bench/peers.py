# SPDX-License-Identifier: Apache-2.0
"""MONAI's networks that those of the bundles are measured beside, and what makes them comparable.

A peer has the levels of resolution of the bundle's network and sees about as far, so that both do the same kind of
work; it is built as MONAI builds it, with weights of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tools.bench.measure import times

Field = tuple[int, int, int]


@dataclass(frozen=True)
class Peer:
    """A network of MONAI; the tests compare ``parameters`` and ``field`` with the network that ``build`` makes."""

    build: Callable[[], nn.Module]
    parameters: int
    field: Field
    """Receptive field of the central voxel."""


def _vnet() -> nn.Module:
    from monai.networks.nets import VNet  # noqa: PLC0415 (all of MONAI's networks come with it)

    return VNet(out_channels=2, act="prelu", bias=True)


def _dynunet_like_vnet() -> nn.Module:
    """Five levels, kernels of 5 and the channels of V-Net's."""
    return _dynunet(5, (2, 2, 2), (16, 32, 64, 128, 256))


def _dynunet_like_resunet() -> nn.Module:
    """Five levels that halve H and W only; kernels that see as far along each axis, channels for as many parameters."""
    return _dynunet((3, 5, 5), (1, 2, 2), (16, 24, 32, 40, 48))


def _dynunet(kernel_size: int | Sequence[int], stride: Sequence[int], channels: Sequence[int]) -> nn.Module:
    from monai.networks.nets import DynUNet  # noqa: PLC0415

    deeper = len(channels) - 1
    return DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=2,
        kernel_size=[kernel_size] * len(channels),
        strides=[1] + [stride] * deeper,
        upsample_kernel_size=[stride] * deeper,
        filters=channels,
    )


def _unet_like_pdvnet() -> nn.Module:
    """Features at a half, a quarter and an eighth of the resolution; as many convolutions as PDV-Net's field takes."""
    from monai.networks.nets import UNet  # noqa: PLC0415

    return UNet(
        spatial_dims=3, in_channels=1, out_channels=6, channels=(16, 24, 40, 40), strides=(2, 2, 2), num_res_units=7
    )


VNET_PEERS = {
    "MONAI VNet, eager": Peer(_vnet, 45_603_070, (396, 396, 396)),
    "MONAI DynUNet, eager": Peer(_dynunet_like_vnet, 24_865_138, (301, 301, 301)),
}
PDVNET_PEERS = {"MONAI UNet, eager": Peer(_unet_like_pdvnet, 872_065, (311, 311, 311))}
RESUNET_PEERS = {"MONAI DynUNet, eager": Peer(_dynunet_like_resunet, 1_555_730, (37, 301, 301))}


def build_peer(peer: Peer, seed: int) -> nn.Module:
    """The network in evaluation mode with random weights."""
    torch.manual_seed(seed)
    return peer.build().eval()


def describe_peers(name: str, parameters: int, field: Field, peers: Mapping[str, Peer]) -> str:
    """A sentence on how large the network and its peers are and how far they see.

    Args:
        name: of the bundle's network.
        parameters: of that network.
        field: of that network.
        peers: by their names.
    """
    sizes = {name: (field, parameters)}
    sizes |= {way.removesuffix(", eager"): (peer.field, peer.parameters) for way, peer in peers.items()}
    return "Receptive fields and parameters: " + "; ".join(
        f"{who} {times(sees)}, {count / 1e6:.2f} million" for who, (sees, count) in sizes.items()
    )
