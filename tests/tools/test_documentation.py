# SPDX-License-Identifier: Apache-2.0
"""Texts for readers: model cards are short, links and commands lead to files, the index leads to every page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools import REPOSITORY
from tools.check.files import bundle_commands, config_files
from tools.markdown import linked_files

CARDS = sorted(REPOSITORY.glob("bundles/*/docs/README.md"))
PAGES = sorted(REPOSITORY.glob("docs/*.md"))
NAMES = [card.parts[-3] for card in CARDS]
TEXTS = [*CARDS, *PAGES, REPOSITORY / "README.md"]


def named(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


@pytest.mark.parametrize("card", CARDS, ids=named)
def test_a_model_card_is_shorter_than_300_lines(card):
    assert len(card.read_text(encoding="utf-8").splitlines()) < 300


@pytest.mark.parametrize("path", TEXTS, ids=named)
def test_links_lead_to_files_and_headings(path):
    text = path.read_text(encoding="utf-8")
    assert [file for file in linked_files(text, named(path)) if not (REPOSITORY / file).exists()] == []
    for file, part in re.findall(r"\]\(([^)#\s:]*\.md)?#([^)\s]+)\)", text):
        other = (path.parent / file if file else path).read_text(encoding="utf-8")
        headings = [re.sub(r"[^\w\- ]", "", line).strip().lower() for line in re.findall(r"^#+(.*)$", other, re.M)]
        assert part in [heading.replace(" ", "-") for heading in headings]


def test_the_index_leads_to_every_page():
    found = linked_files((REPOSITORY / "docs/index.md").read_text(encoding="utf-8"), "docs/index.md")
    assert [named(page) for page in PAGES if named(page) not in (*found, "docs/index.md")] == []


@pytest.mark.parametrize("page", PAGES, ids=named)
@pytest.mark.parametrize("name", NAMES)
def test_commands_of_a_page_name_configs(page, name):
    text = page.read_text(encoding="utf-8").replace("bundles/NAME/", f"bundles/{name}/")
    files = [file for command in bundle_commands(text) for file in config_files(command)]
    assert [file for file in files if not (REPOSITORY / file).is_file()] == []
