# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks of all bundles' networks have in common: weights, forward passes, steps, inference."""

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

from tools import REPOSITORY
from tools.bench.measure import interleave, summary
from tools.bench.processes import MEGABYTE, peak_memory_mb, peak_memory_of_command_mb
from volseg.weights import load_weights

__all__ = [
    "agreement",
    "first_forward",
    "load_trained",
    "make_importable",
    "most_likely",
    "time_forwards",
    "time_inference",
    "time_steps",
    "trained_weights",
    "weights_source",
]

Build = Callable[[str, str], nn.Module]
"""Makes the network for a mode, given the folder for converted networks; equal weights at every call."""


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


def time_forwards(
    build: Build,
    modes: Sequence[str],
    image: torch.Tensor,
    repetitions: int,
    decide: Callable[[torch.Tensor], torch.Tensor] = most_likely,
) -> tuple[dict[str, list[float]], dict[str, torch.Tensor]]:
    """Seconds of the forward passes of each mode, taking turns, and the labels that ``decide`` made of the outputs."""
    labels: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory() as cache:
        # a network each: channels-last changes the layout of the weights that it runs with
        networks = {mode: build(mode, cache) for mode in modes}

        def step(mode: str) -> Callable[[], None]:
            def run() -> None:
                with torch.no_grad():
                    output = networks[mode](image)
                if mode not in labels:  # in the warm-up, which is not timed
                    labels[mode] = decide(output)

            return run

        return interleave({mode: step(mode) for mode in modes}, repetitions), labels


def agreement(labels: torch.Tensor, reference: torch.Tensor) -> dict[str, float]:
    """Which part of the voxels have the reference's label."""
    return {"agreement": round(float((labels == reference).float().mean()), 6)}


def first_forward(build: Build, mode: str, shape: Sequence[int]) -> dict[str, float]:
    """What the first forward in this process takes: seconds, peak memory, and what that adds to before."""
    with tempfile.TemporaryDirectory() as cache, torch.no_grad():
        network, image = build(mode, cache), torch.randn(*shape)
        before_mb = psutil.Process().memory_info().rss / MEGABYTE
        start = time.perf_counter()
        network(image)
        seconds = time.perf_counter() - start
    peak_mb = peak_memory_mb()
    return {"first_s": round(seconds, 2), "peak_mb": round(peak_mb), "added_mb": round(peak_mb - before_mb)}


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
