# SPDX-License-Identifier: Apache-2.0
"""The page about a folder of results: what was found in every image, and where to look first."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from volseg.data.case_statistics import CaseStatistics
from volseg.report.page import Page, Picture, ReportCase, versions, words, write_page
from volseg.weights import read_record

__all__ = ["REPORT_NAME", "weights_facts", "write_batch_page"]

REPORT_NAME = "report.html"
MOST_PICTURES = 12
PREVIEW = "_preview.png"


def write_batch_page(statistics: CaseStatistics, weights: Path) -> None:
    """Write ``report.html`` beside ``statistics.json``; a folder with one image needs none.

    Args:
        statistics: entries of all images.
        weights: what segmented them.
    """
    entries = list(statistics.entries.values())
    if len(entries) < 2:
        return
    folder = statistics.path.parent
    cases: list[ReportCase] = []
    plots: dict[str, dict[str, str]] = {}
    for entry in entries:
        values = {}
        for measure, row, value in _numbers(entry):
            column = f"{row} {measure}".strip()
            values[column] = value
            plots.setdefault(measure, {}).setdefault(row, column)
        name = str(entry.get(statistics.key) or "").partition(statistics.ending)[0] or Path(entry["image"]).name
        cases.append(ReportCase(name, values, entry.get("warnings", ()), entry.get("error", "")))
    failed = sum(bool(case.error) for case in cases)
    warned = sum(bool(case.warnings) and not case.error for case in cases)
    first = sorted(cases, key=lambda case: not case.warnings)  # those with warnings, in the order of the table
    pictures = [
        Picture(f"{case.name}: {' '.join(case.warnings)}" if case.warnings else case.name, path.read_bytes())
        for case in first
        if (path := folder / f"{case.name}{PREVIEW}").is_file()
    ][:MOST_PICTURES]
    write_page(
        folder / REPORT_NAME,
        Page(
            title="Segmented cases",
            lead=f"{len(cases) - failed} of {len(cases)} cases segmented, {warned} of them with warnings.",
            cases=cases,
            plots=plots,
            pictures=pictures,
            facts={"folder": str(folder.resolve()), **weights_facts(weights), **versions()},
        ),
    )


def weights_facts(weights: Path) -> dict[str, str]:
    """Path, SHA-256 and record of the weights, by name."""
    facts = {"weights": str(weights), "SHA-256 of the weights": hashlib.sha256(weights.read_bytes()).hexdigest()}
    record = read_record(weights)
    return facts | ({"record of the weights": json.dumps(record, indent=4)} if record else {})


def _numbers(entry: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """Measure, part and value of what an entry counts: ``volume ml`` of ``LUL``, ``lungs ml`` of nothing."""
    for key, value in entry.items():
        if isinstance(value, Mapping):
            for part, inner in value.items():
                found = inner.items() if isinstance(inner, Mapping) else [(key, inner)]
                yield from ((words(measure), part, number) for measure, number in found if _is_number(number))
        elif _is_number(value):
            yield words(key), "", value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
