# SPDX-License-Identifier: Apache-2.0
"""V-Net: the network beside MONAI's, the bundle from file to file, a training step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import CenterSpatialCropd, Compose, Orientationd, Spacingd, SpatialPadd
from torch import nn

from tools import REPOSITORY
from tools.bench.measure import circumstances, say, summary, times
from tools.bench.networks import (
    agreement,
    build_way,
    count_operations,
    first_forward,
    load_trained,
    make_importable,
    rows_of_ways,
    size_note,
    time_forwards,
    time_inference,
    time_steps,
    trained_weights,
    ways_here,
    weights_source,
)
from tools.bench.peers import VNET_PEERS, build_peer, describe_peers
from tools.bench.processes import in_fresh_process
from volseg.label_maps.overlap import confusion_counts, dice_per_label
from volseg.phantoms.prostate_mri import prostate_mri
from volseg.weights import recorded_values

__all__ = ["bench_end_to_end", "bench_network", "bench_training"]

BUNDLE = REPOSITORY / "bundles" / "vnet_prostate"
MODES = ("eager", "channels_last", "bf16", "openvino", "compile", "auto")
SIZE = (128, 128, 64)
PARAMETERS = 65_175_314
FIELD = (548, 548, 548)
SPACING_MM = (1.0, 1.0, 1.5)
MRI_SHAPE = (384, 384, 24)
BATCH_SIZE = 2


def bench_network(
    repetitions: int, seed: int, size: Sequence[int] = SIZE, modes: Sequence[str] = MODES
) -> dict[str, Any]:
    """Seconds and memory of V-Net in each mode and of MONAI's; agreement and Dice of masks with plain PyTorch's."""
    ways = ways_here(modes, VNET_PEERS)
    memory = {}
    for way in ways:
        say(f"{way}: memory of a process of its own")
        memory[way] = in_fresh_process(first_forward_of, way, tuple(size))
    say(f"draw a phantom and bring it to {times(size)}")
    image = network_input(seed, size)
    seconds, masks, ran = time_forwards(partial(build, seed=seed), ways, image, repetitions)
    # a peer is another network with weights of its own
    columns, note = compare_masks({way: mask for way, mask in masks.items() if way not in VNET_PEERS})
    operations = {way: count_operations(build_peer(peer, seed), image.shape) for way, peer in VNET_PEERS.items()}
    operations["eager"] = count_operations(trained(seed), image.shape)
    rows = rows_of_ways(seconds, memory, columns, operations, ran)
    return {
        "title": f"V-Net, {times(size)}: the network alone",
        "input": f"phantom prostate MRI {seed}, z-scored, as {times((1, 1, *size))} at {times(SPACING_MM)} mm",
        "weights": f"{describe_weights(seed)}; MONAI's: random",
        "note": f"{note}. {size_note(operations['eager'])}. {describe_peers('V-Net', PARAMETERS, FIELD, VNET_PEERS)}",
        **circumstances(),
        "rows": rows,
    }


def bench_end_to_end(
    repetitions: int, seed: int, shape: Sequence[int] = MRI_SHAPE, size: Sequence[int] = SIZE
) -> dict[str, Any]:
    """Seconds and memory from an MRI on disk to masks on disk."""
    say(f"draw a phantom of {times(shape)}")
    mri = prostate_mri(seed, (shape[0], shape[1], shape[2]))
    settings = {"spacing_mm": str(list(SPACING_MM)), "spatial_size": str(list(size))}
    return {
        "title": f"V-Net bundle, MRI of {times(shape)}: from file to file",
        "input": f"phantom prostate MRI {seed}, int16, NIfTI, compressed; segmented at {times(size)}",
        "weights": describe_weights(seed),
        **circumstances(),
        "rows": time_inference(BUNDLE, mri, vnet(seed), settings, repetitions),
    }


def bench_training(repetitions: int, seed: int, size: Sequence[int] = SIZE) -> dict[str, Any]:
    """Seconds and memory of forward and backward pass of one batch, in a process of their own."""
    say(f"training: {repetitions + 1} steps in a process of their own")
    steps = in_fresh_process(training_steps, tuple(size), repetitions + 1, seed)
    return {
        "title": f"V-Net, {times(size)}: one training step",
        "input": f"noise, as {times((BATCH_SIZE, 1, *size))}; Dice, float32, no normalisation as in the paper",
        "weights": "random",
        **circumstances(),
        "rows": [{"mode": "plain", **summary(steps["seconds"], steps["seconds"]), "peak_mb": steps["peak_mb"]}],
    }


def build(way: str, cache: str, seed: int = 0) -> nn.Module:
    """V-Net as it runs in a way, or one of MONAI's."""
    return build_way(way, cache, partial(trained, seed), VNET_PEERS, seed)


