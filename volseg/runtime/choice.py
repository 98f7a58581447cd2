# SPDX-License-Identifier: Apache-2.0
"""Which way to run a network is the fastest here: measured once, and remembered."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from volseg.errors import UserError
from volseg.runtime.model_cache import keep_newest
from volseg.runtime.network_state import agrees
from volseg.storage.files import write_json

__all__ = ["Choice", "choose"]

Run = Callable[[torch.Tensor], Any]
# At most this part of an input's voxels, and at most so many, are timed: all ways together then take about as long as
# plain PyTorch takes for the input itself, or less.
PART, PART_VOXELS = 1 / 8, 2**19
# All ways run in turn, so that other work on the machine slows all of them; the fastest run of each counts. What takes
# so many times as long as the fastest so far is not timed again.
ROUNDS, HOPELESS = 3, 2
CACHE_ENTRIES = 64


class Choice(NamedTuple):
    """A way to run a network, and why it was chosen: the end of a line in the log."""

    mode: str
    why: str


def choose(network: nn.Module, runs: Mapping[str, Run], x: torch.Tensor, folder: Path) -> Choice:
    """The fastest way whose output agrees with that of the first, on the centre of an input.

    Args:
        network: in evaluation.
        runs: ways to run it, by name; the first is plain PyTorch in float32.
        x: an input ``(B, C, ...)`` on the CPU.
        folder: choices are kept there by network, number of voxels to a power of two, machine and versions.
    """
    try:
        openvino = version("openvino")
    except PackageNotFoundError:
        openvino = "missing"
    machine = (platform.node(), torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())
    shapes = [tuple(parameter.shape) for parameter in network.parameters()]
    facts = (repr(network), shapes, x.shape[2:].numel().bit_length(), *runs, *machine, torch.__version__, openvino)
    path = folder / f"{hashlib.sha256(repr(facts).encode()).hexdigest()}.json"
    with suppress(OSError, ValueError, TypeError):
        choice = Choice(**json.loads(path.read_text(encoding="utf-8")))
        if choice.mode in runs:
            return choice._replace(why=f"{choice.why}; measured before")
    choice = _measure(runs, x)
    with suppress(OSError, UserError):
        write_json(path, choice._asdict())
        keep_newest(folder, CACHE_ENTRIES)
    return choice


def _measure(runs: Mapping[str, Run], x: torch.Tensor) -> Choice:
    (first, plain), *others = runs.items()
    with torch.no_grad():
        part = centre(x)
        try:
            expected = plain(part)
        except (ValueError, RuntimeError):  # the network takes no other size, or refuses the input and says why
            part = x
            expected = plain(part)
        usable, failed = {first: plain}, ""
        for mode, run in others:
            try:
                if agrees(run(part), expected):
                    usable[mode] = run
                else:
                    failed += f"; {mode} gives other numbers"
            except Exception as error:  # noqa: BLE001 (libraries raise what they like; what fails is not chosen)
                failed += f"; {mode} fails: {' '.join(str(error).split())[:200]}"
        seconds = dict.fromkeys(usable, float("inf"))
        for _ in range(ROUNDS):
            for mode, run in usable.items():
                if seconds[mode] == float("inf") or seconds[mode] < HOPELESS * min(seconds.values()):
                    seconds[mode] = min(seconds[mode], _time(run, part))
    ranked = sorted(seconds, key=seconds.__getitem__)
    times = ", ".join(f"{mode} {1000 * seconds[mode]:.0f} ms" for mode in ranked)
    return Choice(ranked[0], f", fastest at {'x'.join(map(str, part.shape))}: {times}{failed}")


def _time(run: Run, x: torch.Tensor) -> float:
    start = time.perf_counter()
    run(x)
    return time.perf_counter() - start


def centre(x: torch.Tensor) -> torch.Tensor:
    """The part of an input that is timed: of one item, with the largest axes halved as often as ``PART`` asks for.

    Remainders modulo 32 are kept, because networks ask for sizes that can be halved a few times.
    """
    x, most = x[:1], min(PART * x.shape[2:].numel(), PART_VOXELS)
    while x.shape[2:].numel() > most and max(x.shape[2:]) >= 64:
        whole = max(x.shape[2:])
        size = whole % 32 + 32 * (whole // 64)
        x = x.narrow(2 + x.shape[2:].index(whole), (whole - size) // 2, size)
    return x
