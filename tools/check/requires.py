# SPDX-License-Identifier: Apache-2.0
"""Rule on ``_requires_``: own code is looked up only after its folder is on the path."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from monai.bundle import ReferenceResolver

from tools.check.bundle import Bundle, in_every_workflow
from tools.check.finding import Finding, shown
from tools.check.workflow import Workflow, look_up_or_none, walk, walk_items

CODE_PATH = "code_path"


def check_requires(bundle: Bundle) -> Iterator[Finding]:
    """Every item of own code requires ``@code_path``, the item that puts the code's folder on ``sys.path``."""

    def look(workflow: Workflow) -> Iterator[Finding]:
        for item_id, item in walk_items(workflow.config):
            package = str(item["_target_"]).partition(".")[0]
            if package in (bundle.name, "volseg") and not _leads_to_code_path(item.get("_requires_"), workflow.config):
                advice = f'Add "_requires_": "@{CODE_PATH}", or the exports and MONAI Label will not find the code.'
                what = f"{item_id} builds {item['_target_']} without requiring @{CODE_PATH}"
                yield Finding(workflow.path, what, shown(item.get("_requires_", "no _requires_")), advice)

    yield from in_every_workflow(bundle, look)


def _leads_to_code_path(requirement: Any, config: dict[str, Any]) -> bool:
    """Whether the references of a requirement, and theirs in turn, reach the path insert."""
    waiting, seen = _references(requirement), set[str]()
    while waiting:
        item_id = waiting.pop()
        if item_id == CODE_PATH:
            return True
        if item_id not in seen:
            seen.add(item_id)
            waiting |= _references(look_up_or_none(config, item_id))
    return False


def _references(node: Any) -> set[str]:
    texts = (value for _, value in walk(node) if isinstance(value, str))
    return {item_id for text in texts for item_id in ReferenceResolver.match_refs_pattern(text)}
