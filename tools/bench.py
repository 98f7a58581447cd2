# SPDX-License-Identifier: Apache-2.0
"""``python -m tools bench``: how fast networks and pipelines run on this machine, beside plain PyTorch.

Each benchmark writes one JSON file; the table and the plots are made from all JSON files of the folder. A file holds
what was measured (``title``, ``input``, ``weights``), where and how (``machine``, ``command``, ``date``) and a list of
``rows``, one for each way to do the same thing, the first being what ``ratio`` refers to.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
import psutil
import torch
from torch import nn

from tools import REPOSITORY
from tools.machine import describe_machine
from volseg.phantoms.chest_ct import chest_ct
from volseg.runtime import accelerate

__all__ = ["bench"]

PDVNET = REPOSITORY / "bundles" / "pdvnet_lung"
NETWORK_MODES = ("eager", "channels_last", "bf16", "openvino")
NETWORK_SIZE = (512, 512, 64)
CT_SHAPE = (512, 512, 300)
PHANTOM_SHAPE = (256, 256, 128)
WINDOW_HU = (-1100.0, -400.0)
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
MEGABYTE = 1e6


def bench(
    output_dir: str | None = None,
    repetitions: int = 5,
    network: bool = True,
    end_to_end: bool = True,
    training: bool = True,
    phantom: bool = True,
    seed: int = 3_000_000,
) -> None:
    """Measure networks and pipelines; write results, table and plots.

    Args:
        output_dir: folder to write to; ``docs/benchmarks`` of the checkout if not given.
        repetitions: timed runs of each mode, after one that is not timed.
        network: measure PDV-Net at 512 x 512 x 64 in each mode.
        end_to_end: measure the inference pipeline of a CT of 512 x 512 x 300, from file to file.
        training: measure one training step at 512 x 512 x 64, with and without activation checkpointing.
        phantom: measure how long it takes to draw a chest CT phantom of 256 x 256 x 128.
        seed: number of the phantom, one that no training sees; seed of the weights where there are no trained ones.
    """
    folder = Path(output_dir) if output_dir else REPOSITORY / "docs" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    if network:
        write_result(folder / "pdvnet_lung_network.json", bench_network(repetitions, seed))
    if end_to_end:
        write_result(folder / "pdvnet_lung_end_to_end.json", bench_end_to_end(min(repetitions, 3), seed))
    if training:
        write_result(folder / "pdvnet_lung_training.json", bench_training(min(repetitions, 3)))
    if phantom:
        write_result(folder / "chest_ct_phantom.json", bench_phantom(repetitions, seed))
    write_summary(folder)


def bench_training(repetitions: int, size: Sequence[int] = NETWORK_SIZE) -> dict[str, Any]:
    """Seconds and memory of forward and backward pass of one case, each way in a process of its own."""
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, int] = {}
    for mode in ("plain", "checkpointing"):
        say(f"training, {mode}: {repetitions + 1} steps in a process of their own")
        code = f"from tools.bench import training_steps; training_steps({mode!r}, {tuple(size)!r}, {repetitions + 1})"
        output = subprocess.run(
            [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
        )
        printed = json.loads(output.stdout.splitlines()[-1])
        seconds[mode], peaks[mode] = printed["seconds"], printed["peak_mb"]
    return {
        "title": f"PDV-Net, {times(size)}: one training step",
        "input": f"noise, as {times((1, 1, *size))}; three outputs, Dice, float32, channels-last",
        "weights": "random",
        **circumstances(),
        "rows": [
            {"mode": mode, **summary(seconds[mode], seconds["plain"]), "peak_mb": peaks[mode]} for mode in seconds
        ],
    }


def training_steps(mode: str, size: Sequence[int], steps: int) -> None:
    """Print as JSON the seconds of forward and backward passes and the peak memory of this process."""
    import resource  # noqa: PLC0415 (not on Windows)

    from monai.losses import DeepSupervisionLoss, DiceLoss  # noqa: PLC0415 (a quarter of the start-up time)

    loss = DeepSupervisionLoss(DiceLoss(softmax=True, squared_pred=True), weight_mode="same")
    network, _ = pdvnet(seed=0, checkpointing=mode == "checkpointing")
    network = network.train().to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    image, target = torch.randn(1, 1, *size), torch.rand(1, 6, *(n // 2 for n in size))
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        loss(list(network(image)), target).backward()
        seconds.append(time.perf_counter() - start)
    peak_mb = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MEGABYTE)
    print(json.dumps({"seconds": seconds, "peak_mb": peak_mb}))


def bench_phantom(repetitions: int, seed: int, shape: Sequence[int] = PHANTOM_SHAPE) -> dict[str, Any]:
    """Seconds to draw a chest CT phantom, a new one each time."""
    seeds = iter(range(seed, seed + repetitions + 1))
    seconds = interleave({"chest_ct": lambda: _draw(next(seeds), shape)}, repetitions)["chest_ct"]
    return {
        "title": f"Chest CT phantom, {times(shape)}",
        "input": f"seeds {seed} to {seed + repetitions}, random spacing and orientation",
        "weights": "none",
        **circumstances(),
        "rows": [{"mode": "chest_ct", **summary(seconds, seconds)}],
    }


def _draw(seed: int, shape: Sequence[int]) -> None:
    chest_ct(seed, shape=(shape[0], shape[1], shape[2]))


def bench_network(repetitions: int, seed: int, size: Sequence[int] = NETWORK_SIZE) -> dict[str, Any]:
    """Seconds, memory and agreement of PDV-Net's labels with plain PyTorch, in each mode."""
    network, weights = pdvnet(seed)
    say(f"draw a phantom and bring it to {times(size)}")
    image = network_input(seed, size)
    memory = {mode: _in_fresh_process(mode, size) for mode in NETWORK_MODES}
    labels: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory() as cache:
        # a copy each: channels-last changes the layout of the weights that it runs with
        runs = {mode: accelerate(deepcopy(network), mode=mode, cache_dir=cache) for mode in NETWORK_MODES}

        def step(mode: str) -> Callable[[], None]:
            def run() -> None:
                with torch.no_grad():
                    output = runs[mode](image)
                if mode not in labels:  # in the warm-up, which is not timed
                    labels[mode] = output.argmax(1)

            return run

        seconds = interleave({mode: step(mode) for mode in NETWORK_MODES}, repetitions)
    rows = [
        {
            "mode": mode,
            **summary(seconds[mode], seconds["eager"]),
            **memory[mode],
            "agreement": round(float((labels[mode] == labels["eager"]).float().mean()), 6),
        }
        for mode in NETWORK_MODES
    ]
    return {
        "title": f"PDV-Net, {times(size)}: the network alone",
        "input": f"phantom chest CT {seed}, {WINDOW_HU[0]:.0f} to {WINDOW_HU[1]:.0f} HU, as {times((1, 1, *size))}",
        "weights": weights,
        **circumstances(),
        "rows": rows,
    }


