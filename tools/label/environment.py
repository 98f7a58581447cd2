# SPDX-License-Identifier: Apache-2.0
"""The environment of MONAI Label: its own, because it needs older packages than the bundles' own."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.label import torchvision_operators
from volseg.errors import UserError
from volseg.storage.files import atomic_path

CONSTRAINTS = Path(__file__).with_name("constraints.txt")
OPERATORS = Path(torchvision_operators.__file__)
MARKER = "volseg_label.sha256"
PYTHONS = ((3, 11), (3, 12))
# torch first: what follows then finds it and pulls in no other build
STEPS: tuple[tuple[str, ...], ...] = (
    ("setuptools", "torch"),
    ("sam2",),
    ("monailabel", "dicomweb-client[gcp]", "zarr", "tifffile", "h5py", "imagecodecs"),
)
# what is built from source uses what is there: by itself, sam2 would fetch another PyTorch of 2 GB to be built with;
# compiling ten million lines takes longer than installing them, and Python compiles what it imports
QUIETLY = ("--disable-pip-version-check", "--quiet")
OPTIONS = ("--no-build-isolation", "--no-compile", *QUIETLY, "--constraint", str(CONSTRAINTS))
MISSING_OPERATORS = "torchvision::"


def ensure_environment(folder: Path) -> Path:
    """The Python of an environment with MONAI Label, built where it is not there or was built from other versions.

    Args:
        folder: of the environment. One that something else was put into is refused.

    Returns:
        path of its interpreter.

    Raises:
        UserError: another Python than MONAI Label's packages exist for; a folder with something else in it; packages
            that cannot be installed or do not fit together.
    """
    digest = hashlib.sha256(CONSTRAINTS.read_bytes() + repr(STEPS).encode() + OPERATORS.read_bytes()).hexdigest()
    marker = folder / MARKER
    if marker.is_file() and marker.read_text().strip() == digest and python_of(folder).exists():
        print(f"environment: {folder}, as it is", flush=True)
        return python_of(folder)
    if sys.version_info[:2] not in PYTHONS:
        known = " or ".join(f"{major}.{minor}" for major, minor in PYTHONS)
        raise UserError(
            f"label: MONAI Label needs Python {known}, got {sys.version.split()[0]}; run this command with one of these"
        )
    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").is_file():
        raise UserError(f"{folder}: holds other files, not an environment; name another --environment")
    print(f"environment: building {folder}, some minutes and 4 GB (8 GB where PyTorch comes with CUDA)", flush=True)
    start = time.monotonic()
    _build(folder)
    with atomic_path(marker) as temporary:
        temporary.write_text(digest + "\n")
    print(f"environment: built in {time.monotonic() - start:.0f} s", flush=True)
    return python_of(folder)


def python_of(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / "bin" / "python"


def _build(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    _run([sys.executable, "-m", "venv", str(folder)], "cannot be made", "Install Python's venv.")
    python = str(python_of(folder))
    for packages in STEPS:
        print(f"environment: installing {', '.join(packages)}", flush=True)
        _run(
            [python, "-m", "pip", "install", *OPTIONS, *packages],
            f"{' '.join(packages)} cannot be installed",
            "Look at the network or the package index and try again.",
            {"SAM2_BUILD_CUDA": "0"},
        )
    _run([python, "-m", "pip", "check"], "packages do not fit together", f"Mend {CONSTRAINTS.name}.")
    _mend_torchvision(folder)


def _mend_torchvision(folder: Path) -> None:
    python = str(python_of(folder))
    trial = subprocess.run([python, "-c", "import torchvision"], capture_output=True, text=True, check=False)
    if not trial.returncode:
        return
    if MISSING_OPERATORS in trial.stderr:
        site = next(folder.glob("lib/python3*/site-packages"))
        shutil.copyfile(OPERATORS, site / f"volseg_{OPERATORS.name}")
        name = f"volseg_{OPERATORS.stem}"
        (site / f"{name}.pth").write_text(f"import {name}; {name}.install()\n", encoding="utf-8")
        print("environment: torchvision's compiled operators do not fit this PyTorch; it runs without them", flush=True)
    _run([python, "-c", "import torchvision"], "torchvision cannot be imported", "Install one that fits PyTorch.")


def _run(command: Sequence[str], what: str, advice: str, environment: Mapping[str, str] | None = None) -> None:
    process = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})}
    )
    if process.returncode:
        lines = [line for line in (process.stdout + process.stderr).splitlines() if line.strip()]
        said = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "nothing")
        raise UserError(f"environment: {what}: {said} {advice}")
