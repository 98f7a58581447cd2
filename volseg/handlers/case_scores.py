# SPDX-License-Identifier: Apache-2.0
"""Score every case of an evaluation and write the report."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from ignite.engine import Engine, Events

from volseg.data.volume_reader import volume_name
from volseg.label_maps.case_report import CaseReport, mean_and_spread
from volseg.storage.files import check_folder

__all__ = ["CaseScores"]

logger = logging.getLogger(__name__)

CaseMeasures = Mapping[str, Mapping[str, float]]
Measure = Callable[[np.ndarray, np.ndarray, np.ndarray], CaseMeasures]
CaseValue = Callable[[CaseMeasures], float | None]


class CaseScores:
    """Compare prediction and label of each case on the image's own grid; write ``per_case.csv`` and the summaries.

    Where the reference is empty, scores are NaN.

    Args:
        output_dir: folder of the report.
        measure: takes prediction ``(X, Y, Z)`` and truth ``(X, Y, Z)``, both uint8, and the affine; returns values by
            label and measure. The first measure is also logged.
        mean_row: whether the summary has rows over all labels.
        case_values: by name, takes what ``measure`` returned and gives a value of the case as a whole; a value of
            ``None`` is left out of the report.
        title: what is scored, in the log.
    """

    def __init__(
        self,
        output_dir: str,
        measure: Measure,
        mean_row: bool = True,
        case_values: Mapping[str, CaseValue] | None = None,
        title: str = "",
    ) -> None:
        self.output_dir = output_dir
        self.measure = measure
        self.case_values = case_values or {}
        self.title = f"{title}: " if title else ""
        self.report = CaseReport(mean_row)

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.STARTED, lambda: check_folder(self.output_dir))
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def __call__(self, engine: Engine) -> None:
        output: Any = engine.state.output
        for item in output:
            prediction, truth = (np.asarray(item[key].cpu())[0].astype(np.uint8) for key in ("pred", "label"))
            name = volume_name(item["image"].meta["filename_or_obj"])
            measures = self.measure(prediction, truth, np.asarray(item["label"].affine))
            if not truth.any():
                logger.warning("%s: the reference is empty; its scores are NaN and no part of the means", name)
                measures = {label: _only_volumes(values) for label, values in measures.items()}
            values = {name: value_of(measures) for name, value_of in self.case_values.items()}
            self.report.add(
                name,
                measures,
                {name: value for name, value in values.items() if value is not None},
            )

    def _write(self, engine: Engine) -> None:
        self.report.write(self.output_dir)
        logger.info("%sreport in %s", self.title, self.output_dir)
        for label, measures in self.report.summary().items():
            name, values = next(iter(measures.items()))
            logger.info("%s%-5s %s %s", self.title, label, name, mean_and_spread(values))


def _only_volumes(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value if name.endswith("_volume_ml") else math.nan for name, value in values.items()}
