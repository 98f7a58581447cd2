# SPDX-License-Identifier: Apache-2.0
"""One finding of a rule: where, what, what was received, what to do."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

SHOWN_CHARACTERS = 160


@dataclass(frozen=True)
class Finding:
    """What a rule has to say about one file; ``path`` is relative to the bundle's folder."""

    path: str
    what: str
    received: str
    advice: str

    def line(self, folder: str) -> str:
        """The finding as one line; ``folder`` is how the bundle's folder is called, e.g. ``bundles/pdvnet_lung``."""
        text = f"{folder}/{self.path}: {self.what}; found: {self.received}. {self.advice}"
        return " ".join(text.split())


def shown(value: Any) -> str:
    """A value as short one-line JSON (or its ``repr`` where JSON has no word for it)."""
    try:
        text = value if isinstance(value, str) and value.strip() else json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


def names(values: Any) -> str:
    """Names in a row, ``nothing`` for none."""
    return shown(", ".join(str(value) for value in values) or "nothing")
