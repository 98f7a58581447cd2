# SPDX-License-Identifier: Apache-2.0
"""The bundles' networks as the benchmarks run them, with weights and phantoms, and MONAI's beside them.

A peer of MONAI has the levels of resolution of the bundle's network and sees about as far, so that both do the same
kind of work; it is built as MONAI builds it, with weights of its own.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import CenterSpatialCropd, Compose, Orientationd, Spacingd, SpatialPadd
from monai.utils import instantiate
from torch import nn

from tools import REPOSITORY
from tools.bench.measure import times
from volseg.phantoms.chest_ct import chest_ct
from volseg.phantoms.electron_microscopy import electron_microscopy
from volseg.phantoms.prostate_mri import prostate_mri
from volseg.weights import load_weights, recorded_values

Field = tuple[int, int, int]
BUNDLES = REPOSITORY / "bundles"
TRAINED_WITH = ("spatial_size", "spacing_mm", "norm")
WINDOW_HU = (-1100.0, -400.0)
SPACING_MM = (1.0, 1.0, 1.5)
# the weights learnt from phantoms whose pixels of 8 nm were averaged 4 by 4
BINNING = 4


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


def most_likely(output: torch.Tensor) -> torch.Tensor:
    """The class with the largest value, ``(B, C, ...)`` to ``(B, ...)``."""
    return output.argmax(1)


def above_half(logits: torch.Tensor) -> torch.Tensor:
    """Where mask and boundary have a probability above 0.5."""
    return logits > 0


@dataclasses.dataclass(frozen=True)
class Subject:
    """A bundle's network; the tests compare ``parameters`` and ``field`` with the network that ``target`` makes."""

    name: str
    bundle: Path
    target: str
    parameters: int
    field: Field
    """Receptive field of the central voxel."""
    peers: Mapping[str, Peer]
    size: Field
    """Of the input, ``draw(seed, size)``, float32 ``(1, 1, *size)``."""
    draw: Callable[[int, Sequence[int]], torch.Tensor]
    input: str
    """``draw`` in words."""
    decide: Callable[[torch.Tensor], torch.Tensor] = most_likely
    """Makes labels of the output."""
    weights_file: str = "model.pt"
    recorded: tuple[str, ...] = ()
    """Arguments of ``target`` that are recorded beside the weights."""
    scan: str = ""
    """What whole pipelines segment, ``draw_scan(seed, scan_shape)``, in words."""
    draw_scan: Callable[..., Any] = chest_ct
    scan_shape: Field = (0, 0, 0)
    grid: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Overrides of ``inference.json``."""

    def weights(self) -> Path | None:
        """The bundle's weights, if any; first those that learnt at the paper's size, in ``models/full_size``."""
        models = self.bundle / "models"
        paths = (models / "full_size" / self.weights_file, models / self.weights_file)
        return next((path for path in paths if path.exists()), None)

    def describe_weights(self, seed: int) -> str:
        """Where the weights of :meth:`trained` are from, and what they were trained with."""
        path = self.weights()
        if path is None:
            return f"random, seed {seed}"
        record = path.with_suffix(".json")
        values = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
        trained = ", ".join(f"{key} {values[key]}" for key in TRAINED_WITH if key in values)
        return f"{path.relative_to(REPOSITORY)}{trained and f' ({trained})'}"

    def untrained(self, seed: int, **arguments: Any) -> nn.Module:
        """The network with random weights."""
        torch.manual_seed(seed)
        return instantiate(self.target, "default", **arguments)

    def trained(self, seed: int) -> nn.Module:
        """The network in evaluation mode, with the bundle's weights where it has some."""
        path = self.weights()
        network = self.untrained(seed, **(recorded_values(path, dict.fromkeys(self.recorded)) if path else {}))
        if path:
            load_weights(path, network)
        return network.eval()

    def weights_for_config(self, seed: int, folder: Path) -> Path:
        """The bundle's weights, or else random ones, written to a folder."""
        path = self.weights()
        if path is None:
            path = folder / "weights.pt"
            torch.save(self.untrained(seed).state_dict(), path)
        return path


def _ct(seed: int, size: Sequence[int]) -> torch.Tensor:
    image = torch.from_numpy(chest_ct(seed, shape=(256, 256, 128), orientation="RAS").image.astype(np.float32))
    image = nn.functional.interpolate(image[None, None], tuple(size), mode="trilinear")
    low, high = WINDOW_HU
    return ((image - low) / (high - low) * 2 - 1).clip(-1, 1)


def _mri(seed: int, size: Sequence[int]) -> torch.Tensor:
    """Preprocessed as in ``inference.json``."""
    mri = prostate_mri(seed, (256, 256, 28))
    image = MetaTensor(torch.from_numpy(mri.image).float()[None], affine=torch.from_numpy(mri.affine))
    preprocessing = Compose(
        [
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=SPACING_MM, mode="bilinear"),
            CenterSpatialCropd("image", roi_size=size),
            instantiate("vnet_prostate.intensity.ZScored", "default", keys="image"),
            SpatialPadd("image", spatial_size=size),
        ]
    )
    return preprocessing({"image": image})["image"].as_tensor()[None].contiguous()


def _em(seed: int, size: Sequence[int]) -> torch.Tensor:
    depth, height, width = size
    phantom = electron_microscopy(seed, (depth, height, width), binning=BINNING)
    return torch.from_numpy(phantom.image).float()[None, None] / 255


def _resunet(variant: str, parameters: int, weights_file: str) -> Subject:
    return Subject(
        name=f"Res-UNet-{variant}",
        bundle=BUNDLES / "resunet_mitoem",
        target=f"resunet_mitoem.network.ResUNet{variant}",
        parameters=parameters,
        field=(37, 333, 333),
        peers=RESUNET_PEERS,
        size=(32, 256, 256),
        draw=_em,
        input="electron microscopy, pixels of 32 nm, 0 to 1",
        decide=above_half,
        weights_file=weights_file,
    )


SUBJECTS = {
    "pdvnet_lung": Subject(
        name="PDV-Net",
        bundle=BUNDLES / "pdvnet_lung",
        target="pdvnet_lung.network.PDVNet",
        parameters=824_922,
        field=(313, 313, 313),
        peers=PDVNET_PEERS,
        size=(512, 512, 64),
        draw=_ct,
        input=f"chest CT, {WINDOW_HU[0]:.0f} to {WINDOW_HU[1]:.0f} HU",
        scan="chest CT",
        draw_scan=chest_ct,
        scan_shape=(512, 512, 300),
        grid={"spatial_size": [512, 512, 64]},
    ),
    "vnet_prostate": Subject(
        name="V-Net",
        bundle=BUNDLES / "vnet_prostate",
        target="vnet_prostate.network.VNet",
        parameters=65_175_314,
        field=(548, 548, 548),
        peers=VNET_PEERS,
        size=(128, 128, 64),
        draw=_mri,
        input="prostate MRI at 1.0x1.0x1.5 mm, z-scored",
        recorded=("norm", "channels"),
        scan="prostate MRI",
        draw_scan=prostate_mri,
        scan_shape=(384, 384, 24),
        grid={"spatial_size": [128, 128, 64], "spacing_mm": list(SPACING_MM)},
    ),
    "resunet_mitoem_r": _resunet("R", 1_534_194, "model.pt"),
    "resunet_mitoem_h": _resunet("H", 2_080_066, "model_h.pt"),
}
