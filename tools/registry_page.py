# SPDX-License-Identifier: Apache-2.0
"""``index.html``: a registry for people."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import jinja2

from volseg.registry.index import Entry

__all__ = ["PAGE", "registry_page"]

PAGE = "index.html"
TEMPLATE = Path(__file__).with_name("registry_page.html")


def registry_page(entries: Sequence[Entry]) -> str:
    """A page with a card for each bundle: picture, task, versions, metrics, licence, checksum, download commands.

    Args:
        entries: by name and from the oldest version to the newest.

    Returns:
        HTML that needs nothing but the registry's own pictures.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["megabytes"] = lambda size: f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    bundles = [list(group)[::-1] for _, group in groupby(entries, key=lambda entry: entry.release.name)]
    return template.render(bundles=bundles)
