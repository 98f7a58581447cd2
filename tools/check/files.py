# SPDX-License-Identifier: Apache-2.0
"""Rules on files: what must be there is there and can be read, large files are declared, the model card is complete."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from configparser import ConfigParser as IniParser
from configparser import Error as IniError
from configparser import MissingSectionHeaderError
from pathlib import Path, PurePosixPath

import torch

from tools import REPOSITORY
from tools.check.allowed import LOGGING_ARGUMENTS, LOGGING_CLASSES, LOGGING_KEYS
from tools.check.bundle import Bundle, Finding, names, read_text, shown
from tools.markdown import linked_files
from volseg.errors import UserError
from volseg.registry.large_files import LARGE_FILES, large_files

REQUIRED_FILES = ("LICENSE", "docs/data_license.txt", "configs/logging.conf")
WEIGHTS = "models/model.pt"
LARGEST_MB = 25
# What running a bundle writes; git ignores it, and elsewhere it is left out here.
GENERATED_FOLDERS = ("data", "output")
CACHE = "__pycache__"
PICKLES = (".dill", ".joblib", ".pickle", ".pkl")
CODE = (".py", ".pyc", ".pyd", ".pyo", ".pth", ".so", ".dll", ".dylib")
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
# "$DATA" is a variable of the shell
COMPUTED_OPTION = re.compile(r"--\S+?[=\s]+[\"'\[]*[$%](?!\w+[\"']?(\s|$))")
FILE_NAME = re.compile(r"[^\s'\"\[\],]+\.(?:json|ya?ml|conf)\b")


def check_files(bundle: Bundle) -> Iterator[Finding]:
    """Required files exist, configs can be read, code is Python in its packages, the weights are tensors."""
    yield from bundle.problems
    for path in REQUIRED_FILES:
        if not (bundle.root / path).is_file():
            yield Finding(path, "the file is missing", "nothing", "Write it; every bundle of the zoo carries one.")
    files = bundle_files(bundle.root)
    yield from _misplaced(bundle, files)
    for path in files:
        if path.endswith(".conf"):
            yield from _logging(bundle.root, path)
    yield from _large_files(bundle.root, files)
    yield from _weights(bundle.root)


def _misplaced(bundle: Bundle, files: list[str]) -> Iterator[Finding]:
    """Configs that no rule reads, pickles, and code that stands in the way of installed packages or is compiled."""
    for path in map(PurePosixPath, files):
        if path.parts[0] == "configs" and not (len(path.parts) == 2 and path.suffix in (".json", ".conf")):
            advice = "Write configs as configs/NAME.json; nothing else there is checked."
            yield Finding(str(path), "the file is no JSON config", path.name, advice)
        if path.suffix.lower() in PICKLES:
            advice = "Write JSON, NumPy arrays or a state dictionary; whoever loads a pickle runs what it says."
            yield Finding(str(path), "the file is a pickle, which can run any code", path.name, advice)
        if path.suffix.lower() in CODE and not (path.suffix == ".py" and path.parts[0] in (bundle.name, "volseg")):
            advice = f"Write Python modules in {bundle.name}; others can take the place of installed packages."
            yield Finding(str(path), "the file is code outside of the bundle's own package", path.name, advice)


def _logging(root: Path, path: str) -> Iterator[Finding]:
    """Judge what Python would evaluate when it reads a logging configuration."""
    parser = IniParser()
    try:
        parser.read_string((root / path).read_text(encoding="utf-8"))
        sections = {name: dict(parser.items(name, raw=True)) for name in parser.sections()}
    except MissingSectionHeaderError:
        return  # Python evaluates nothing of a text without sections
    except (OSError, ValueError, IniError) as error:
        yield Finding(path, "the file cannot be read", f"{type(error).__name__}: {error}", "Mend the file.")
        return
    advice = "Log to the console as the other bundles do; Python evaluates this file as code."
    if parser.defaults():
        yield Finding(path, "the section DEFAULT is not on the list", names(parser.defaults()), advice)
    for section, items in sections.items():
        keys = LOGGING_KEYS.get(section, LOGGING_KEYS.get(section.partition("_")[0], ()))
        for key, value in items.items():
            allowed = {"class": LOGGING_CLASSES, "args": LOGGING_ARGUMENTS}.get(key)
            if key not in keys or (allowed and value.replace(" ", "") not in allowed):
                yield Finding(path, f"{section} has a {key} that is not on the list", shown(value), advice)


def _large_files(root: Path, files: list[str]) -> Iterator[Finding]:
    try:
        declared = {file.path for file in large_files(root)}
    except UserError as error:
        reason = str(error).removeprefix(f"{root / LARGE_FILES}: ").removesuffix("; pack the bundle again")
        advice = "List path, url, hash_type sha256 and hash_val of each file."
        yield Finding(LARGE_FILES, "the file cannot be read", reason, advice)
        return
    for path in files:
        size_mb = (root / path).stat().st_size / 2**20
        if size_mb > LARGEST_MB and path not in declared:
            advice = f"Publish it elsewhere and list path, url and hash_val in {LARGE_FILES}."
            yield Finding(path, f"the file is larger than {LARGEST_MB} MB", f"{size_mb:.1f} MB", advice)


def bundle_files(root: Path, checkout: Path = REPOSITORY) -> list[str]:
    """The files that are or will be tracked, relative to ``root``.

    Git is asked in ``checkout`` alone: a foreign folder may name commands for git to run. There all but generated files
    count. What belongs to git itself is never one of them.
    """
    root = root.resolve()
    listed = None if any(root.rglob(".git")) else _tracked(root, checkout.resolve())
    if listed is None:
        found = (file.relative_to(root) for file in root.rglob("*"))
        listed = [
            file.as_posix() for file in found if file.parts[0] not in GENERATED_FOLDERS and CACHE not in file.parts
        ]
    return sorted(
        path
        for path in set(listed)
        if path and (root / path).is_file() and not any(part.lower().startswith(".git") for part in path.split("/"))
    )


def _tracked(root: Path, checkout: Path) -> list[str] | None:
    if not root.is_relative_to(checkout):
        return None
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(checkout), "ls-files", "-z", "--cached", "--others"]
    command += ["--exclude-standard", "--", str(root)]
    try:
        listed = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):
        return None
    top = f"{root.relative_to(checkout).as_posix()}/"
    return [path.removeprefix(top) for path in listed]


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
    """``docs/README.md`` has every section, links that lead somewhere, and commands that run existing files."""
    try:
        text = read_text(bundle.root / README)
    except (OSError, ValueError) as error:
        received = "nothing" if isinstance(error, FileNotFoundError) else str(error)
        yield Finding(README, "the model card is missing or cannot be read", received, "Write it, in UTF-8.")
        return
    headings = re.findall(r"^#+ +(.+?) *#*$", FENCE.sub("", text), re.MULTILINE)
    for section, pattern in SECTIONS.items():
        if not any(re.search(pattern, heading.lower()) for heading in headings):
            what = f'the section "{section}" is missing'
            yield Finding(README, what, f"headings {names(headings)}", "Add the section.")
    for path in linked_files(text, f"{bundle.title}/{README}"):
        if not (bundle.checkout / path).exists():
            yield Finding(README, "a link leads nowhere", path, "Correct the path, which starts in the card's folder.")
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
            found = [folder / file for folder in (bundle.checkout, bundle.root) if (folder / file).is_file()]
            if not found:
                advice = "Name files relative to the repository root or to the bundle's folder."
                yield Finding(README, f"a command names {file}, which does not exist", command, advice)
            elif any(path.resolve().parent != bundle.root / "configs" for path in found):
                what = f"a command names {file}, which no rule reads"
                yield Finding(README, what, command, "Name files in the bundle's folder configs.")
        if COMPUTED_OPTION.search(command):
            what = "a command passes an expression or an include"
            yield Finding(README, what, command, "Write it into a config, where it is checked, or pass a plain value.")
    for file in COMMANDED_CONFIGS:
        if file not in named:
            what = f"no command runs {file}"
            received = f"commands with {names(sorted(named))}"
            yield Finding(README, what, received, f"Show python -m monai.bundle run with configs/{file}.")
