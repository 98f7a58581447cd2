# SPDX-License-Identifier: Apache-2.0
"""Run configs of a bundle, and say what a results file tells of the machine."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from tools import REPOSITORY

PACKAGES = ("torch", "monai", "numpy", "scipy", "openvino")


def bundle_command(bundle: Path, configs: Sequence[str], overrides: Mapping[str, Any]) -> list[str]:
    """``python -m monai.bundle run`` with configs by name and overrides by id."""
    files = [str(bundle / "configs" / f"{name}.json") for name in configs]
    arguments = [part for key, value in overrides.items() for part in (f"--{key}", str(value))]
    return [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(files), *arguments]


def run_bundle(bundle: Path, configs: Sequence[str], overrides: Mapping[str, Any], quiet: bool = False) -> None:
    """Run configs of a bundle from the checkout's folder.

    Raises:
        CalledProcessError: the run failed.
    """
    command = bundle_command(bundle, configs, overrides)
    subprocess.run(command, check=True, cwd=REPOSITORY, capture_output=quiet)


def shown_command(bundle: Path, configs: Sequence[str], overrides: Mapping[str, Any]) -> str:
    """The command as a reader would type it, without this machine's folders."""
    files = [f"{(bundle / 'configs').relative_to(REPOSITORY)}/{name}.json" for name in configs]
    shown = [f for key, value in overrides.items() if not isinstance(value, Path) for f in (f"--{key}", f'"{value}"')]
    return " ".join(["python -m monai.bundle run --config_file", f'"{files}"', *shown])


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory and the versions of what ran."""
    return {
        "processor": _processor(),
        "cores": psutil.cpu_count(logical=True),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor()
