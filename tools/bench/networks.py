# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks of all bundles' networks have in common: ways to run, weights, forward passes, inference.

A way is a mode of :func:`volseg.runtime.accelerate.accelerate` on the CPU, the same on a GPU (``"CUDA, cuda_amp"``),
or the name of a peer. The rows of GPUs appear where PyTorch finds one.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import psutil
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tools import REPOSITORY
from tools.bench.measure import interleave, summary
from tools.bench.peers import Peer, build_peer
from tools.bench.processes import MEGABYTE, peak_memory_mb, peak_memory_of_command_mb
from volseg.runtime.accelerate import accelerate
from volseg.weights import load_weights

__all__ = [
    "agreement",
    "build_way",
    "count_operations",
    "first_forward",
    "load_trained",
    "make_importable",
    "most_likely",
    "rows_of_ways",
    "size_note",
    "time_forwards",
    "time_inference",
    "time_steps",
    "trained_weights",
    "ways_here",
    "weights_source",
]

CUDA = "CUDA, "
CUDA_MODES = ("eager", "cuda_amp", "compile")
GIGA = 1e9
Build = Callable[[str, str], nn.Module]
"""Makes the network for a way, given the folder for converted networks; equal weights at every call."""


def make_importable(bundle: Path) -> None:
    """Let the package of a bundle be imported; a bundle is no installed package."""
    if str(bundle) not in sys.path:
        sys.path.insert(0, str(bundle))


def trained_weights(bundle: Path, name: str = "model.pt") -> Path | None:
    """The weights that a bundle has, if any; first those that learnt at the paper's size, in ``models/full_size``."""
    paths = (bundle / "models" / "full_size" / name, bundle / "models" / name)
    return next((path for path in paths if path.exists()), None)


def weights_source(bundle: Path, seed: int, name: str = "model.pt") -> str:
    """Where the weights of :func:`load_trained` are from."""
    path = trained_weights(bundle, name)
    return str(path.relative_to(REPOSITORY)) if path else f"random, seed {seed}"


def load_trained(network: nn.Module, bundle: Path, name: str = "model.pt") -> nn.Module:
    """The network in evaluation mode, with the bundle's weights of that name where it has some."""
    if path := trained_weights(bundle, name):
        load_weights(path, network)
    return network.eval()


def most_likely(output: torch.Tensor) -> torch.Tensor:
    """The class with the largest value, ``(B, C, ...)`` to ``(B, ...)``."""
    return output.argmax(1)


def ways_here(modes: Sequence[str], peers: Mapping[str, Peer], cuda: bool | None = None) -> tuple[str, ...]:
    """All ways to be measured: modes on the CPU, peers and, where there is a GPU, modes on it.

    Args:
        modes: on the CPU, that which ratios refer to first.
        peers: by their names.
        cuda: whether there is a GPU; PyTorch is asked if not given.
    """
    cuda = torch.cuda.is_available() if cuda is None else cuda
    return (*modes, *peers, *(f"{CUDA}{mode}" for mode in CUDA_MODES if cuda))


def build_way(
    way: str, cache: str, network: Callable[[], nn.Module], peers: Mapping[str, Peer], seed: int
) -> nn.Module:
    """The network as it runs in a way, or the peer of that name.

    Args:
        way: see the module's text.
        cache: folder for converted networks.
        network: makes the bundle's network, with its weights.
        peers: by their names.
        seed: of a peer's weights.
    """
    if way in peers:
        return build_peer(peers[way], seed)
    return accelerate(network(), _device(way), way.removeprefix(CUDA), cache)


def time_forwards(
    build: Build,
    ways: Sequence[str],
    image: torch.Tensor,
    repetitions: int,
    decide: Callable[[torch.Tensor], torch.Tensor] = most_likely,
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


def size_note(operations: int) -> str:
    """A sentence on the work of one forward pass, as :func:`count_operations` finds it."""
    return f"The network is {operations / GIGA:.0f} GFLOP"


def agreement(labels: torch.Tensor, reference: torch.Tensor) -> dict[str, float]:
    """Which part of the voxels have the reference's label."""
    return {"agreement": round(float((labels == reference).float().mean()), 6)}


def first_forward(build: Build, way: str, shape: Sequence[int]) -> dict[str, float]:
    """What the first forward in this process takes: seconds, peak memory, and what that adds to before.

    On a GPU also the peak of its memory.
    """
    with tempfile.TemporaryDirectory() as cache, torch.no_grad():
        network, image = build(way, cache), torch.randn(*shape, device=_device(way))
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


def time_steps(step: Callable[[], object], steps: int) -> dict[str, Any]:
    """The seconds of each of several steps, and the peak memory of this process after them."""
    seconds = interleave({"step": step}, steps - 1)["step"]
    return {"seconds": seconds, "peak_mb": round(peak_memory_mb())}


def time_inference(
    bundle: Path, case: Any, network: nn.Module, settings: Mapping[str, str], repetitions: int
) -> list[dict[str, Any]]:
    """Rows for ``monai.bundle run`` from a volume on disk to segmentations on disk, start of Python included.

    Args:
        bundle: whose ``configs/inference.json`` runs, with its trained weights or those of ``network``.
        case: written as compressed NIfTI.
        network: as the config builds it.
        settings: further overrides of the config.
        repetitions: timed runs after the warm-up.
    """
    peaks: dict[str, list[float]] = {"eager": [], "auto": []}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        nib.save(nib.Nifti1Image(case.image, case.affine), work / "image.nii.gz")
        weights = trained_weights(bundle)
        if weights is None:
            weights = work / "weights.pt"
            torch.save(network.state_dict(), weights)
        overrides = {
            "config_file": bundle / "configs" / "inference.json",
            "input": work / "image.nii.gz",
            "output_dir": work / "output",
            "weights": weights,
            **settings,
        }
        arguments = [part for key, value in overrides.items() for part in (f"--{key}", str(value))]
        command = [sys.executable, "-m", "monai.bundle", "run", *arguments]
        environment = {**os.environ, "XDG_CACHE_HOME": str(work / "cache")}

        def step(mode: str) -> Callable[[], None]:
            return lambda: peaks[mode].append(peak_memory_of_command_mb([*command, "--runtime", mode], environment))

        seconds = interleave({mode: step(mode) for mode in peaks}, repetitions)
    return [
        {
            "mode": mode,
            **summary(seconds[mode], seconds["eager"]),
            "first_s": round(seconds[mode][0], 2),
            "peak_mb": round(max(peaks[mode])),
        }
        for mode in peaks
    ]