def trained(seed: int) -> nn.Module:
    """V-Net with the bundle's weights, where there are any, and the width and normalisation that they learnt with."""
    weights = trained_weights(BUNDLE)
    paper = {"norm": None, "channels": (16, 32, 64, 128, 256)}
    return load_trained(vnet(seed, **(recorded_values(weights, paper) if weights else paper)), BUNDLE)


def vnet(seed: int, **arguments: Any) -> nn.Module:
    """V-Net with random weights."""
    make_importable(BUNDLE)
    from vnet_prostate.network import VNet  # noqa: PLC0415

    torch.manual_seed(seed)
    return VNet(**arguments)


def describe_weights(seed: int) -> str:
    """Where the weights are from, and what they were trained for: they may have learnt at another grid."""
    source = weights_source(BUNDLE, seed)
    weights = trained_weights(BUNDLE)
    if weights is None or not weights.with_suffix(".json").is_file():
        return source
    size, spacing_mm, norm = recorded_values(weights, dict.fromkeys(("spatial_size", "spacing_mm", "norm"))).values()
    return f"{source}, trained at {times(size)} and {times(spacing_mm)} mm, {norm or 'no'} normalisation"


def network_input(seed: int, size: Sequence[int]) -> torch.Tensor:
    """A phantom MRI as the network gets it, preprocessed as in ``inference.json``: float32 ``(1, 1, X, Y, Z)``."""
    make_importable(BUNDLE)
    from vnet_prostate.intensity import ZScored  # noqa: PLC0415

    mri = prostate_mri(seed, (256, 256, 28))
    image = MetaTensor(torch.from_numpy(mri.image).float()[None], affine=torch.from_numpy(mri.affine))
    preprocessing = Compose(
        [
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=SPACING_MM, mode="bilinear"),
            CenterSpatialCropd("image", roi_size=size),
            ZScored("image"),
            SpatialPadd("image", spatial_size=size),
        ]
    )
    return preprocessing({"image": image})["image"].as_tensor()[None].contiguous()


def compare_masks(masks: Mapping[str, torch.Tensor]) -> tuple[dict[str, dict[str, float]], str]:
    """Columns that compare masks with that of ``"eager"``, and a note on that one.

    Args:
        masks: of each mode, integers 0 and 1.

    Returns:
        for each mode ``agreement`` and, unless the reference is empty, ``dice``; the note.
    """
    reference = masks["eager"]
    columns = {mode: agreement(mask, reference) for mode, mask in masks.items()}
    found = int(reference.sum())
    if not found:
        return columns, "The mask of eager is empty, so that there is no Dice"
    for mode, mask in masks.items():
        dice = dice_per_label(confusion_counts(mask.numpy(), reference.numpy(), num_classes=2))
        columns[mode]["dice"] = round(float(dice[1]), 6)
    return columns, f"The mask of eager has {found} of {reference.numel()} voxels"


def first_forward_of(way: str, size: Sequence[int]) -> dict[str, float]:
    """:func:`~tools.bench.networks.first_forward` of V-Net."""
    return first_forward(build, way, (1, 1, *size))


def training_steps(size: Sequence[int], steps: int, seed: int) -> dict[str, Any]:
    """Seconds of forward and backward passes, and the peak memory of this process."""
    from monai.losses import DiceLoss  # noqa: PLC0415 (a quarter of the start-up time)

    loss = DiceLoss(
        include_background=False, to_onehot_y=True, softmax=True, squared_pred=True, smooth_nr=0, smooth_dr=1e-5
    )
    network = vnet(seed).train()
    image = torch.randn(BATCH_SIZE, 1, *size)
    target = (torch.rand(BATCH_SIZE, 1, *size) < 0.1).float()
    return time_steps(lambda: loss(network(image), target).backward(), steps)