def bench_end_to_end(repetitions: int, seed: int, shape: Sequence[int] = CT_SHAPE) -> dict[str, Any]:
    """Seconds and memory of ``monai.bundle run`` from a CT on disk to label maps on disk, start of Python included."""
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        say(f"draw a phantom of {times(shape)}")
        ct = chest_ct(seed, shape=(shape[0], shape[1], shape[2]))
        nib.save(nib.Nifti1Image(ct.image, ct.affine), work / "ct.nii.gz")
        network, weights = pdvnet(seed)
        torch.save(network.state_dict(), work / "weights.pt")
        trained = PDVNET / "models" / "model.pt"
        command = [
            *(sys.executable, "-m", "monai.bundle", "run"),
            *("--config_file", str(PDVNET / "configs" / "inference.json")),
            *("--input", str(work / "ct.nii.gz"), "--output_dir", str(work / "output")),
            *("--weights", str(trained if trained.exists() else work / "weights.pt")),
            *("--spatial_size", "[" + ",".join(map(str, NETWORK_SIZE)) + "]"),
        ]
        peaks: dict[str, list[float]] = {"eager": [], "auto": []}

        def step(mode: str) -> Callable[[], None]:
            environment = {**os.environ, "XDG_CACHE_HOME": str(work / "cache")}
            return lambda: peaks[mode].append(_peak_of([*command, "--runtime", mode], environment))

        seconds = interleave({mode: step(mode) for mode in peaks}, repetitions)
        rows = [
            {
                "mode": mode,
                **summary(seconds[mode], seconds["eager"]),
                "first_s": round(seconds[mode][0], 2),
                "peak_mb": round(max(peaks[mode])),
            }
            for mode in peaks
        ]
    return {
        "title": f"PDV-Net bundle, CT of {times(shape)}: from file to file",
        "input": f"phantom chest CT {seed}, int16, NIfTI, compressed",
        "weights": weights,
        **circumstances(),
        "rows": rows,
    }


