# SPDX-License-Identifier: Apache-2.0
"""How fast this CPU multiplies at best, in float32 and in bfloat16: what no network can be faster than."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tools.bench.measure import circumstances, interleave, summary
from volseg.runtime.accelerate import accelerate

__all__ = ["bench_cpu_peak"]

MATRIX_SIZE = 4096
# a layer of many channels and few, large planes: the kind that libraries are best at
CHANNELS = 64
KERNEL_SIZE = 5
VOLUME = (32, 64, 64)
GIGA = 1e9


def bench_cpu_peak(
    repetitions: int, seed: int, matrix_size: int = MATRIX_SIZE, volume: tuple[int, int, int] = VOLUME
) -> dict[str, Any]:
    """GFLOP/s of a matrix product and of a convolution, in PyTorch and, for bfloat16, in OpenVINO."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    left, right = torch.randn(2, matrix_size, matrix_size, generator=generator)
    image = torch.randn(1, CHANNELS, *volume, generator=generator)
    convolution = nn.Conv3d(CHANNELS, CHANNELS, KERNEL_SIZE, padding=KERNEL_SIZE // 2, bias=False).eval()
    product_operations = 2 * matrix_size**3
    convolution_operations = 2 * convolution.weight.numel() * image[0, 0].numel()
    name = f"convolution {KERNEL_SIZE}x{KERNEL_SIZE}x{KERNEL_SIZE}"
    with tempfile.TemporaryDirectory() as cache, torch.inference_mode():
        steps: dict[str, tuple[Callable[[], object], int]] = {}
        for precision, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
            steps[f"matrix product, {precision}"] = (_product(left.to(dtype), right.to(dtype)), product_operations)
            steps[f"{name}, {precision}"] = (_convolution(convolution, image, dtype), convolution_operations)
        fast = accelerate(convolution, mode="openvino", cache_dir=cache)
        steps[f"{name}, OpenVINO"] = (lambda: fast(image), convolution_operations)
        seconds = interleave({step: run for step, (run, _) in steps.items()}, repetitions)
    rates = {
        step: operations / sorted(seconds[step][1:])[repetitions // 2] / GIGA for step, (_, operations) in steps.items()
    }
    best = {
        "float32": max(rate for step, rate in rates.items() if "float32" in step),
        "bf16": max(rate for step, rate in rates.items() if "float32" not in step),
    }
    reference = "matrix product, float32"
    return {
        "title": "What the CPU can do at best",
        "input": f"matrices {matrix_size}x{matrix_size}; {CHANNELS} channels of {'x'.join(map(str, volume))} to as "
        f"many; noise, seed {seed}",
        "weights": "random",
        "note": f"Ratio: of GFLOP/s. bf16 at best is {best['bf16'] / best['float32']:.1f} times as fast as float32 at "
        "best",
        **circumstances(),
        "rows": [
            {
                "mode": step,
                **summary(seconds[step], seconds[step]),
                "ratio": round(rate / rates[reference], 2),
                "gflop_per_s": round(rate),
            }
            for step, rate in rates.items()
        ],
    }


def _product(left: torch.Tensor, right: torch.Tensor) -> Callable[[], object]:
    return lambda: left @ right


def _convolution(convolution: nn.Conv3d, image: torch.Tensor, dtype: torch.dtype) -> Callable[[], object]:
    layout = torch.channels_last_3d
    weight = convolution.weight.to(dtype).contiguous(memory_format=layout)
    image = image.to(dtype).contiguous(memory_format=layout)
    return lambda: nn.functional.conv3d(image, weight, padding=KERNEL_SIZE // 2)
