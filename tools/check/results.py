# SPDX-License-Identifier: Apache-2.0
"""Rule on claims: every number in ``eval_metrics`` stands in a results file of the bundle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tools.check.bundle import METADATA, Bundle, read_json
from tools.check.finding import Finding, names, shown

RESULTS = "docs/results"


def check_results(bundle: Bundle) -> Iterator[Finding]:
    """Each number of the metadata's ``eval_metrics`` equals one under the same keys in ``docs/results/*.json``."""
    claims = dict(_numbers(bundle.metadata.get("eval_metrics")))
    evidence: dict[str, list[float]] = {}
    problems: list[Finding] = []
    for file in sorted((bundle.root / RESULTS).glob("*.json")):
        content = read_json(bundle.root, f"{RESULTS}/{file.name}", problems) or {}
        for key, value in _numbers(content.get("eval_metrics")):
            evidence.setdefault(key, []).append(value)
    yield from problems
    for key, value in claims.items():
        advice = f"Copy the number from the file that the evaluation wrote to {RESULTS}, or leave it out."
        if key not in evidence:
            received = f"{shown(value)}; results files have {names(evidence)}"
            yield Finding(METADATA, f"eval_metrics#{key} has no results file", received, advice)
        elif value not in evidence[key]:
            received = f"{shown(value)} against {names(evidence[key])}"
            yield Finding(METADATA, f"eval_metrics#{key} differs from its results file", received, advice)


def _numbers(node: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of nested dictionaries with their key paths."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _numbers(value, f"{path}#{key}" if path else str(key))
    elif isinstance(node, int | float) and not isinstance(node, bool):
        yield path, float(node)
