# SPDX-License-Identifier: Apache-2.0
"""The bundles' networks alone, in every way to run them, beside MONAI's; a training step of PDV-Net.

A way is a mode of :func:`volseg.runtime.accelerate.accelerate` on the CPU, the same on a GPU (``"CUDA, cuda_amp"``),
or the name of a peer. The rows of GPUs appear where PyTorch finds one.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import psutil
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tools.bench.measure import (
    MEGABYTE,
    circumstances,
    in_fresh_process,
    interleave,
    peak_memory_mb,
    say,
    summary,
    times,
)
from tools.bench.subjects import SUBJECTS, Peer, build_peer, describe_peers
from volseg.runtime.accelerate import accelerate

MODES = ("eager", "channels_last", "bf16", "openvino", "compile", "auto")
CUDA = "CUDA, "
CUDA_MODES = ("eager", "cuda_amp", "compile")
GIGA = 1e9


def bench_network(
    repetitions: int, seed: int, subject: str, size: Sequence[int] | None = None, modes: Sequence[str] = MODES
) -> dict[str, Any]:
    """Measure seconds, memory and agreement with plain PyTorch, in each mode and of MONAI's networks.

    Args:
        repetitions: timed runs of each way.
        seed: of the phantom, and of random weights.
        subject: one of :data:`tools.bench.subjects.SUBJECTS`.
        size: of the input; the subject's if not given.
        modes: on the CPU, that which ratios refer to first.
    """
    network = SUBJECTS[subject]
    size, peers = tuple(size or network.size), network.peers
    ways = ways_here(modes, peers)
    memory = {}
    for way in ways:
        say(f"{way}: memory in its own process")
        memory[way] = in_fresh_process(first_forward, subject, way, size)
    say(f"draw a phantom for {times(size)}")
    image = network.draw(seed, size)
    seconds, labels, ran = time_forwards(
        partial(build_way, subject, seed=seed), ways, image, repetitions, network.decide
    )
    # a peer is another network with weights of its own
    columns = {way: agreement(labels[way], labels[ways[0]]) for way in ways if way not in peers}
    operations = {way: count_operations(build_peer(peer, seed), image.shape) for way, peer in peers.items()}
    measured = network.trained(seed)
    operations[ways[0]] = count_operations(measured, image.shape)
    parameters = sum(weights.numel() for weights in measured.parameters())  # fewer than the paper's where narrow
    found = labels[ways[0]] > 0
    return {
        "title": f"{network.name}, {times(size)}: the network alone",
        "input": f"phantom {seed}, {network.input}, as {times((1, 1, *size))}",
        "weights": f"{network.describe_weights(seed)}; MONAI's: random",
        "note": f"{ways[0]} finds {int(found.sum())} of {found.numel()} labels above 0. "
        f"The network is {operations[ways[0]] / GIGA:.0f} GFLOP. "
        f"{describe_peers(network.name, parameters, network.field, peers)}",
        **circumstances(),
        "rows": rows_of_ways(seconds, memory, columns, operations, ran),
    }


def bench_checkpointing(repetitions: int, seed: int, size: Sequence[int] = (512, 512, 64)) -> dict[str, Any]:
    """Measure forward and backward pass of PDV-Net for one case, each way in its own process."""
    steps = {}
    for mode in ("plain", "checkpointing"):
        say(f"training, {mode}: {repetitions + 1} steps in their own process")
        steps[mode] = in_fresh_process(training_steps, mode == "checkpointing", tuple(size), repetitions + 1, seed)
    return {
        "title": f"PDV-Net, {times(size)}: one training step",
        "input": f"noise, as {times((1, 1, *size))}; three outputs, Dice, float32, channels-last",
        "weights": "random",
        **circumstances(),
        "rows": [
            {"mode": mode, **summary(step["seconds"], steps["plain"]["seconds"]), "peak_mb": step["peak_mb"]}
            for mode, step in steps.items()
        ],
    }


def training_steps(checkpointing: bool, size: Sequence[int], steps: int, seed: int) -> dict[str, Any]:
    """Seconds of forward and backward passes of PDV-Net, and the peak memory of this process."""
    from monai.losses import DeepSupervisionLoss, DiceLoss  # noqa: PLC0415 (a quarter of the start-up time)

    loss = DeepSupervisionLoss(DiceLoss(softmax=True, squared_pred=True), weight_mode="same")
    network = SUBJECTS["pdvnet_lung"].untrained(seed, checkpointing=checkpointing).train()
    network = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    image, target = torch.randn(1, 1, *size), torch.rand(1, 6, *(n // 2 for n in size))
    seconds = interleave({"step": lambda: loss(list(network(image)), target).backward()}, steps - 1)["step"]
    return {"seconds": seconds, "peak_mb": round(peak_memory_mb())}


def ways_here(modes: Sequence[str], peers: Mapping[str, Peer], cuda: bool | None = None) -> tuple[str, ...]:
    """All ways to be measured: modes on the CPU, peers and, where there is a GPU, modes on it.

    Args:
        modes: on the CPU, that which ratios refer to first.
        peers: by their names.
        cuda: whether there is a GPU; PyTorch is asked if not given.
    """
    cuda = torch.cuda.is_available() if cuda is None else cuda
    return (*modes, *peers, *(f"{CUDA}{mode}" for mode in CUDA_MODES if cuda))


def build_way(subject: str, way: str, cache: str, seed: int = 0) -> nn.Module:
    """The network as it runs in a way, or the peer of that name; equal weights at every call.

    Args:
        subject: one of :data:`tools.bench.subjects.SUBJECTS`.
        way: see the module's text.
        cache: folder for converted networks.
        seed: of random weights.
    """
    network = SUBJECTS[subject]
    if way in network.peers:
        return build_peer(network.peers[way], seed)
    return accelerate(network.trained(seed), _device(way), way.removeprefix(CUDA), cache)


def time_forwards(
    build: Callable[[str, str], nn.Module],
    ways: Sequence[str],
    image: torch.Tensor,
    repetitions: int,
    decide: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[dict[str, list[float]], dict[str, torch.Tensor], dict[str, str]]:
    """Measure the forward passes of each way, taking turns.

    On a GPU, image and output stay there, and the clock stops when it has finished.

    Returns:
        by way, the seconds of the runs, the labels that ``decide`` made of the output, and the mode that ran.
    """
    labels: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory() as cache:
        # a network each: channels-last changes the layout of the weights that it runs with
        networks = {way: build(way, cache) for way in ways}
        images = {device: image.to(device) for device in map(_device, ways)}

        def step(way: str) -> Callable[[], None]:
            def run() -> None:
                with torch.no_grad():
                    output = networks[way](images[_device(way)])
                _wait_for(_device(way))
                if way not in labels:  # in the warm-up, which is not timed
                    labels[way] = decide(output).cpu()

            return run

        seconds = interleave({way: step(way) for way in ways}, repetitions)
        return seconds, labels, {way: getattr(network, "ran", way) for way, network in networks.items()}


def rows_of_ways(
    seconds: Mapping[str, Sequence[float]],
    memory: Mapping[str, Mapping[str, float]],
    columns: Mapping[str, Mapping[str, float]],
    operations: Mapping[str, int],
    ran: Mapping[str, str],
) -> list[dict[str, Any]]:
    """A row for each way, the first of which is what ratios refer to.

    Args:
        seconds: of the runs, the warm-up first.
        memory: what :func:`first_forward` found.
        columns: what else is known of a way, such as its agreement.
        operations: of the network as it is written; of the bundle's network under the name of the first way.
        ran: the mode in which each way ran; it has a column where the way is ``"auto"``.
    """
    reference = next(iter(seconds))
    rows = []
    for way, runs in seconds.items():
        row: dict[str, Any] = {"mode": way, **summary(runs, seconds[reference])}
        rate = operations.get(way, operations[reference]) / row["median_s"] / GIGA
        chosen = {"ran": ran[way]} if way == "auto" else {}
        rows.append({**row, **memory[way], "gflop_per_s": round(rate), **columns.get(way, {}), **chosen})
    return rows


def count_operations(network: nn.Module, shape: Sequence[int]) -> int:
    """Floating-point operations of the convolutions of a forward pass as written; a multiply-add is two.

    The network is moved to the meta device, where nothing is computed.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.to("meta")(torch.empty(*shape, device="meta"))
    return counter.get_total_flops()


