# SPDX-License-Identifier: Apache-2.0
"""Rule on references: every ``@id`` leads somewhere."""

from __future__ import annotations

from collections.abc import Iterator

from monai.bundle import ReferenceResolver
from monai.bundle.utils import ID_REF_KEY, MACRO_KEY

from tools.check.bundle import Bundle, in_every_workflow
from tools.check.finding import Finding, shown
from tools.check.workflow import OVERLAY_RULE, Workflow, look_up, walk_values

RELATIVE = f"{ID_REF_KEY}#"


def check_references(bundle: Bundle) -> Iterator[Finding]:
    """Every reference names, in full, an id of the merged config or of the metadata; includes are not used."""

    def look(workflow: Workflow) -> Iterator[Finding]:
        yield from workflow.problems
        config = {**workflow.config, "_meta_": bundle.metadata}
        for item_id, text in walk_values(workflow.config):
            if text.startswith(MACRO_KEY) or RELATIVE in text:
                advice = 'Refer to the full id, as in "@train#dataset".'
                yield Finding(workflow.path, f"{item_id} has an include or a relative id", shown(text), advice)
                continue
            for reference in ReferenceResolver.match_refs_pattern(text):
                try:
                    look_up(config, reference)
                except KeyError:
                    advice = f"Mend the id; an overlay sees its base by the rule {OVERLAY_RULE}."
                    what = f"{item_id} refers to @{reference}, which does not exist"
                    yield Finding(workflow.path, what, shown(text), advice)

    yield from in_every_workflow(bundle, look)
