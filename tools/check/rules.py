# SPDX-License-Identifier: Apache-2.0
"""The list of rules. A new rule is a function from a bundle to findings, and one line here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from tools.check.bundle import Bundle
from tools.check.descriptions import check_descriptions
from tools.check.expressions import check_expressions
from tools.check.files import check_files
from tools.check.finding import Finding
from tools.check.metadata import check_channels, check_schema, check_version_and_name
from tools.check.paths import check_paths
from tools.check.preprocessing import check_preprocessing
from tools.check.properties import check_properties
from tools.check.readme import check_readme
from tools.check.references import check_references
from tools.check.results import check_results
from tools.check.targets import check_targets


class Rule(NamedTuple):
    """A named rule."""

    name: str
    check: Callable[[Bundle], Iterable[Finding]]


RULES = (
    Rule("schema", check_schema),
    Rule("version", check_version_and_name),
    Rule("channels", check_channels),
    Rule("properties", check_properties),
    Rule("paths", check_paths),
    Rule("targets", check_targets),
    Rule("expressions", check_expressions),
    Rule("references", check_references),
    Rule("readme", check_readme),
    Rule("preprocessing", check_preprocessing),
    Rule("files", check_files),
    Rule("results", check_results),
    Rule("descriptions", check_descriptions),
)


def findings(bundle: Bundle) -> list[tuple[str, Finding]]:
    """What every rule finds in a bundle, with the rule's name."""
    return [(rule.name, finding) for rule in RULES for finding in rule.check(bundle)]
