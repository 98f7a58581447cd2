# SPDX-License-Identifier: Apache-2.0
"""Tests of the choice of decoding thresholds."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from volseg.instances.decoding import Decoding
from volseg.instances.threshold_sweep import (
    ThresholdScore,
    best_thresholds,
    save_sweep_figure,
    save_sweep_table,
    sweep_thresholds,
)

NO_GROWTH = (1, 1, 1)


def row_of_objects(*mask_probabilities: float, outline: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A case of objects of 2 x 3 x 4 voxels side by side, each of one probability, and the truth that all are real.

    The gap of one voxel between neighbours has the mask probability 0.95 and the boundary probability ``outline``.
    """
    truth = np.zeros((2, 3, 5 * len(mask_probabilities)), np.int32)
    mask, boundary = np.full(truth.shape, 0.95), np.full(truth.shape, outline)
    for value, probability in enumerate(mask_probabilities, start=1):
        voxels = np.s_[:, :, 5 * value - 5 : 5 * value - 1]
        truth[voxels], mask[voxels], boundary[voxels] = value, probability, 0
    return mask, boundary, truth


def score(mask: float, boundary: float, ap75: float, ap: float = 0.5, foreground: float | None = None):
    return ThresholdScore(mask, boundary, foreground, ap, 0.9, ap75, 7)


def test_rows_are_what_the_thresholds_give():
    case = row_of_objects(0.97, 0.85, outline=0.5)
    rows = sweep_thresholds([case], (0.8, 0.9), (0.4, 0.6), decoding=Decoding(min_size=5, dilation=NO_GROWTH))
    assert [(row.mask_threshold, row.boundary_threshold) for row in rows] == [
        (0.8, 0.4),
        (0.8, 0.6),
        (0.9, 0.4),
        (0.9, 0.6),
    ]
    # with its outline everything is one object of 60 voxels: IoU 24 / 60; above 0.9 one object is missing, and where
    # the outline is open that object alone is joined with both gaps: IoU 24 / 30, and the second gap is removed last
    assert [row.instances for row in rows] == [2, 1, 1, 2]
    assert [row.ap75 for row in rows] == pytest.approx([1, 0, 51 / 101, 51 / 101])
    assert [row.ap50 for row in rows] == pytest.approx([1, 0, 51 / 101, 51 / 101])
    # of ten IoUs from 0.50 on the seven up to 0.80 are reached
    assert [row.ap for row in rows] == pytest.approx([1, 0, 51 / 101, 0.7 * 51 / 101])
    assert all(row.foreground_threshold is None for row in rows)
    assert best_thresholds(rows) is rows[0]


def test_foreground_thresholds_belong_to_watershed():
    case = row_of_objects(0.97, 0.85, outline=0.9)
    thresholds = [0.8], [0.5], (0.7, 0.9, 0.96)
    rows = sweep_thresholds([case], *thresholds, Decoding("watershed", min_size=1))
    assert [row.foreground_threshold for row in rows] == [0.7, 0.9, 0.96]
    # flooded gaps belong to objects, then to the first object alone, then to none
    assert [row.instances for row in rows] == [2, 1, 1]
    assert [row.ap75 for row in rows] == pytest.approx([1, 51 / 101, 51 / 101])
    assert len(sweep_thresholds([case], *thresholds, Decoding(min_size=1))) == 1


def test_cases_are_averaged_and_read_once():
    complete, half = row_of_objects(0.97, 0.95, outline=0.9), row_of_objects(0.95, 0.5, outline=0.9)

    def cases() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        yield complete
        yield half

    rows = sweep_thresholds(cases(), [0.4, 0.9], [0.8], decoding=Decoding(min_size=1, dilation=NO_GROWTH))
    assert [row.ap75 for row in rows] == pytest.approx([1, (1 + 51 / 101) / 2])
    assert [row.instances for row in rows] == [4, 3]


def test_cases_without_true_instances_count_in_no_average():
    mask, boundary, truth = row_of_objects(0.97, 0.5, outline=0.9)
    empty = (mask, boundary, np.zeros_like(truth))
    (row,) = sweep_thresholds(
        [(mask, boundary, truth), empty], [0.9], [0.8], decoding=Decoding(min_size=1, dilation=NO_GROWTH)
    )
    assert row.ap75 == pytest.approx(51 / 101)
    assert row.instances == 2
    (row,) = sweep_thresholds([empty], [0.9], [0.8], decoding=Decoding(min_size=1, dilation=NO_GROWTH))
    assert math.isnan(row.ap) and math.isnan(row.ap50) and math.isnan(row.ap75)
    with pytest.raises(ValueError, match=r"with AP-75, from a case with true instances, got none"):
        best_thresholds([row])


