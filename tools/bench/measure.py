# SPDX-License-Identifier: Apache-2.0
"""Time several ways to do the same thing, and say where that happened."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tools.machine import describe_machine

__all__ = ["circumstances", "duration", "interleave", "say", "spread", "summary", "times"]

CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")


def interleave(steps: Mapping[str, Callable[[], object]], repetitions: int) -> dict[str, list[float]]:
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
            say(f"{name} {'warm-up' if repetition == 0 else repetition}: {duration(seconds[name][-1])}")
    return seconds


def summary(seconds: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """The :func:`spread` of the runs after the warm-up."""
    return spread(seconds[1:], median(reference[1:]))


def spread(runs: Sequence[float], reference_s: float) -> dict[str, float]:
    """Median, extremes and number of runs; ``ratio`` is how many times faster they are than the reference."""
    return {
        "median_s": round(median(runs), 4),
        "min_s": round(min(runs), 4),
        "max_s": round(max(runs), 4),
        "n": len(runs),
        "ratio": round(reference_s / max(median(runs), 1e-6), 2),
    }


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
        "date": datetime.now(UTC).date().isoformat(),
    }


def duration(seconds: float) -> str:
    """``2.50 s``, or ``25 ms`` where seconds would not tell."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.0f} ms"


def times(sizes: Sequence[float]) -> str:
    """``512x512x64``."""
    return "x".join(map(str, sizes))


def say(line: str) -> None:
    """Print what runs, at once even into a file."""
    print(line, flush=True)
