# SPDX-License-Identifier: Apache-2.0
"""Time several ways to do the same thing, step by step or in processes of their own, and say where that happened."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

from tools import REPOSITORY
from tools.bundle_run import describe_machine

CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
TOTAL = "total"
MEGABYTE = 1e6


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


"""Name of the time of a whole lap; no step is called like this."""


class Stopwatch:
    """Seconds of named steps, lap by lap.

    What a step does inside another one counts for itself alone, so that the steps of a lap add up to the lap, but for
    what lies between them. A step that runs several times in a lap is one entry, in the place of its first run.

    Attributes:
        laps: one dictionary a lap, seconds by the names of its steps in the order of their starts; the lap's own
            seconds are :data:`TOTAL`, once it is over.
    """

    def __init__(self) -> None:
        self.laps: list[dict[str, float]] = []
        self._start: float | None = None
        self._inner: list[float] = []  # of each step that is running: seconds of the steps inside it

    def lap(self) -> None:
        """End the lap that is running, if one is, and begin the next."""
        self.stop()
        self.laps.append({})
        self._start = time.perf_counter()

    def stop(self) -> None:
        """End the lap that is running, if one is; steps that run before the next one are not counted."""
        if self._start is not None:
            self.laps[-1][TOTAL] = time.perf_counter() - self._start
            self._start = None

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Count what runs in a block."""
        if self._start is None:
            yield
            return
        lap = self.laps[-1]
        lap.setdefault(name, 0.0)
        self._inner.append(0.0)
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            lap[name] += seconds - self._inner.pop()
            if self._inner:
                self._inner[-1] += seconds

    def watched(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function, with its calls counted."""

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.step(name):
                return function(*args, **kwargs)

        return call

    def watch(self, instance: Any, name: str) -> None:
        """Count the calls of an object from now on.

        It stays the object that others refer to, and of its class: the class becomes a subclass of the same name.
        """
        kind = type(instance)
        counted = {"__call__": self.watched(kind.__call__, name), "__module__": kind.__module__}
        # not by assignment, which nn.Module looks at
        object.__setattr__(instance, "__class__", type(kind.__name__, (kind,), counted))


def in_fresh_process(function: Callable[..., Any], *arguments: object) -> Any:
    """Call a function of a module in a Python that did nothing before; what it returned, by way of JSON.

    Args:
        function: found by its name in its module.
        arguments: literals.

    Raises:
        CalledProcessError: it failed; the reason stands on stderr.
    """
    call = f"{function.__name__}(*{arguments!r})"
    code = f"import json; from {function.__module__} import {function.__name__}; print(json.dumps({call}))"
    output = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(output.stdout.splitlines()[-1])


def peak_memory_mb() -> float:
    """The largest memory that this process held. Needs Linux."""
    # not getrusage: its peak counts from before exec and so is at least that of the process that started this one
    return _peak_kib(Path("/proc/self/status")) * 1024 / MEGABYTE


def peak_memory_of_command_mb(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Run a command in an unrelated folder; the memory that it and its children held at most.

    Of processes that run at once the peaks are added: they may have been at different moments. They are looked at every
    0.1 s, which costs a few per cent of a core.

    Raises:
        RuntimeError: the command failed; with the end of what it printed.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
        process = psutil.Popen(list(command), cwd=folder, env=dict(environment), stdout=log, stderr=subprocess.STDOUT)
        peak = 0
        while process.poll() is None:
            peak = max(peak, _peak_memory_of(process))
            time.sleep(0.1)
        if process.returncode:
            log.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{log.read()[-2000:]}")
    return peak / MEGABYTE


def _peak_memory_of(process: psutil.Process) -> int:
    """Bytes: peaks of a process and of those children that are alive, together."""
    try:
        processes = [process, *process.children(recursive=True)]
    except psutil.Error:  # it has just ended
        return 0
    total = 0
    for member in processes:
        with suppress(OSError):  # it has just ended
            total += _peak_kib(Path(f"/proc/{member.pid}/status")) * 1024
    return total


def _peak_kib(status: Path) -> int:
    """The line VmHWM of a status file of Linux; 0 of a process that is no more than an entry."""
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) if "VmHWM" in lines else 0
