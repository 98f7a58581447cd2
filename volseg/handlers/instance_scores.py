# SPDX-License-Identifier: Apache-2.0
"""Score the instances of every case of an evaluation and write the report."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Engine, Events

from volseg.data.open_volume import open_chunked_volume
from volseg.errors import UserError
from volseg.handlers.case_log import CaseLog
from volseg.handlers.instance_results import free_case_name, voxel_warnings
from volseg.instances.average_precision import (
    ALL_SIZES,
    NO_TRUTH,
    SIZE_RANGES,
    AveragePrecision,
    average_precision_of_table,
)
from volseg.instances.matching import InstanceMatching, match_instances
from volseg.instances.overlap_table import OverlapTable, overlap_table
from volseg.instances.picture import save_instance_preview
from volseg.label_maps.case_report import CaseReport, mean_and_spread
from volseg.report.evaluation import ComparedCases, Draw, write_evaluation_page
from volseg.storage.files import atomic_path

__all__ = ["InstanceScores"]

logger = logging.getLogger(__name__)

LABEL = "instances"
LOGGED = ("ap75", "ap50", "foreground_dice")


class InstanceScores:
    """Compare predicted and true instances of each case; write ``per_case.csv``, summaries and ``NAME_matches.csv``.

    The report holds average precision over all sizes and by size range, one-to-one matching at each of
    ``matching_thresholds``, overlap of the foregrounds, and how many true instances were found whole, split, merged or
    missed. The table of matches has a line for each predicted instance with its best true one, then one for each true
    instance that is nobody's best. Of cases with the same name, later ones are numbered.

    Args:
        output_dir: folder of the report.
        size_ranges: ``(low, high]`` in voxels by name.
        min_size: true instances with fewer voxels count as background.
        matching_thresholds: IoUs of the one-to-one matching, from 0.5 to 1.
        voxel_size_nm: of the images (z, y, x), in place of what files say.
        trained_voxel_size_nm, resample: see :func:`volseg.handlers.instance_results.voxel_warnings`.
        weights: path of what is scored, for the page.
        pictures: whether the page shows the best, the median and the worst case, whose images are read again.

    Raises:
        UserError: an option that :func:`volseg.instances.average_precision.instance_average_precision` or
            :func:`volseg.instances.matching.match_instances` refuses, or no matching threshold.
    """

    def __init__(
        self,
        output_dir: str,
        size_ranges: Mapping[str, Sequence[float]] | None = None,
        min_size: int = 0,
        matching_thresholds: Sequence[float] = (0.5, 0.75),
        voxel_size_nm: Sequence[float] | None = None,
        trained_voxel_size_nm: Sequence[float] | None = None,
        resample: bool = False,
        weights: str | None = None,
        pictures: bool = False,
    ) -> None:
        self.output_dir = Path(output_dir)
        ranges = SIZE_RANGES if size_ranges is None else size_ranges
        self.size_ranges = {name: (float(low), float(high)) for name, (low, high) in ranges.items()}
        self.min_size = min_size
        self.voxel_size_nm = voxel_size_nm
        self.trained_voxel_size_nm = trained_voxel_size_nm
        self.resample = resample
        self.weights = weights
        self.drawer = _drawer if pictures else None
        self.matching_thresholds = tuple(matching_thresholds)
        if not self.matching_thresholds:
            raise UserError("matching_thresholds must hold at least one IoU such as 0.5, got none")
        # wrong options are found now, not when the first case is predicted
        nothing = np.zeros((1, 1, 1), np.uint8)
        self._score(overlap_table(nothing, nothing))
        self._reset()

    def attach(self, engine: Engine) -> None:
        """Attach to an evaluator."""
        engine.add_event_handler(Events.STARTED, self._reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def __call__(self, engine: Engine) -> None:
        output: Any = engine.state.output
        for item in output:
            prediction, truth = (np.asarray(item[key].cpu())[0] for key in ("pred", "label"))
            meta = item["image"].meta
            path, size_nm = meta["filename_or_obj"], self.voxel_size_nm or meta.get("voxel_size_nm")
            for warning in voxel_warnings(size_nm, self.trained_voxel_size_nm, self.resample):
                logger.warning("%s: %s", path, warning)
            self.add(path, prediction, truth)

    def add(self, path: str, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Score one case, given its image's path and its instance ids ``(D, H, W)``."""
        name = free_case_name(path, self._used)
        self._used.add(name)
        measures, precision = self._score(overlap_table(prediction, truth))
        self.report.add(name, {LABEL: measures})
        self.compared.add(name, path, prediction, truth)
        self.log.add_scores(name, {measure: measures[measure] for measure in LOGGED})
        _write_matches(self.output_dir / f"{name}_matches.csv", precision)

    def _reset(self) -> None:
        self.report = CaseReport(mean_row=False)
        self.compared = ComparedCases(self.drawer)
        self._used: set[str] = set()
        self.log = CaseLog(logger)

    def _score(self, table: OverlapTable) -> tuple[dict[str, float], AveragePrecision]:
        precision = average_precision_of_table(table, size_ranges=self.size_ranges, min_size=self.min_size)
        table = table.without_small_truth(self.min_size)
        matchings = [match_instances(table, threshold) for threshold in self.matching_thresholds]
        foreground = table.foreground_overlap()
        measures = {
            **_precision_measures(precision),
            **{measure: value for matching in matchings for measure, value in _matching_measures(matching).items()},
            **_relation_measures(matchings[0]),
            "foreground_dice": foreground.dice,
            "foreground_jaccard": foreground.jaccard,
            "true_instances": len(table.truth_ids),
            "predicted_instances": len(table.prediction_ids),
        }
        return measures, precision

    def _write(self, engine: Engine) -> None:
        self.report.write(self.output_dir)
        write_evaluation_page(self.output_dir, self.report, self.compared, self.weights)
        logger.info("report in %s", self.output_dir)
        summary = self.report.summary()[LABEL]
        for name in LOGGED:
            logger.info("%-15s %s", name, mean_and_spread(summary[name]))