def interleave(steps: dict[str, Callable[[], None]], repetitions: int) -> dict[str, list[float]]:
    """Run all steps in turn, again and again, so that other work on the machine slows all of them.

    Returns:
        for each step the seconds of its runs; the first is a warm-up, and the caller's to leave out.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(repetitions + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
            say(f"{name} {'warm-up' if repetition == 0 else repetition}: {seconds[name][-1]:.2f} s")
    return seconds


def summary(seconds: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """Median, extremes and number of the runs after the warm-up; ``ratio`` is how many times faster than reference."""
    runs = seconds[1:]
    return {
        "median_s": round(median(runs), 3),
        "min_s": round(min(runs), 3),
        "max_s": round(max(runs), 3),
        "n": len(runs),
        "ratio": round(median(reference[1:]) / median(runs), 2),
    }


def pdvnet(seed: int, **arguments: Any) -> tuple[nn.Module, str]:
    """The network in evaluation mode, and where its weights are from."""
    sys.path.insert(0, str(PDVNET))
    from pdvnet_lung.network import PDVNet  # noqa: PLC0415 (a bundle is no installed package)

    torch.manual_seed(seed)
    network = PDVNet(**arguments).eval()
    path = PDVNET / "models" / "model.pt"
    if not path.exists():
        return network, f"random, seed {seed}"
    content = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict(content.get("model", content))
    return network, str(path.relative_to(REPOSITORY))


def network_input(seed: int, size: Sequence[int]) -> torch.Tensor:
    """A phantom CT as the network gets it: float32 ``(1, 1, X, Y, Z)`` in -1 to 1."""
    image = torch.from_numpy(chest_ct(seed, shape=(256, 256, 128), orientation="RAS").image.astype(np.float32))
    image = nn.functional.interpolate(image[None, None], tuple(size), mode="trilinear")
    low, high = WINDOW_HU
    return ((image - low) / (high - low) * 2 - 1).clip(-1, 1)


def _in_fresh_process(mode: str, size: Sequence[int]) -> dict[str, float]:
    """Memory and time of a mode's first forward, in a process that did nothing before."""
    say(f"{mode}: memory of a process of its own")
    code = f"from tools.bench import first_forward; first_forward({mode!r}, {tuple(size)!r})"
    output = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return json.loads(output.stdout.splitlines()[-1])


def first_forward(mode: str, size: Sequence[int]) -> None:
    """Print as JSON what the first forward in this process takes: seconds, peak memory, and what it adds to before."""
    import resource  # noqa: PLC0415 (not on Windows)

    network, _ = pdvnet(seed=0)
    image = torch.randn(1, 1, *size)
    before = psutil.Process().memory_info().rss
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as cache, torch.no_grad():
        accelerate(network, mode=mode, cache_dir=cache)(image)
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak_mb, added_mb = round(peak / MEGABYTE), round((peak - before) / MEGABYTE)
    print(json.dumps({"first_s": round(seconds, 2), "peak_mb": peak_mb, "added_mb": added_mb}))


