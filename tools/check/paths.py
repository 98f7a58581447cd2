# SPDX-License-Identifier: Apache-2.0
"""Rule on portability: no ``$import`` of own code, no paths of one person's machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tools.check.bundle import Bundle
from tools.check.finding import Finding, shown
from tools.check.statements import imported_module
from tools.check.workflow import walk

PERSONAL = re.compile(r"(?<![\w.:/-])/(home|Users|root|mnt|media|workspace)/|(?<![A-Za-z])[A-Za-z]:(\\|/(?!/))")
ABSOLUTE = re.compile(r"^(/\w|~)")


def check_paths(bundle: Bundle) -> Iterator[Finding]:
    """Configs import no own code (MONAI would do so before its folder is on the path) and name no machine's paths."""
    for path, document in bundle.documents.items():
        for item_id, text in _texts(document):
            module = imported_module(text)
            if module and module.partition(".")[0] in (bundle.name, "volseg"):
                advice = 'Name the code by a dotted "_target_" with "_requires_": "@code_path".'
                yield Finding(path, f"{item_id} imports own code", shown(text), advice)
            if PERSONAL.search(text) or ABSOLUTE.match(text):
                advice = "Build paths from @bundle_root, or leave them to an override on the command line."
                yield Finding(path, f"{item_id} is a path of one machine", shown(text), advice)


def _texts(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    return ((item_id, value) for item_id, value in walk(document) if isinstance(value, str))
