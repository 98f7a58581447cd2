# SPDX-License-Identifier: Apache-2.0
"""PDV-Net: the network, the bundle from file to file, a training step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
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
    ways_here,
    weights_source,
)
from tools.bench.peers import PDVNET_PEERS, build_peer, describe_peers
from tools.bench.processes import in_fresh_process
from volseg.phantoms.chest_ct import chest_ct

__all__ = ["bench_end_to_end", "bench_network", "bench_training"]

BUNDLE = REPOSITORY / "bundles" / "pdvnet_lung"
MODES = ("eager", "channels_last", "bf16", "openvino", "compile", "auto")
SIZE = (512, 512, 64)
PARAMETERS = 824_922
FIELD = (313, 313, 313)
CT_SHAPE = (512, 512, 300)
WINDOW_HU = (-1100.0, -400.0)


def bench_network(
    repetitions: int, seed: int, size: Sequence[int] = SIZE, modes: Sequence[str] = MODES
) -> dict[str, Any]:
    """Seconds and memory of PDV-Net in each mode and of MONAI's UNet; agreement of labels with plain PyTorch's."""
    ways = ways_here(modes, PDVNET_PEERS)
    memory = {}
    for way in ways:
        say(f"{way}: memory of a process of its own")
        memory[way] = in_fresh_process(first_forward_of, way, tuple(size))
    say(f"draw a phantom and bring it to {times(size)}")
    image = network_input(seed, size)
    seconds, labels, ran = time_forwards(partial(build, seed=seed), ways, image, repetitions)
    # a peer is another network with weights of its own
    columns = {way: agreement(labels[way], labels["eager"]) for way in ways if way not in PDVNET_PEERS}
    operations = {way: count_operations(build_peer(peer, seed), image.shape) for way, peer in PDVNET_PEERS.items()}
    operations["eager"] = count_operations(trained(seed), image.shape)
    rows = rows_of_ways(seconds, memory, columns, operations, ran)
    return {
        "title": f"PDV-Net, {times(size)}: the network alone",
        "input": f"phantom chest CT {seed}, {WINDOW_HU[0]:.0f} to {WINDOW_HU[1]:.0f} HU, as {times((1, 1, *size))}",
        "weights": f"{weights_source(BUNDLE, seed)}; MONAI's: random",
        "note": f"{size_note(operations['eager'])}. {describe_peers('PDV-Net', PARAMETERS, FIELD, PDVNET_PEERS)}",
        **circumstances(),
        "rows": rows,
    }


def bench_end_to_end(repetitions: int, seed: int, shape: Sequence[int] = CT_SHAPE) -> dict[str, Any]:
    """Seconds and memory from a CT on disk to label maps on disk."""
    say(f"draw a phantom of {times(shape)}")
    ct = chest_ct(seed, shape=(shape[0], shape[1], shape[2]))
    settings = {"spatial_size": str(list(SIZE))}
    return {
        "title": f"PDV-Net bundle, CT of {times(shape)}: from file to file",
        "input": f"phantom chest CT {seed}, int16, NIfTI, compressed",
        "weights": weights_source(BUNDLE, seed),
        **circumstances(),
        "rows": time_inference(BUNDLE, ct, pdvnet(seed), settings, repetitions),
    }


def bench_training(repetitions: int, seed: int, size: Sequence[int] = SIZE) -> dict[str, Any]:
    """Seconds and memory of forward and backward pass of one case, each way in a process of its own."""
    steps = {}
    for mode in ("plain", "checkpointing"):
        say(f"training, {mode}: {repetitions + 1} steps in a process of their own")
        steps[mode] = in_fresh_process(training_steps, mode, tuple(size), repetitions + 1, seed)
    reference = steps["plain"]["seconds"]
    return {
        "title": f"PDV-Net, {times(size)}: one training step",
        "input": f"noise, as {times((1, 1, *size))}; three outputs, Dice, float32, channels-last",
        "weights": "random",
        **circumstances(),
        "rows": [
            {"mode": mode, **summary(step["seconds"], reference), "peak_mb": step["peak_mb"]}
            for mode, step in steps.items()
        ],
    }


def build(way: str, cache: str, seed: int = 0) -> nn.Module:
    """PDV-Net as it runs in a way, or MONAI's UNet."""
    return build_way(way, cache, partial(trained, seed), PDVNET_PEERS, seed)


def trained(seed: int) -> nn.Module:
    """PDV-Net with the bundle's weights, where there are any."""
    return load_trained(pdvnet(seed), BUNDLE)


def pdvnet(seed: int, **arguments: Any) -> nn.Module:
    """PDV-Net with random weights."""
    make_importable(BUNDLE)
    from pdvnet_lung.network import PDVNet  # noqa: PLC0415

    torch.manual_seed(seed)
    return PDVNet(**arguments)


def network_input(seed: int, size: Sequence[int]) -> torch.Tensor:
    """A phantom CT as the network gets it: float32 ``(1, 1, X, Y, Z)`` in -1 to 1."""
    image = torch.from_numpy(chest_ct(seed, shape=(256, 256, 128), orientation="RAS").image.astype(np.float32))
    image = nn.functional.interpolate(image[None, None], tuple(size), mode="trilinear")
    low, high = WINDOW_HU
    return ((image - low) / (high - low) * 2 - 1).clip(-1, 1)


def first_forward_of(way: str, size: Sequence[int]) -> dict[str, float]:
    """:func:`~tools.bench.networks.first_forward` of PDV-Net or its peer."""
    return first_forward(build, way, (1, 1, *size))


def training_steps(mode: str, size: Sequence[int], steps: int, seed: int) -> dict[str, Any]:
    """Seconds of forward and backward passes, and the peak memory of this process."""
    from monai.losses import DeepSupervisionLoss, DiceLoss  # noqa: PLC0415 (a quarter of the start-up time)

    loss = DeepSupervisionLoss(DiceLoss(softmax=True, squared_pred=True), weight_mode="same")
    network = pdvnet(seed, checkpointing=mode == "checkpointing").train()
    network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    image, target = torch.randn(1, 1, *size), torch.rand(1, 6, *(n // 2 for n in size))
    return time_steps(lambda: loss(list(network(image)), target).backward(), steps)
