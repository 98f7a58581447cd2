# SPDX-License-Identifier: Apache-2.0
"""The page about an evaluation: scores beside their floor, and the best, the median and the worst case."""

from __future__ import annotations

import math
import tempfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volseg.label_maps.case_report import MEAN_LABEL, CaseReport, mean_and_spread
from volseg.report.batch import REPORT_NAME, weights_facts
from volseg.report.page import Page, Picture, ReportCase, versions, words, write_page

__all__ = ["ComparedCases", "Draw", "write_evaluation_page"]

# takes the PNG's path, labels and a title
Draw = Callable[[Path, NDArray[Any], str], None]


class ComparedCases:
    """Keeps the labels of all cases, compressed, until it is known which are worth a picture.

    Args:
        drawer: reads an image by its path and returns what draws labels over it; ``None`` keeps nothing.
    """

    def __init__(self, drawer: Callable[[str], Draw] | None) -> None:
        self.drawer = drawer
        self._cases: dict[str, tuple[str, tuple[int, ...], list[tuple[np.dtype[Any], bytes]]]] = {}

    def add(self, name: str, image: str, found: NDArray[Any], truth: NDArray[Any]) -> None:
        """Keep the labels of a case, whose image is read again if it is drawn."""
        if self.drawer is not None:
            stored = [
                (labels.dtype, zlib.compress(np.ascontiguousarray(labels).tobytes(), 1)) for labels in (found, truth)
            ]
            self._cases[name] = image, found.shape, stored

    def pictures(self, scores: Mapping[str, float]) -> list[Picture]:
        """What was found and the reference, of the best, the median and the worst case."""
        if self.drawer is None:
            return []
        ranked = sorted((name for name in self._cases if not math.isnan(scores[name])), key=lambda name: -scores[name])
        if not ranked:
            return []
        chosen = {"best": ranked[0], "median": ranked[len(ranked) // 2], "worst": ranked[-1]}
        first_role = {name: role for role, name in reversed(chosen.items())}  # of one case, one pair
        return [
            picture for name, role in reversed(first_role.items()) for picture in self._pair(role, name, scores[name])
        ]

    def _pair(self, role: str, name: str, score: float) -> list[Picture]:
        assert self.drawer is not None
        image, shape, stored = self._cases[name]
        draw = self.drawer(image)
        pictures = []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "picture.png"
            for what, (dtype, content) in zip(("found", "reference"), stored, strict=True):
                labels = np.frombuffer(zlib.decompress(content), dtype).reshape(shape)
                draw(path, labels, f"{name}, {what}")
                pictures.append(Picture(f"{role}: {name}, {score:.3f}, {what}", path.read_bytes()))
        return pictures


def write_evaluation_page(
    folder: Path,
    report: CaseReport,
    compared: ComparedCases,
    weights: str | Path | None = None,
    floor: CaseReport | None = None,
) -> None:
    """Write ``report.html`` beside the tables of an evaluation.

    Args:
        folder: of the report.
        report: scores of the cases; the first measure ranks them.
        compared: their labels.
        weights: what was scored.
        floor: scores of what never looks at the image.
    """
    cases = {
        name: {
            f"{label} {words(measure)}": value for label, values in labels.items() for measure, value in values.items()
        }
        for name, labels in report.cases.items()
    }
    labels, measures = (
        list(next(iter(report.cases.values()))),
        list(next(iter(next(iter(report.cases.values())).values()))),
    )
    first = [f"{label} {words(measures[0])}" for label in labels]
    scores = {name: _mean([values[column] for column in first]) for name, values in cases.items()}
    write_page(
        folder / REPORT_NAME,
        Page(
            title="Evaluation",
            lead=f"{len(cases)} case(s), ranked by {words(measures[0])}; mean +- standard deviation over cases.",
            cases=[ReportCase(name, values) for name, values in cases.items()],
            columns=first if len(labels) > 1 else [f"{labels[0]} {words(measure)}" for measure in measures],
            plots={words(m): {label: f"{label} {words(m)}" for label in labels} for m in measures},
            summary=_texts(report),
            floor={} if floor is None else _texts(floor),
            floor_means={} if floor is None else _means(floor),
            pictures=compared.pictures(scores),
            facts={"folder": str(folder.resolve()), **(weights_facts(Path(weights)) if weights else {}), **versions()},
        ),
    )


def _texts(report: CaseReport) -> dict[str, dict[str, str]]:
    return {
        label: {words(measure): mean_and_spread(values) if values["n"] else "" for measure, values in row.items()}
        for label, row in report.summary().items()
    }


def _means(report: CaseReport) -> dict[str, dict[str, float]]:
    """Mean by measure and label."""
    means: dict[str, dict[str, float]] = {}
    for label, row in report.summary().items():
        if label != MEAN_LABEL:
            for measure, values in row.items():
                means.setdefault(words(measure), {})[label] = values["mean"]
    return means


def _mean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
