# SPDX-License-Identifier: Apache-2.0
"""Rule on the model card: its sections are there and its commands name configs that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tools.check.bundle import Bundle, Finding, names

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
