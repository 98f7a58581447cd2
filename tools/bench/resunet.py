# SPDX-License-Identifier: Apache-2.0
"""Res-UNet-R and Res-UNet-H: the networks, a training step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

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
    time_steps,
    ways_here,
    weights_source,
)
from tools.bench.peers import RESUNET_PEERS, build_peer, describe_peers
from tools.bench.processes import in_fresh_process
from volseg.losses import WeightedBCELoss
from volseg.phantoms.electron_microscopy import electron_microscopy

__all__ = ["bench_network_h", "bench_network_r", "bench_training"]

BUNDLE = REPOSITORY / "bundles" / "resunet_mitoem"
MODES = ("eager", "channels_last", "bf16", "openvino", "compile", "auto")
SIZE = (32, 256, 256)
PARAMETERS = {"R": 1_534_194, "H": 2_080_066}
FIELD = (37, 333, 333)
TRAINING_SIZE = (16, 96, 96)
BATCH_SIZE = 2
WEIGHTS = {"R": "model.pt", "H": "model_h.pt"}
# the weights learnt from phantoms whose pixels of 8 nm were averaged 4 by 4
BINNING = 4


def bench_network_r(
    repetitions: int, seed: int, size: Sequence[int] = SIZE, modes: Sequence[str] = MODES
) -> dict[str, Any]:
    """Seconds, memory and agreement of Res-UNet-R's masks and boundaries with plain PyTorch, in each mode."""
    return _bench_network("R", repetitions, seed, size, modes)


def bench_network_h(
    repetitions: int, seed: int, size: Sequence[int] = SIZE, modes: Sequence[str] = MODES
) -> dict[str, Any]:
    """The same of Res-UNet-H."""
    return _bench_network("H", repetitions, seed, size, modes)


def bench_training(repetitions: int, seed: int, size: Sequence[int] = TRAINING_SIZE) -> dict[str, Any]:
    """Seconds and memory of forward and backward pass of one batch, each way in a process of its own."""
    steps = {}
    for mode in ("float32", "bf16"):
        say(f"training, {mode}: {repetitions + 1} steps in a process of their own")
        steps[mode] = in_fresh_process(training_steps, mode, tuple(size), repetitions + 1, seed)
    reference = steps["float32"]["seconds"]
    return {
        "title": f"Res-UNet-R, {times(size)}: one training step",
        "input": f"noise, as {times((BATCH_SIZE, 1, *size))}; weighted cross entropy, bf16: channels-last, autocast",
        "weights": "random",
        **circumstances(),
        "rows": [
            {"mode": mode, **summary(step["seconds"], reference), "peak_mb": step["peak_mb"]}
            for mode, step in steps.items()
        ],
    }


def _bench_network(
    variant: str, repetitions: int, seed: int, size: Sequence[int], modes: Sequence[str]
) -> dict[str, Any]:
    ways = ways_here(modes, RESUNET_PEERS)
    memory = {}
    for way in ways:
        say(f"{way}: memory of a process of its own")
        memory[way] = in_fresh_process(first_forward_of, variant, way, tuple(size))
    say(f"draw a phantom of {times(size)}")
    image = network_input(seed, size)
    seconds, labels, ran = time_forwards(partial(build, variant, seed=seed), ways, image, repetitions, above_half)
    mask, boundary = (int(channel.sum()) for channel in labels["eager"][0])
    # a peer is another network with weights of its own
    columns = {way: agreement(labels[way], labels["eager"]) for way in ways if way not in RESUNET_PEERS}
    operations = {way: count_operations(build_peer(peer, seed), image.shape) for way, peer in RESUNET_PEERS.items()}
    operations["eager"] = count_operations(trained(variant, seed), image.shape)
    rows = rows_of_ways(seconds, memory, columns, operations, ran)
    name = f"Res-UNet-{variant}"
    return {
        "title": f"{name}, {times(size)}: the network alone",
        "input": f"phantom electron microscopy {seed}, pixels of 32 nm, 0 to 1, as {times((1, 1, *size))}",
        "weights": f"{weights_source(BUNDLE, seed, WEIGHTS[variant])}; MONAI's: random",
        "note": f"Labels: mask and boundary at a probability of 0.5; those of eager have {mask} and {boundary} of "
        f"{image.numel()} voxels. {size_note(operations['eager'])}. "
        f"{describe_peers(name, PARAMETERS[variant], FIELD, RESUNET_PEERS)}",
        **circumstances(),
        "rows": rows,
    }


def build(variant: str, way: str, cache: str, seed: int = 0) -> nn.Module:
    """Res-UNet-R or Res-UNet-H as it runs in a way, or MONAI's DynUNet."""
    return build_way(way, cache, partial(trained, variant, seed), RESUNET_PEERS, seed)


def trained(variant: str, seed: int) -> nn.Module:
    """Res-UNet-R or Res-UNet-H with the bundle's weights, where there are any."""
    return load_trained(resunet(variant, seed), BUNDLE, WEIGHTS[variant])


def resunet(variant: str, seed: int) -> nn.Module:
    """Res-UNet-R or Res-UNet-H with random weights."""
    make_importable(REPOSITORY / "bundles" / "resunet_mitoem")
    from resunet_mitoem.network import ResUNetH, ResUNetR  # noqa: PLC0415

    torch.manual_seed(seed)
    return {"R": ResUNetR, "H": ResUNetH}[variant]()


def network_input(seed: int, size: Sequence[int]) -> torch.Tensor:
    """A phantom as the network gets it: float32 ``(1, 1, D, H, W)`` in 0 to 1."""
    depth, height, width = size
    phantom = electron_microscopy(seed, (depth, height, width), binning=BINNING)
    return torch.from_numpy(phantom.image).float()[None, None] / 255


def above_half(logits: torch.Tensor) -> torch.Tensor:
    """Where mask and boundary have a probability above 0.5."""
    return logits > 0


def first_forward_of(variant: str, way: str, size: Sequence[int]) -> dict[str, float]:
    """:func:`~tools.bench.networks.first_forward` of Res-UNet-R, Res-UNet-H or their peer."""
    return first_forward(partial(build, variant), way, (1, 1, *size))


def training_steps(mode: str, size: Sequence[int], steps: int, seed: int) -> dict[str, Any]:
    """Seconds of forward and backward passes, and the peak memory of this process."""

    loss, network = WeightedBCELoss(), resunet("R", seed).train()
    if mode == "bf16":
        network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    image = torch.rand(BATCH_SIZE, 1, *size)
    target = (torch.rand(BATCH_SIZE, 2, *size) < 0.1).float()

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mode == "bf16"):
            logits = network(image)
        loss(logits, target).backward()

    return time_steps(step, steps)
