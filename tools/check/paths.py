# SPDX-License-Identifier: Apache-2.0
"""Rule on portability: a bundle finds itself by its own package, no paths of one person's machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tools.check.bundle import Bundle
from tools.check.finding import Finding, shown
from tools.check.workflow import walk

PERSONAL = re.compile(r"(?<![\w.:/-])/(home|Users|root|mnt|media|workspace)/|(?<![A-Za-z])[A-Za-z]:(\\|/(?!/))")
ABSOLUTE = re.compile(r"^(/\w|~)")


def check_paths(bundle: Bundle) -> Iterator[Finding]:
    """Complete configs import the bundle's package and take ``bundle_root`` from it; none names a machine's paths."""
    root = f"$os.path.dirname(os.path.dirname({bundle.name}.__file__))"
    advice = f'Begin with "imports": ["$import os", "$import {bundle.name}"] and "bundle_root": "{root}".'
    for workflow in bundle.workflows:
        if workflow.base is None:
            imports, given = workflow.own.get("imports"), workflow.own.get("bundle_root")
            if not isinstance(imports, list) or f"$import {bundle.name}" not in imports:
                yield Finding(workflow.path, "imports lacks the bundle's own package", shown(imports), advice)
            if given != root:
                yield Finding(workflow.path, "bundle_root is not taken from the package", shown(given), advice)
    for path, document in bundle.documents.items():
        for item_id, text in _texts(document):
            if PERSONAL.search(text) or ABSOLUTE.match(text):
                advice = "Build paths from @bundle_root, or leave them to an override on the command line."
                yield Finding(path, f"{item_id} is a path of one machine", shown(text), advice)


def _texts(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    return ((item_id, value) for item_id, value in walk(document) if isinstance(value, str))
