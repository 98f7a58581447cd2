# SPDX-License-Identifier: Apache-2.0
"""Run something in a process of its own, and how much memory a process held."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tools import REPOSITORY

__all__ = ["in_fresh_process", "peak_memory_mb", "peak_memory_of_command_mb"]

MEGABYTE = 1e6


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
