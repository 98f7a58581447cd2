# SPDX-License-Identifier: Apache-2.0
"""Rule on files: what must be there is there and can be read, what is large is declared, weights are plain tensors."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import torch
from monai.bundle import ConfigParser

from tools.check.bundle import Bundle, Finding

REQUIRED_FILES = ("LICENSE", "docs/data_license.txt", "configs/logging.conf")
LARGE_FILES = "large_files.yml"
WEIGHTS = "models/model.pt"
LARGEST_MB = 25
# What bundles generate; git ignores it, and outside of a git checkout it is left out here.
GENERATED = ("data", "output", "__pycache__")


def check_files(bundle: Bundle) -> Iterator[Finding]:
    """Required files exist, configs can be read, no file is too large, the weights are a flat dictionary of tensors."""
    yield from bundle.problems
    for path in REQUIRED_FILES:
        if not (bundle.root / path).is_file():
            yield Finding(path, "the file is missing", "nothing", "Write it; every bundle of the zoo carries one.")
    yield from _large_files(bundle.root)
    yield from _weights(bundle.root)


def _large_files(root: Path) -> Iterator[Finding]:
    try:
        declared = _declared(root)
    except Exception as error:  # noqa: BLE001  the YAML reader has errors of its own, and YAML is optional to MONAI
        yield Finding(LARGE_FILES, "the file cannot be read", f"{type(error).__name__}: {error}", "Mend the file.")
        return
    for path in bundle_files(root):
        size_mb = (root / path).stat().st_size / 2**20
        if size_mb > LARGEST_MB and path not in declared:
            advice = f"Publish it elsewhere and list path, url and hash in {LARGE_FILES}."
            yield Finding(path, f"the file is larger than {LARGEST_MB} MB", f"{size_mb:.1f} MB", advice)


def bundle_files(root: Path) -> list[str]:
    """The files that are or will be tracked, relative to ``root``; outside of a git checkout all but generated ones."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):
        found = [file.relative_to(root) for file in root.rglob("*")]
        listed = [file.as_posix() for file in found if not set(file.parts) & set(GENERATED)]
    return sorted(path for path in set(listed) if path and (root / path).is_file())


def _declared(root: Path) -> set[str]:
    if not (root / LARGE_FILES).is_file():
        return set()
    content = ConfigParser.load_config_file(root / LARGE_FILES)
    return {str(entry["path"]) for entry in content["large_files"]}


def _weights(root: Path) -> Iterator[Finding]:
    if not (root / WEIGHTS).is_file():
        return
    advice = "Save a state dictionary: torch.save(network.state_dict(), path)."
    try:
        content = torch.load(root / WEIGHTS, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  a broken file makes torch raise nearly anything
        reason = f"{type(error).__name__}: {str(error).partition('.')[0]}"
        yield Finding(WEIGHTS, "the weights do not load with weights_only=True", reason, advice)
        return
    if not isinstance(content, dict):
        yield Finding(WEIGHTS, "the weights are no dictionary of tensors", type(content).__name__, advice)
        return
    others = [key for key, value in content.items() if not isinstance(value, torch.Tensor)]
    if others or not content:
        received = f"{others[0]}: {type(content[others[0]]).__name__}" if others else "an empty dictionary"
        yield Finding(WEIGHTS, "the weights are no flat dictionary of tensors", received, advice)
