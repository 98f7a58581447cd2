# SPDX-License-Identifier: Apache-2.0
"""Rules on files: what must be there is there and can be read, large files are declared, the model card is complete."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import torch
from monai.bundle import ConfigParser

from tools.check.bundle import Bundle, Finding, names

REQUIRED_FILES = ("LICENSE", "docs/data_license.txt", "configs/logging.conf")
LARGE_FILES = "large_files.yml"
WEIGHTS = "models/model.pt"
LARGEST_MB = 25
# What bundles generate; git ignores it, and outside of a git checkout it is left out here.
GENERATED = ("data", "output", "__pycache__")
README = "docs/README.md"
# Section -> what a heading must match, in lower case.
SECTIONS = {
    "Description": r"\bdescription\b",
    "Intended use": r"\bintended use\b",
    "Data": r"^data(set)?s?\b(?!.*licen[cs]e)",
    "Performance": r"\bperformance\b",
    "Limitations": r"\blimitations\b",
    "Paper and implementation": r"\bpaper and implementation\b",
    "Citation": r"\bcitation\b",
    "References": r"\breferences\b",
    "Licence": r"\blicen[cs]es?\b",
}
COMMANDED_CONFIGS = ("train.json", "evaluate.json", "inference.json")
FENCE = re.compile(r"^ *(```|~~~).*?^ *\1", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`]+)`")
FILE_OPTIONS = re.compile(r"--(?:config|meta|logging|args)[_-]file(?:=|\s+)(\"[^\"]*\"|'[^']*'|\[[^\]]*\]|\S+)")
FILE_NAME = re.compile(r"[^\s'\"\[\],]+\.(?:json|ya?ml|conf)\b")


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


def check_readme(bundle: Bundle) -> Iterator[Finding]:
    """``docs/README.md`` has every section, and commands that train, evaluate and infer with files that exist."""
    try:
        text = (bundle.root / README).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        received = "nothing" if isinstance(error, FileNotFoundError) else str(error)
        yield Finding(README, "the model card is missing or cannot be read", received, "Write it, in UTF-8.")
        return
    headings = re.findall(r"^#+ +(.+?) *#*$", FENCE.sub("", text), re.MULTILINE)
    for section, pattern in SECTIONS.items():
        if not any(re.search(pattern, heading.lower()) for heading in headings):
            what = f'the section "{section}" is missing'
            yield Finding(README, what, f"headings {names(headings)}", "Add the section.")
    yield from _command_findings(bundle, bundle_commands(text))


def bundle_commands(text: str) -> list[str]:
    """Every ``python -m monai.bundle`` command in the code of a Markdown text, one line each."""
    blocks = [match.group(0) for match in FENCE.finditer(text)]
    spans = SPAN.findall(FENCE.sub("", text))
    lines = [line for code in (*blocks, *spans) for line in re.sub(r"\\\s*\n", " ", code).splitlines()]
    return [" ".join(line.split()) for line in lines if "-m monai.bundle" in line]


def config_files(command: str) -> list[str]:
    """The config files that a command names, lists such as ``"['a.json','b.json']"`` taken apart."""
    return [name for value in FILE_OPTIONS.findall(command) for name in FILE_NAME.findall(value)]


def _command_findings(bundle: Bundle, commands: list[str]) -> Iterator[Finding]:
    named: set[str] = set()
    for command in commands:
        for file in config_files(command):
            named.add(Path(file).name)
            if not any((folder / file).is_file() for folder in (bundle.checkout, bundle.root)):
                advice = "Name files relative to the repository root or to the bundle's folder."
                yield Finding(README, f"a command names {file}, which does not exist", command, advice)
    for file in COMMANDED_CONFIGS:
        if file not in named:
            what = f"no command runs {file}"
            received = f"commands with {names(sorted(named))}"
            yield Finding(README, what, received, f"Show python -m monai.bundle run with configs/{file}.")
