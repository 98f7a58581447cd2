# SPDX-License-Identifier: Apache-2.0
"""Measures of one segmented case per label, and the report over many cases: CSV per case, summary as CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from volseg.errors import UserError
from volseg.label_maps.overlap import confusion_counts, dice_per_label, volumes_ml
from volseg.label_maps.surface_distances import surface_distances
from volseg.storage.files import atomic_path

MEAN_LABEL = "mean"
"""Name of the summary's rows over all labels."""

CASE_LABEL = "case"
"""Name of the summary's rows of values that belong to a case as a whole."""

STATISTICS = ("n", "mean", "std", "median", "quartile_25", "quartile_75", "infinite", "nan")
"""Columns of the summary, see :meth:`CaseReport.summary`."""


def label_measures(
    prediction: np.ndarray,
    truth: np.ndarray,
    affine: np.ndarray,
    labels: Mapping[int, str] | Mapping[str, str],
    tolerance_mm: float = 3.0,
) -> dict[str, dict[str, float]]:
    """Score one segmentation, label by label.

    Args:
        prediction: label map (X, Y, Z) of integers; 0 is the background.
        truth: label map of the same shape.
        affine: voxel to RAS in mm, (4, 4).
        labels: name of every label that occurs in the maps, background excepted; JSON has the numbers as text.
        tolerance_mm: tolerance of the surface Dice; it is part of that measure's name.

    Returns:
        For every label's name, in the order of ``labels``: ``dice``, ``hausdorff_95_mm``,
        ``average_symmetric_surface_distance_mm``, ``surface_dice_3mm``, ``volume_error_ml`` (prediction minus truth),
        ``reference_volume_ml``, ``predicted_volume_ml``. The distances follow MONAI's convention, see
        :mod:`volseg.label_maps.surface_distances`.
        A label in neither map has NaN for the first four; one that is in one map only has Dice and surface Dice 0 and
        infinite distances.

    Raises:
        UserError: if the maps do not fit each other or hold a label without a name, or a name or label is unusable.
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    names = {int(label): name for label, name in labels.items()}
    _check_labels(names)
    counts = confusion_counts(prediction, truth, num_classes=max(names) + 1)
    _check_all_named(counts, names)
    dice = dice_per_label(counts)
    x_mm, y_mm, z_mm = spacing_mm = nib.affines.voxel_sizes(affine).tolist()
    predicted_ml, true_ml = volumes_ml(counts, x_mm * y_mm * z_mm)
    boxes = _joint_boxes(prediction, truth, max(names))
    surface_dice_name = f"surface_dice_{tolerance_mm:g}mm"
    result = {}
    for label, name in names.items():
        # Compared inside the label's box, so that no mask of the whole volume is ever made.
        box = boxes[label]
        surfaces = surface_distances(prediction[box] == label, truth[box] == label, spacing_mm, tolerance_mm)
        result[name] = {
            "dice": float(dice[label]),
            "hausdorff_95_mm": surfaces.hausdorff_95_mm,
            "average_symmetric_surface_distance_mm": surfaces.average_symmetric_mm,
            surface_dice_name: surfaces.surface_dice,
            "volume_error_ml": float(predicted_ml[label] - true_ml[label]),
            "reference_volume_ml": float(true_ml[label]),
            "predicted_volume_ml": float(predicted_ml[label]),
        }
    return result


class CaseReport:
    """Collects the measures of cases and writes them with their summary.

    All cases have the same labels and measures, those of the first one; their order is the order of rows and columns.

    Args:
        mean_row: whether the summary has rows over all labels; not where the labels overlap, as an organ and its parts.
    """

    def __init__(self, mean_row: bool = True) -> None:
        self.mean_row = mean_row
        self._cases: dict[str, dict[str, dict[str, float]]] = {}
        self._case_values: dict[str, dict[str, float]] = {}

    def add(
        self,
        case_id: str,
        measures: Mapping[str, Mapping[str, float]],
        case_values: Mapping[str, float] | None = None,
    ) -> None:
        """Add one case.

        Args:
            case_id: unique name of the case.
            measures: values by label and measure, as :func:`label_measures` returns them.
            case_values: values of the case as a whole by name; not the name of a measure.

        Raises:
            UserError: if the case was added before, has no measures, or has others than the first case.
        """
        if case_id in self._cases:
            raise UserError(f"case {case_id} is already in the report; give every case its own name")
        for reserved in (MEAN_LABEL, CASE_LABEL):
            if reserved in measures:
                raise UserError(
                    f"case {case_id}: the label name {reserved!r} is reserved for rows of the summary; rename it"
                )
        if not measures or not all(measures.values()):
            raise UserError(f"case {case_id} has no measures")
        columns = {label: tuple(values) for label, values in measures.items()}
        expected = self._columns() if self._cases else dict.fromkeys(measures, next(iter(columns.values())))
        if {label: set(names) for label, names in columns.items()} != {k: set(v) for k, v in expected.items()}:
            raise UserError(
                f"case {case_id} has the labels and measures {columns}, but this report has {expected}; measure all "
                "cases with the same labels and tolerance"
            )
        case_values = case_values or {}
        expected_values = next(iter(self._case_values.values()), case_values)
        value_names = set(case_values)
        if value_names != set(expected_values) or not value_names.isdisjoint(next(iter(expected.values()))):
            raise UserError(
                f"case {case_id} has the case values {list(case_values)}, but this report has {list(expected_values)}; "
                "give all cases the same values, none with the name of a measure"
            )
        self._cases[case_id] = {
            label: {name: float(measures[label][name]) for name in names} for label, names in expected.items()
        }
        self._case_values[case_id] = {name: float(case_values[name]) for name in expected_values}

    @property
    def cases(self) -> Mapping[str, Mapping[str, Mapping[str, float]]]:
        """Values by case, label and measure."""
        return self._cases

    def summary(self) -> dict[str, dict[str, dict[str, float]]]:
        """Statistics over cases by label and measure.

        After the labels come the rows over all labels (:data:`MEAN_LABEL`), where they are wanted, and those of the
        case values (:data:`CASE_LABEL`), where there are any. A mean row takes each case's mean over its labels first,
        so that every case has the same weight. That mean skips labels with NaN (in neither map); one infinite label
        makes the case infinite.

        Returns:
            Per label and measure the :data:`STATISTICS`: ``n`` cases with a finite value; over these ``mean``, ``std``
            (sample, ddof=1; NaN for one case), ``median`` and quartiles (linear interpolation); then the number of
            cases left out because their value is ``infinite`` (label in one map only) or ``nan`` (in neither). A Dice
            of 0 for a label that is in one map only is finite and counts.

        Raises:
            UserError: if no case was added.
        """
        if not self._cases:
            raise UserError("the report has no cases; add at least one")
        columns = self._columns()
        result = {
            label: {name: _statistics(case[label][name] for case in self._cases.values()) for name in names}
            for label, names in columns.items()
        }
        if self.mean_row:
            result[MEAN_LABEL] = {
                name: _statistics(_mean_over_labels(case, name) for case in self._cases.values())
                for name in next(iter(columns.values()))
            }
        if value_names := self._value_names():
            result[CASE_LABEL] = {
                name: _statistics(values[name] for values in self._case_values.values()) for name in value_names
            }
        return result

    def write(self, folder: str | Path) -> None:
        """Write the report into a folder, which is made if it does not exist.

        ``per_case.csv`` has one row per case and label, the case values repeated on each, ``summary.csv`` one per label
        and measure (:meth:`summary`), ``summary.json`` the same as
        ``{"cases": n, "labels": {label: {measure: statistics}}}``. The CSV files say ``nan`` and ``inf``, JSON says
        ``null`` for NaN. Files of an earlier report are replaced only when all the new ones are complete on disk.

        Raises:
            UserError: if no case was added.
        """
        summary = self.summary()
        measures = next(iter(self._columns().values()))
        case_rows = [
            [case_id, label, *(values[name] for name in measures), *self._case_values[case_id].values()]
            for case_id, case in self._cases.items()
            for label, values in case.items()
        ]
        summary_rows = [
            [label, name, *statistics.values()]
            for label, by_name in summary.items()
            for name, statistics in by_name.items()
        ]
        document = {"cases": len(self._cases), "labels": _nan_to_none(summary)}
        _write_atomically(
            Path(folder),
            {
                "per_case.csv": _csv_text(["case", "label", *measures, *self._value_names()], case_rows),
                "summary.csv": _csv_text(["label", "measure", *STATISTICS], summary_rows),
                "summary.json": json.dumps(document, indent=2, allow_nan=False) + "\n",
            },
        )

    def _columns(self) -> dict[str, tuple[str, ...]]:
        """Labels and their measures, from the first case."""
        return {label: tuple(values) for label, values in next(iter(self._cases.values())).items()}

    def _value_names(self) -> tuple[str, ...]:
        """Names of the case values, from the first case."""
        return tuple(next(iter(self._case_values.values())))


def _check_labels(labels: Mapping[int, str]) -> None:
    if not labels or min(labels) < 1:
        raise UserError(f"labels must name at least one label >= 1 (0 is the background), got {dict(labels)}")
    if len(set(labels.values())) != len(labels):
        raise UserError(f"labels must have different names, got {dict(labels)}")


def _check_all_named(counts: np.ndarray, labels: Mapping[int, str]) -> None:
    present = np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1)).tolist()
    unnamed = sorted(set(present) - set(labels) - {0})
    if unnamed:
        raise UserError(f"the label maps hold {unnamed}, which labels does not name; name or erase them")


def _joint_boxes(prediction: np.ndarray, truth: np.ndarray, max_label: int) -> dict[int, tuple[slice, ...]]:
    """Box around each label in both maps together; an empty box for a label that is in neither."""
    boxes = {}
    pairs = zip(_label_boxes(prediction, max_label), _label_boxes(truth, max_label), strict=True)
    for label, pair in enumerate(pairs, start=1):
        found = [box for box in pair if box is not None]
        boxes[label] = tuple(
            slice(min((box[axis].start for box in found), default=0), max((box[axis].stop for box in found), default=0))
            for axis in range(prediction.ndim)
        )
    return boxes


def _label_boxes(label_map: np.ndarray, max_label: int) -> list[tuple[slice, ...] | None]:
    # find_objects is ten times slower against the memory order, which is Fortran's for volumes read by nibabel.
    memory_order = np.argsort(np.abs(label_map.strides))[::-1]
    boxes = ndimage.find_objects(label_map.transpose(memory_order), max_label)
    axes = np.argsort(memory_order)
    return [None if box is None else tuple(box[axis] for axis in axes) for box in boxes]


def _mean_over_labels(case: Mapping[str, Mapping[str, float]], name: str) -> float:
    values = [measures[name] for measures in case.values() if not math.isnan(measures[name])]
    return sum(values) / len(values) if values else math.nan


def _statistics(values: Iterable[float]) -> dict[str, float]:
    all_values = np.array(list(values), dtype=np.float64)
    finite = all_values[np.isfinite(all_values)]
    quartiles = np.percentile(finite, [25, 50, 75]).tolist() if finite.size else [math.nan] * 3
    return {
        "n": int(finite.size),
        "mean": float(finite.mean()) if finite.size else math.nan,
        "std": float(finite.std(ddof=1)) if finite.size > 1 else math.nan,
        "median": quartiles[1],
        "quartile_25": quartiles[0],
        "quartile_75": quartiles[2],
        "infinite": int(np.isinf(all_values).sum()),
        "nan": int(np.isnan(all_values).sum()),
    }


def _nan_to_none(
    summary: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> dict[str, dict[str, dict[str, float | None]]]:
    return {
        label: {
            name: {key: None if math.isnan(value) else value for key, value in statistics.items()}
            for name, statistics in by_name.items()
        }
        for label, by_name in summary.items()
    }


def _csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()


def _write_atomically(folder: Path, texts: Mapping[str, str]) -> None:
    """Write all files or none: they are renamed when the last one is complete."""
    with ExitStack() as stack:
        for name, text in texts.items():
            temporary = stack.enter_context(atomic_path(folder / name))
            temporary.write_text(text, encoding="utf-8", newline="")


def mean_and_spread(statistics: Mapping[str, float]) -> str:
    """``0.905 +- 0.024 (n = 12)`` of statistics as in a summary; without the standard deviation for a single case."""
    spread = f" +- {statistics['std']:.3f}" if statistics["n"] > 1 else ""
    return f"{statistics['mean']:.3f}{spread} (n = {statistics['n']})"
