# SPDX-License-Identifier: Apache-2.0
"""Score every case of an evaluation and write the report."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import nibabel as nib
import numpy as np
from ignite.engine import Engine, Events

from volseg.data.volume_reader import volume_name
from volseg.metrics.case_report import CaseReport, label_measures

__all__ = ["CaseScores"]

logger = logging.getLogger(__name__)


class CaseScores:
    """Compare prediction and label of each case on the image's own grid; write ``per_case.csv`` and the summaries.

    Args:
        output_dir: folder of the report.
        labels: label to name, without background.
        tolerance_mm: of the surface Dice.
    """

    def __init__(self, output_dir: str, labels: Mapping[str, str], tolerance_mm: float = 3.0) -> None:
        self.output_dir = output_dir
        self.labels = {int(value): name for value, name in labels.items()}
        self.tolerance_mm = tolerance_mm
        self.report = CaseReport()

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def __call__(self, engine: Engine) -> None:
        output: Any = engine.state.output
        for item in output:
            prediction, truth = (np.asarray(item[key].cpu())[0].astype(np.uint8) for key in ("pred", "label"))
            x, y, z = nib.affines.voxel_sizes(np.asarray(item["label"].affine)).tolist()
            name = volume_name(item["image"].meta["filename_or_obj"])
            self.report.add(name, label_measures(prediction, truth, (x, y, z), self.labels, self.tolerance_mm))

    def _write(self, engine: Engine) -> None:
        self.report.write(self.output_dir)
        logger.info("report in %s", self.output_dir)
        for label, measures in self.report.summary().items():
            dice = measures["dice"]
            logger.info("%-5s Dice %.3f +- %.3f (n = %d)", label, dice["mean"], dice["std"], dice["n"])