def test_nothing_found_is_no_precision():
    (row,) = sweep_thresholds([row_of_objects(0.9, 0.5)], [0.99], [0.8])
    assert (row.ap, row.ap50, row.ap75, row.instances) == (0, 0, 0, 0)


def test_small_true_instances_are_left_out():
    mask, boundary, truth = row_of_objects(0.97, 0.5, outline=0.9)
    truth[1, :, 5:] = 0  # the second, which is not found, has 12 voxels
    (row,) = sweep_thresholds(
        [(mask, boundary, truth)], [0.9], [0.8], decoding=Decoding(min_size=1, dilation=NO_GROWTH), min_truth_size=13
    )
    assert row.ap75 == 1


def test_min_size_and_growth_are_passed_on():
    case = row_of_objects(0.97, 0.5, outline=0.9)
    assert sweep_thresholds([case], [0.9], [0.8], decoding=Decoding(min_size=25, dilation=NO_GROWTH))[0].instances == 0
    assert sweep_thresholds([case], [0.9], [0.8], decoding=Decoding(min_size=25, dilation=(1, 1, 3)))[0].instances == 1


def test_best_of_equal_rows():
    rows = [score(0.7, 0.5, math.nan), score(0.8, 0.5, 0.6, 0.5), score(0.8, 0.6, 0.6, 0.7), score(0.9, 0.5, 0.6, 0.7)]
    assert best_thresholds(rows) is rows[2]


@pytest.mark.parametrize(("cases", "masks"), [([], [0.9]), ([row_of_objects(0.9)], [])])
def test_nothing_to_try(cases, masks):
    with pytest.raises(ValueError, match=r"must hold at least one.*, got none"):
        sweep_thresholds(cases, masks, [0.8])


def test_table(tmp_path):
    rows = [score(0.9, 0.75, 1 / 3), score(0.9, 0.8, math.nan, foreground=0.85)]
    save_sweep_table(tmp_path / "out" / "sweep.csv", rows)
    text = (tmp_path / "out" / "sweep.csv").read_text()
    assert text.splitlines()[0] == "mask_threshold,boundary_threshold,foreground_threshold,ap,ap50,ap75,instances"
    first, second = csv.DictReader(text.splitlines())
    assert float(first["ap75"]) == 1 / 3 and first["foreground_threshold"] == "" and first["instances"] == "7"
    assert second["ap75"] == "" and second["foreground_threshold"] == "0.85"


def test_figure(tmp_path, monkeypatch):
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k)))
    values = {(0.8, 0.5): 0.1, (0.8, 0.6): 0.2, (0.8, 0.75): 0.3, (0.9, 0.5): 0.4, (0.9, 0.6): 0.7, (0.9, 0.75): 0.5}
    rows = [score(*at, ap75, foreground=0.85) for at, ap75 in values.items()]
    rows += [score(*at, ap75 / 2, foreground=0.7) for at, ap75 in values.items()]
    path = tmp_path / "sweep.png"
    save_sweep_figure(path, rows)
    first, second, _ = drawn[0].axes
    np.testing.assert_allclose(first.get_images()[0].get_array(), [[0.1, 0.2, 0.3], [0.4, 0.7, 0.5]])
    np.testing.assert_allclose(second.get_images()[0].get_array(), [[0.05, 0.1, 0.15], [0.2, 0.35, 0.25]])
    assert first.get_images()[0].origin == "lower"
    assert first.get_images()[0].get_clim() == second.get_images()[0].get_clim() == (0.05, 0.7)
    assert [text.get_text() for text in first.get_xticklabels()] == ["0.5", "0.6", "0.75"]
    assert [text.get_text() for text in first.get_yticklabels()] == ["0.8", "0.9"]
    assert [axes.get_title() for axes in (first, second)] == ["foreground above 0.85", "foreground above 0.7"]
    assert [text.get_text() for text in first.texts] == ["0.100", "0.200", "0.300", "0.400", "0.700", "0.500"]
    (frame,) = first.patches
    assert frame.get_xy() == (0.5, 0.5) and not second.patches
    assert imread(path).ndim == 3
    assert [p.name for p in Path(tmp_path).iterdir()] == ["sweep.png"]


def test_figure_of_one_row(tmp_path):
    save_sweep_figure(tmp_path / "sweep.png", [score(0.9, 0.8, 0.4)])
    assert (tmp_path / "sweep.png").stat().st_size > 1000
