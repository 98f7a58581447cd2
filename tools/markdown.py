# SPDX-License-Identifier: Apache-2.0
"""Relative links of Markdown texts, which must lead to the same files after a text has moved to another folder."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable

__all__ = ["linked_files", "moved"]

# code is matched, too, so that nothing in it is taken for a link
LINK_OR_CODE = re.compile(
    r"^ *(?P<fence>```|~~~).*?^ *(?P=fence)|(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<file>[^)#\s:]+)(?P<part>#\S*?)?\)",
    re.MULTILINE | re.DOTALL,
)


def linked_files(text: str, path: str) -> list[str]:
    """The files that a text links to or shows, relative to the same folder as its own path."""
    return [_target(path, link) for link in LINK_OR_CODE.finditer(text) if link["file"]]


def moved(text: str, path: str, new_path: str, place: Callable[[str], str | None]) -> str:
    """A text whose links hold at its new path; of files that are not there, it shows no pictures and only names others.

    Args:
        text: Markdown.
        path: where the text was.
        new_path: where it goes.
        place: the new path of a linked file by its old one; None for a file that is not there.
    """

    def link(match: re.Match[str]) -> str:
        if not match["file"]:
            return match[0]
        target = place(_target(path, match))
        if target is None:
            return "" if match["picture"] else match["text"]
        relative = posixpath.relpath(target, posixpath.dirname(new_path) or ".")
        return f"{match['picture']}[{match['text']}]({relative}{match['part'] or ''})"

    return LINK_OR_CODE.sub(link, text)


def _target(path: str, link: re.Match[str]) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link["file"]))
