# SPDX-License-Identifier: Apache-2.0
"""Where OpenVINO's time goes in a network, by its own counters."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from volseg.runtime import bfloat16_is_native

__all__ = ["VECTOR_CHANNELS", "describe_profile", "openvino_profile"]

# bfloat16 products are summed up in float32 lanes, of which a vector of 512 bits has 16; a channel of the output each
VECTOR_CHANNELS = 16
EXAMPLE = (64, 64, 32)
SHOWN = 4
NARROW = f"convolutions to fewer than {VECTOR_CHANNELS} channels"
WIDE = "other convolutions"


def openvino_profile(network: nn.Module, size: Sequence[int], runs: int = 3) -> dict[str, float]:
    """Share of the time of each kind of layer, the largest first; convolutions by how they fill a vector.

    Args:
        network: takes one channel; runs as in the mode ``"openvino"`` of a network whose convolutions stay as they are.
        size: of the input, noise.
        runs: what the counters are averaged over.
    """
    import openvino  # noqa: PLC0415 (a second, and not everywhere installed)

    example = torch.zeros(1, 1, *EXAMPLE)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # checks of sizes become constants
        model = openvino.convert_model(torch.jit.trace(network, example, check_trace=False), example_input=example)
    model.reshape([1, 1, *size])
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if bfloat16_is_native() else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERF_COUNT": True,
    }
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    for _ in range(runs):
        compiled(torch.randn(1, 1, *size).numpy())
    seconds: dict[str, float] = defaultdict(float)
    for layer in compiled.get_runtime_model().get_ordered_ops():
        found = layer.get_rt_info()
        microseconds = found["execTimeMcs"].astype(str) if "execTimeMcs" in found else ""
        if microseconds.isdecimal():
            kind = found["layerType"].astype(str)
            if "onvolution" in kind:
                kind = NARROW if layer.output(0).shape[1] < VECTOR_CHANNELS else WIDE
            seconds[kind] += int(microseconds) / 1e6
    total = sum(seconds.values())
    return {kind: spent / total for kind, spent in sorted(seconds.items(), key=lambda item: -item[1]) if spent}


def describe_profile(profile: Mapping[str, float]) -> str:
    """The largest shares in a sentence."""
    return "OpenVINO's time: " + ", ".join(f"{kind} {share:.0%}" for kind, share in list(profile.items())[:SHOWN])
