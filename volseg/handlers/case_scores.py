# SPDX-License-Identifier: Apache-2.0
"""Score every case of an evaluation and write the report."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events

from volseg.data.volume_reader import load_volume, volume_name
from volseg.handlers.case_log import CaseLog
from volseg.label_maps.case_report import MEAN_LABEL, CaseReport, mean_and_spread
from volseg.label_maps.picture import save_preview
from volseg.report.evaluation import ComparedCases, Draw, write_evaluation_page
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
        names: label to name, for pictures of the best, the median and the worst case; without them there are none.
        window: intensities drawn black and white; ``None``: the 1st and 99.5th percentile of each image.
        weights: path of what is scored, for the page.
        floor_of: the scores beside which these are shown as their floor, instead of on a page of their own.
    """

    def __init__(
        self,
        output_dir: str,
        measure: Measure,
        mean_row: bool = True,
        case_values: Mapping[str, CaseValue] | None = None,
        title: str = "",
        names: Mapping[str, str] | None = None,
        window: tuple[float, float] | None = None,
        weights: str | None = None,
        floor_of: CaseScores | None = None,
    ) -> None:
        self.output_dir = output_dir
        self.measure = measure
        self.case_values = case_values or {}
        self.title = f"{title}: " if title else ""
        self.names = {int(label): name for label, name in (names or {}).items()}
        self.window = window
        self.weights = weights
        self.floor_of = floor_of
        self.compared = ComparedCases(self._drawer if names else None)
        self.report = CaseReport(mean_row)
        self.log = CaseLog(logger, self.title)

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self, engine: Engine) -> None:
        check_folder(self.output_dir)
        self.report = CaseReport(self.report.mean_row)  # evaluators run again
        self.compared = ComparedCases(self._drawer if self.names else None)
        self.log.start()

    def __call__(self, engine: Engine) -> None:
        output: Any = engine.state.output
        for item in output:
            prediction, truth = (np.asarray(item[key].cpu())[0].astype(np.uint8) for key in ("pred", "label"))
            name = volume_name(item["image"].meta["filename_or_obj"])
            measures = self.measure(prediction, truth, np.asarray(item["label"].affine))
            if not truth.any():
                logger.warning("%s: the reference is empty; its scores are NaN and no part of the means", name)
                measures = {label: _only_volumes(values) for label, values in measures.items()}
            self.compared.add(name, item["image"].meta["filename_or_obj"], prediction, truth)
            values = {name: value_of(measures) for name, value_of in self.case_values.items()}
            self.report.add(
                name,
                measures,
                {name: value for name, value in values.items() if value is not None},
            )
            first = {label: next(iter(scores.items())) for label, scores in measures.items()}
            self.log.add_scores(name, {f"{label} {measure}": score for label, (measure, score) in first.items()})

    def write_page(self, floor: CaseReport | None = None) -> None:
        """Write ``report.html``, with the floor of its scores."""
        write_evaluation_page(Path(self.output_dir), self.report, self.compared, self.weights, floor)

    def _drawer(self, image: str) -> Draw:
        volume = load_volume(image)
        voxels = volume.numpy()[0]
        low, high = np.percentile(voxels, (1, 99.5)) if self.window is None else self.window
        affine = np.asarray(volume.affine)
        return lambda path, labels, title: save_preview(path, voxels, labels, affine, self.names, (low, high), title)

    def _write(self, engine: Engine) -> None:
        self.report.write(self.output_dir)
        if self.floor_of is None:
            self.write_page()
        else:
            self.floor_of.write_page(self.report)
        logger.info("%sreport in %s", self.title, self.output_dir)
        summary = self.report.summary()
        name, values = next(iter(summary.get(MEAN_LABEL, next(iter(summary.values()))).items()))
        engine.state.metrics[f"val_mean_{name}"] = values["mean"]
        for label, measures in summary.items():
            name, values = next(iter(measures.items()))
            logger.info("%s%-5s %s %s", self.title, label, name, mean_and_spread(values))


def _only_volumes(values: Mapping[str, float]) -> dict[str, float]:
    return {name: value if name.endswith("_volume_ml") else math.nan for name, value in values.items()}