def _peak_of(command: list[str], environment: dict[str, str]) -> float:
    """Run a command in an unrelated folder; the largest memory in MB that it and its children held together."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
        process = psutil.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
        peak = 0
        while process.poll() is None:
            peak = max(peak, _memory_of(process))
            time.sleep(0.02)
        if process.returncode:
            log.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{log.read()[-2000:]}")
    return peak / MEGABYTE


def _memory_of(process: psutil.Process) -> int:
    total = 0
    try:
        for member in (process, *process.children(recursive=True)):
            total += member.memory_info().rss
    except psutil.Error:  # one has just ended; the next look is 20 ms away
        pass
    return total


def circumstances() -> dict[str, Any]:
    """Machine, command and date of this run."""
    info = Path("/proc/cpuinfo")
    flags: set[str] = set(info.read_text().split()) if info.exists() else set()
    return {
        "machine": {
            **describe_machine(),
            "flags": [flag for flag in CPU_FLAGS if flag in flags],
            "threads": torch.get_num_threads(),
        },
        "command": " ".join(["python -m tools", *sys.argv[1:]]),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result beside its place and move it there."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
    say(f"wrote {path}")


def write_summary(folder: Path) -> None:
    """Make the table and one plot for each result from the JSON files of a folder."""
    parts = [
        "# Benchmarks\n",
        "Made by `python -m tools bench` from the JSON files beside it. The ways to do the same thing ran in turn on "
        "one machine; times are medians. Ratio: how many times faster than the first row. Peak: memory of the whole "
        "process, of which added: beyond what it held before the first input. First: the first input in a process, "
        "with whatever is prepared for it. Agreement: voxels with the label of the first row.\n",
    ]
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        draw(result, path.with_suffix(".png"))
        machine = result["machine"]
        packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
        parts += [
            f"## {result['title']}\n",
            f"Input: {result['input']}. Weights: {result['weights']}. {machine['processor']} "
            f"({', '.join(machine['flags'])}), {machine['cores']} cores, {machine['threads']} threads, "
            f"{machine['memory_gib']} GiB; {packages}. `{result['command']}`, {result['date']}.\n",
            table(result["rows"]),
            f"![{result['title']}]({path.stem}.png)\n",
        ]
    (folder / "README.md").write_text("\n".join(parts), encoding="utf-8")
    say(f"wrote {folder / 'README.md'}")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table; columns that a benchmark does not have are left out."""
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "mode": lambda row: row["mode"],
        "median (min to max, n)": lambda row: "{median_s:.2f} s ({min_s:.2f} to {max_s:.2f}, {n})".format(**row),
        "ratio": lambda row: f"{row['ratio']:.1f}",
        "first": lambda row: f"{row['first_s']:.1f} s",
        "peak": lambda row: f"{row['peak_mb'] / 1000:.2f} GB",
        "added": lambda row: f"{row['added_mb'] / 1000:.2f} GB",
        "agreement": lambda row: f"{100 * row['agreement']:.3f} %",
    }
    keys = {"first": "first_s", "peak": "peak_mb", "added": "added_mb", "agreement": "agreement"}
    shown = {name: cell for name, cell in columns.items() if keys.get(name, "mode") in rows[0]}
    lines = [list(shown), ["---"] * len(shown), *([cell(row) for cell in shown.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def draw(result: dict[str, Any], path: Path) -> None:
    """Plot seconds and peak memory of the rows of a result."""
    rows = result["rows"][::-1]
    names = [row["mode"] for row in rows]
    times_s = [row["median_s"] for row in rows]
    spread = [[row["median_s"] - row["min_s"] for row in rows], [row["max_s"] - row["median_s"] for row in rows]]
    panels = 2 if "peak_mb" in rows[0] else 1
    figure, axes = plt.subplots(
        1, panels, figsize=(1 + 4 * panels, 0.8 + 0.5 * len(rows)), sharey=True, squeeze=False, layout="constrained"
    )
    left, *right = axes[0]
    bars = left.barh(names, times_s, xerr=spread, color="#3b6ea5", error_kw={"lw": 1})
    left.bar_label(bars, [f"{row['median_s']:.2f} s, {row['ratio']:.1f} x" for row in rows], padding=6)
    left.set(xlabel="seconds (median, extremes)", xlim=(0, 1.35 * max(row["max_s"] for row in rows)))
    for memory in right:
        bars = memory.barh(names, [row["peak_mb"] / 1000 for row in rows], color="#a55a3b")
        memory.bar_label(bars, fmt="%.2f GB", padding=4)
        memory.set(xlabel="peak memory of the process, GB", xlim=(0, 1.3 * max(r["peak_mb"] for r in rows) / 1000))
    for panel in axes[0]:
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(result["title"], fontsize=10)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)


def times(sizes: Sequence[int]) -> str:
    """``512x512x64``."""
    return "x".join(map(str, sizes))


def say(line: str) -> None:
    """Print what runs, at once even into a file."""
    print(line, flush=True)
