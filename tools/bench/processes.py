# SPDX-License-Identifier: Apache-2.0
"""Run something in a process of its own, and how much memory a process held."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
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
    output = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(output.stdout.splitlines()[-1])


def peak_memory_mb() -> float:
    """The largest memory that this process held. Needs Linux."""
    # not getrusage: its peak counts from before exec and so is at least that of the process that started this one
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024 / MEGABYTE


def peak_memory_of_command_mb(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Run a command in an unrelated folder; the largest memory that it and its children held together.

    Raises:
        RuntimeError: the command failed; with the end of what it printed.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
        process = psutil.Popen(list(command), cwd=folder, env=dict(environment), stdout=log, stderr=subprocess.STDOUT)
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
