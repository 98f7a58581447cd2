# SPDX-License-Identifier: Apache-2.0
"""The command that runs configs of a bundle."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools import REPOSITORY

__all__ = ["bundle_command", "run_bundle"]


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