def agreement(labels: torch.Tensor, reference: torch.Tensor) -> dict[str, float]:
    """Which part of the voxels have the reference's label; where the reference has labels above 0, also their Dice."""
    found, true = labels > 0, reference > 0
    columns = {"agreement": round(float((labels == reference).float().mean()), 6)}
    if true.any():
        columns["dice"] = round(2 * int((found & true).sum()) / int(found.sum() + true.sum()), 6)
    return columns


def first_forward(subject: str, way: str, size: Sequence[int]) -> dict[str, float]:
    """What the first forward in this process takes: seconds, peak memory, and what that adds to before.

    On a GPU also the peak of its memory.
    """
    with tempfile.TemporaryDirectory() as cache, torch.no_grad():
        network, image = build_way(subject, way, cache), torch.randn(1, 1, *size, device=_device(way))
        before_mb = psutil.Process().memory_info().rss / MEGABYTE
        start = time.perf_counter()
        network(image)
        _wait_for(_device(way))
        seconds = time.perf_counter() - start
    peak_mb = peak_memory_mb()
    found = {"first_s": round(seconds, 2), "peak_mb": round(peak_mb), "added_mb": round(peak_mb - before_mb)}
    if _device(way) == "cuda":
        found["gpu_peak_mb"] = round(torch.cuda.max_memory_allocated() / MEGABYTE)
    return found


def _device(way: str) -> str:
    return "cuda" if way.startswith(CUDA) else "cpu"


def _wait_for(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