def _drawer(image: str) -> Draw:
    volume = open_chunked_volume(image)
    return lambda path, labels, title: save_instance_preview(path, volume, labels, volume.voxel_size_nm, title)


def _precision_measures(precision: AveragePrecision) -> dict[str, float]:
    measures = {}
    for name, scores in precision.by_size.items():
        suffix = "" if name == ALL_SIZES else f"_{name}"
        for key, value in (("ap75", scores.ap75), ("ap50", scores.ap50), ("ap", scores.ap)):
            # a range without true instances has no score and must not enter a mean
            measures[key + suffix] = math.nan if value == NO_TRUTH else value
    return measures


def _matching_measures(matching: InstanceMatching) -> dict[str, float]:
    percent = f"{matching.iou_threshold * 100:.0f}"
    return {
        f"accuracy_{percent}": matching.accuracy,
        f"precision_{percent}": matching.precision,
        f"recall_{percent}": matching.recall,
        f"f1_{percent}": matching.f1,
        f"panoptic_quality_{percent}": matching.panoptic_quality,
    }


def _relation_measures(matching: InstanceMatching) -> dict[str, float]:
    names = ("one_to_one", "split", "merged", "many_to_many", "missing", "spurious")
    return {name: len(getattr(matching.relations, name)) for name in names}


def _write_matches(path: Path, precision: AveragePrecision) -> None:
    matches, best, missed = precision.matches, precision.matches.best[ALL_SIZES], precision.missed
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["prediction_id", "prediction_voxels", "truth_id", "truth_voxels", "iou"])
        for columns in (
            (matches.prediction_ids, matches.prediction_sizes, best.truth_ids, best.truth_sizes, best.ious),
            (missed.prediction_ids, missed.prediction_sizes, missed.truth_ids, missed.truth_sizes, missed.ious),
        ):
            rows = zip(*(column.tolist() for column in columns), strict=True)
            writer.writerows([*row, round(iou, 6)] for *row, iou in rows)
