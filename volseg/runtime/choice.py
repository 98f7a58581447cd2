# SPDX-License-Identifier: Apache-2.0
"""Which way to run a network is the fastest here: measured once, and remembered."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from volseg.errors import UserError
from volseg.runtime.network_state import agrees
from volseg.storage.files import write_json
from volseg.storage.model_cache import keep_newest

__all__ = ["Choice", "choose"]

Run = Callable[[torch.Tensor], Any]
# At most this part of an input's voxels, and so many, are timed: all ways take about as long as eager for the input.
PART, PART_VOXELS = 1 / 8, 2**19
# Ways run in turn, so that other work slows all of them; what takes so many times as long as the fastest runs once.
ROUNDS, HOPELESS = 3, 2
CACHE_ENTRIES = 64


class Choice(NamedTuple):
    """A way to run a network, and why it was chosen: the end of a line in the log."""

    mode: str
    why: str


def choose(network: nn.Module, runs: Mapping[str, Run], x: torch.Tensor, folder: Path) -> Choice:
    """The fastest way whose output agrees with that of the first, on the centre of an input.

    Args:
        network: what all run; choices are kept by it, voxels of the input to a power of two, machine and packages.
        runs: ways to run it, by name; the first is plain PyTorch in float32.
        x: an input ``(B, C, ...)`` on the CPU.
        folder: of choices.
    """
    machine = (platform.node(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())
    packages = (torch.__version__, find_spec("openvino") is None)
    facts = (repr(network), x.shape[2:].numel().bit_length(), *runs, *machine, *packages)
    path = folder / f"{hashlib.sha256(repr(facts).encode()).hexdigest()}.json"
    if (choice := _remembered(path, runs)) is None:
        choice = _measure(runs, x)
        if (found := _remembered(path, runs)) is not None:  # by another worker, meanwhile: all run the same
            return found
        with suppress(OSError, UserError):
            write_json(path, choice._asdict())
            keep_newest(folder, CACHE_ENTRIES)
    return choice


def _remembered(path: Path, runs: Mapping[str, Run]) -> Choice | None:
    with suppress(OSError, ValueError, TypeError):
        choice = Choice(**json.loads(path.read_text(encoding="utf-8")))
        return choice._replace(why=f"{choice.why}; measured before") if choice.mode in runs else None
    return None


def _measure(runs: Mapping[str, Run], x: torch.Tensor) -> Choice:
    first, plain = next(iter(runs.items()))
    with torch.no_grad():
        part = centre(x)
        try:
            expected = plain(part)
        except (ValueError, RuntimeError):  # the network takes no other size, or refuses the input and says why
            part = x
            expected = plain(part)
        seconds, failed = dict[str, float](), dict[str, str]()
        for _ in range(ROUNDS):
            for mode, run in runs.items():
                if mode in failed or seconds.get(mode, 0) > HOPELESS * min(seconds.values(), default=0):
                    continue
                try:
                    y = run(part)  # changes the layout of weights, or compiles: not timed
                    if mode != first and not agrees(y, expected):
                        raise RuntimeError(f"other numbers than {first}")
                    start = time.perf_counter()
                    run(part)
                    seconds[mode] = min(time.perf_counter() - start, seconds.get(mode, float("inf")))
                except Exception as error:  # noqa: BLE001 (libraries raise what they like; what fails is not chosen)
                    failed[mode] = f"; {mode}: {' '.join(str(error).split())[:200]}"
    ranked = sorted((mode for mode in seconds if mode not in failed), key=seconds.__getitem__)
    times = ", ".join(f"{mode} {1000 * seconds[mode]:.0f} ms" for mode in ranked)
    return Choice(ranked[0], f", fastest at {'x'.join(map(str, part.shape))}: {times}{''.join(failed.values())}")


def centre(x: torch.Tensor) -> torch.Tensor:
    """Of one item, with the largest axes halved; remainders modulo 32 stay, because networks halve sizes, too."""
    x, most = x[:1], min(PART * x.shape[2:].numel(), PART_VOXELS)
    while x.shape[2:].numel() > most and max(x.shape[2:]) >= 64:
        whole = max(x.shape[2:])
        size = whole % 32 + 32 * (whole // 64)
        x = x.narrow(2 + x.shape[2:].index(whole), (whole - size) // 2, size)
    return x
