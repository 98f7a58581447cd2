# SPDX-License-Identifier: Apache-2.0
"""Environments of their own for programs whose packages do not fit the checkout's."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from volseg.errors import UserError
from volseg.storage.files import atomic_path

# What is built from source uses what is there: by itself, it may fetch another PyTorch of 2 GB to be built with.
# Compiling ten million lines takes longer than installing them, and Python compiles what it imports.
OPTIONS = ("--no-build-isolation", "--no-compile", "--disable-pip-version-check", "--quiet")


@dataclass(frozen=True)
class Environment:
    """What an environment holds.

    Attributes:
        command: that needs it, for messages.
        program: it is for, as readers know it.
        pythons: versions of Python that its packages exist for.
        size: on disk, in words.
        constraints: file that pins every package.
        steps: packages or options of pip, one tuple for each run of pip. First setuptools and torch: what follows finds
            them and pulls in no other build.
        variables: further environment variables of pip.
        finish: last step; gets the folder.
        sources: further files that it is built from.
    """

    command: str
    program: str
    pythons: Sequence[tuple[int, int]]
    size: str
    constraints: Path
    steps: Sequence[Sequence[str]]
    variables: Mapping[str, str] = field(default_factory=dict)
    finish: Callable[[Path], None] | None = None
    sources: Sequence[Path] = ()

    def ensure(self, folder: Path) -> Path:
        """The environment's Python, built where it is not there or was built from other versions.

        Args:
            folder: of the environment. One that something else was put into is refused.

        Returns:
            path of its interpreter.

        Raises:
            UserError: another Python than the packages exist for; a folder with something else in it; packages that
                cannot be installed or do not fit together.
        """
        sources = b"".join(path.read_bytes() for path in self.sources)
        digest = hashlib.sha256(self.constraints.read_bytes() + repr(self.steps).encode() + sources).hexdigest()
        marker = folder / f"volseg_{self.command}.sha256"
        if marker.is_file() and marker.read_text().strip() == digest and python_of(folder).exists():
            print(f"environment: {folder}, as it is", flush=True)
            return python_of(folder)
        if sys.version_info[:2] not in self.pythons:
            known = " or ".join(f"{major}.{minor}" for major, minor in self.pythons)
            raise UserError(
                f"{self.command}: {self.program} needs Python {known}, got {sys.version.split()[0]}; "
                "run this command with it"
            )
        if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").is_file():
            raise UserError(f"{folder}: holds other files, not an environment; name another --environment")
        print(f"environment: building {folder}, some minutes and {self.size}", flush=True)
        start = time.monotonic()
        self._build(folder)
        with atomic_path(marker) as temporary:
            temporary.write_text(digest + "\n")
        print(f"environment: built in {time.monotonic() - start:.0f} s", flush=True)
        return python_of(folder)

    def _build(self, folder: Path) -> None:
        if folder.exists():
            shutil.rmtree(folder)
        run([sys.executable, "-m", "venv", str(folder)], "cannot be made", "Install Python's venv.")
        pip = [str(python_of(folder)), "-m", "pip"]
        for packages in self.steps:
            print(f"environment: installing {', '.join(packages)}", flush=True)
            run(
                [*pip, "install", *OPTIONS, "--constraint", str(self.constraints), *packages],
                f"{' '.join(packages)} cannot be installed",
                "Look at the network or the package index and try again.",
                self.variables,
            )
        run([*pip, "check"], "packages do not fit together", f"Mend {self.constraints.name}.")
        if self.finish:
            self.finish(folder)


def python_of(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / "bin" / "python"


def run(command: Sequence[str], what: str, advice: str, variables: Mapping[str, str] | None = None) -> None:
    """Run one step of a build.

    Raises:
        UserError: it failed; with the line that says why.
    """
    process = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **(variables or {})}
    )
    if process.returncode:
        lines = [line for line in (process.stdout + process.stderr).splitlines() if line.strip()]
        said = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "nothing")
        raise UserError(f"environment: {what}: {said} {advice}")
