# SPDX-License-Identifier: Apache-2.0
"""What the runtime does on a CPU without bfloat16: each network as ``"auto"`` runs it there, beside plain PyTorch.

The instruction set that oneDNN (in PyTorch and in OpenVINO) and PyTorch's own loops use is capped, in processes of
their own.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from tools.bench import pdvnet, resunet, vnet
from tools.bench.measure import circumstances, interleave, say, summary, times
from tools.bench.networks import agreement, most_likely, weights_source
from tools.bench.processes import in_fresh_process
from volseg.runtime.accelerate import accelerate, bfloat16_is_native

__all__ = ["INSTRUCTION_SETS", "bench_pdvnet", "bench_resunet_h", "bench_resunet_r", "bench_vnet"]

# AVX512_CORE_VNNI is the largest that oneDNN knows below AVX512_CORE_BF16
INSTRUCTION_SETS = {
    "AVX-512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI", "ATEN_CPU_CAPABILITY": "avx512"},
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
}
MODES = ("eager", "auto")


def bench_pdvnet(repetitions: int, seed: int, size: Sequence[int] = pdvnet.SIZE) -> dict[str, Any]:
    """PDV-Net without bfloat16."""
    return _bench("PDV-Net", "pdvnet", weights_source(pdvnet.BUNDLE, seed), repetitions, seed, size)


def bench_vnet(repetitions: int, seed: int, size: Sequence[int] = vnet.SIZE) -> dict[str, Any]:
    """V-Net without bfloat16."""
    # also what auto leaves out there
    modes = (*MODES, "dft")
    return _bench("V-Net", "vnet", vnet.describe_weights(seed), repetitions, seed, size, modes)


def bench_resunet_r(repetitions: int, seed: int, size: Sequence[int] = resunet.SIZE) -> dict[str, Any]:
    """Res-UNet-R without bfloat16."""
    weights = weights_source(resunet.BUNDLE, seed, resunet.WEIGHTS["R"])
    return _bench("Res-UNet-R", "resunet_r", weights, repetitions, seed, size)


def bench_resunet_h(repetitions: int, seed: int, size: Sequence[int] = resunet.SIZE) -> dict[str, Any]:
    """Res-UNet-H without bfloat16."""
    weights = weights_source(resunet.BUNDLE, seed, resunet.WEIGHTS["H"])
    return _bench("Res-UNet-H", "resunet_h", weights, repetitions, seed, size)


def _bench(
    name: str,
    network: str,
    weights: str,
    repetitions: int,
    seed: int,
    size: Sequence[int],
    modes: Sequence[str] = MODES,
) -> dict[str, Any]:
    rows, ran = [], []
    for instructions, environment in INSTRUCTION_SETS.items():
        say(f"{name} with {instructions}, in a process of its own")
        found = in_fresh_process(
            compare_modes, network, tuple(size), repetitions, seed, tuple(modes), environment=environment
        )
        rows += [
            {
                "mode": f"{mode}, {instructions}",
                **summary(found["seconds"][mode], found["seconds"]["eager"]),
                "first_s": round(found["seconds"][mode][0], 2),
                "agreement": found["agreement"][mode],
                "ran": found["ran"][mode],
            }
            for mode in modes
        ]
        ran.append(f"{instructions} {found['ran']['auto']}")
    return {
        "title": f"{name}, {times(size)}: a CPU without bf16",
        "input": f"that of the network alone, phantom {seed}",
        "weights": weights,
        "note": f"Ratio and agreement: to eager with the same instructions. What auto chose: {'; '.join(ran)}",
        **circumstances(),
        "rows": rows,
    }


def compare_modes(
    network: str, size: Sequence[int], repetitions: int, seed: int, modes: Sequence[str] = MODES
) -> dict[str, Any]:
    """Seconds, agreement of labels and what the runtime said of itself, for each mode, in this process.

    Raises:
        RuntimeError: the runtime still takes the CPU for one with bfloat16.
    """
    if bfloat16_is_native():
        raise RuntimeError("The runtime uses bfloat16 though the instruction set is capped. Received: True")
    make, image, decide = _network(network, size, seed)
    log = _Messages()
    logger = logging.getLogger("volseg.runtime.accelerate")
    logger.addHandler(log)
    logger.setLevel(logging.INFO)
    labels, ran = {}, {}
    with tempfile.TemporaryDirectory() as cache:
        networks = {mode: accelerate(make(), mode=mode, cache_dir=cache) for mode in modes}

        def step(mode: str) -> Callable[[], None]:
            def run() -> None:
                with torch.no_grad():
                    output = networks[mode](image)
                if mode not in labels:  # in the warm-up, which is not timed
                    labels[mode], ran[mode] = decide(output), log.last.partition(" on CPU")[0].rstrip(",")

            return run

        seconds = interleave({mode: step(mode) for mode in modes}, repetitions)
    shares = {mode: agreement(labels[mode], labels["eager"])["agreement"] for mode in modes}
    return {"seconds": seconds, "agreement": shares, "ran": ran}


class _Messages(logging.Handler):
    """Keeps the last message."""

    last = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.last = record.getMessage()


def _network(
    name: str, size: Sequence[int], seed: int
) -> tuple[Callable[[], nn.Module], torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
    if name == "pdvnet":
        return partial(pdvnet.trained, seed), pdvnet.network_input(seed, size), most_likely
    if name == "vnet":
        return partial(vnet.trained, seed), vnet.network_input(seed, size), most_likely
    variant = name.removeprefix("resunet_").upper()
    return partial(resunet.trained, variant, seed), resunet.network_input(seed, size), resunet.above_half
