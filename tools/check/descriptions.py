# SPDX-License-Identifier: Apache-2.0
"""Rule on readability: every config opens with what it is for."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tools.check.bundle import METADATA, Bundle
from tools.check.finding import Finding, shown


def check_descriptions(bundle: Bundle) -> Iterator[Finding]:
    """The first key of every config is ``_desc_``, with at least one sentence."""
    for path, document in bundle.documents.items():
        if path == METADATA:
            continue
        advice = 'Begin with "_desc_": "What this config does, for whom, and its source."'
        if next(iter(document), None) != "_desc_":
            received = f"first key {next(iter(document), 'of none')}"
            yield Finding(path, "the config does not start with _desc_", received, advice)
        elif not isinstance(document["_desc_"], str) or not re.search(r"\w+ \w+.*\w\W*[.!?]", document["_desc_"], re.S):
            yield Finding(path, "_desc_ has no sentence", shown(document["_desc_"]), advice)
