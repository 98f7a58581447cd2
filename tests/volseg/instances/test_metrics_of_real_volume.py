# SPDX-License-Identifier: Apache-2.0
"""Tests of the instance metrics against the official tool's results on a real volume, which is read once."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path

import h5py
import numpy as np
import pytest

from volseg.instances.average_precision import SIZE_RANGES, average_precision_of_table
from volseg.instances.matching import match_instances
from volseg.instances.overlap_table import OverlapTable, overlap_table

LUCCHI = Path(__file__).parents[4] / "shared" / "data" / "mito" / "lucchi_map_demo"
pytestmark = pytest.mark.skipif(not LUCCHI.is_dir(), reason=f"no volume in {LUCCHI}")


@pytest.fixture(scope="module")
def lucchi() -> OverlapTable:
    with (
        h5py.File(LUCCHI / "lucchi_pred_UNet_label_test.h5") as prediction,
        h5py.File(LUCCHI / "lucchi_gt_test.h5") as truth,
    ):
        return overlap_table(prediction["main"], truth["main"])


def reference() -> dict[str, dict[str, float]]:
    return json.loads((LUCCHI / "lucchi_reference_metrics.json").read_text())


@pytest.mark.parametrize(
    ("bounds", "name", "by_size"),
    [
        ((5e3, 1.5e4), "5e315e4", (0.000, 0.104, 0.920)),
        ((5e3, 3e4), "5e33e4", (0.000, 0.084, 0.959)),
        ((1e5, 3e5), "1e53e5", (0.288, 1.000, 1.000)),
    ],
)
def test_average_precision(lucchi, bounds, name, by_size):
    low, high = bounds
    ranges = {"small": (0, low), "medium": (low, high), "large": (high, math.inf)}
    result = average_precision_of_table(lucchi, size_ranges=ranges)
    expected = reference()["ap_crumb0"]
    assert {"AP50": result.ap50, "AP75": result.ap75, "AP50_95": result.ap} == pytest.approx(expected, abs=1e-9)
    assert tuple(result.by_size[size].ap75 for size in ranges) == pytest.approx(by_size, abs=5e-4)
    best = [result.matches.best[size] for size in ("all", *ranges)]
    columns = [result.matches.prediction_ids, result.matches.prediction_sizes]
    columns += [column for match in best for column in (match.truth_ids, match.truth_sizes, match.ious)]
    missed = result.missed
    missed_columns = [missed.prediction_ids, missed.prediction_sizes, missed.truth_ids, missed.truth_sizes, missed.ious]
    # the order too: no two predictions are of one size, and missed instances come by id
    np.testing.assert_allclose(
        np.stack(columns, 1), np.loadtxt(LUCCHI / f"official_master_th{name}_match_p.txt"), rtol=0, atol=5.1e-5
    )
    np.testing.assert_allclose(
        np.stack(missed_columns, 1), np.loadtxt(LUCCHI / f"official_master_th{name}_match_fn.txt"), rtol=0, atol=5.1e-5
    )


def test_average_precision_without_small_truth(lucchi):
    result = average_precision_of_table(lucchi, size_ranges=SIZE_RANGES, min_size=2000)
    expected = reference()["ap_crumb2000"]
    assert result.by_size["all"].truth_count == 34
    assert {"AP50": result.ap50, "AP75": result.ap75, "AP50_95": result.ap} == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("threshold", [0.5, 0.75])
def test_matching(lucchi, threshold):
    matching = match_instances(lucchi, threshold)
    values = {
        "tp": matching.true_positives,
        "fp": matching.false_positives,
        "fn": matching.false_negatives,
        "precision": matching.precision,
        "recall": matching.recall,
        "accuracy": matching.accuracy,
        "f1": matching.f1,
        "panoptic_quality": matching.panoptic_quality,
    }
    assert values == pytest.approx(reference()[f"matching@{threshold}"], abs=1e-9)
    # every true instance is of one kind
    relations = {field.name: getattr(matching.relations, field.name) for field in fields(matching.relations)}
    spurious = relations.pop("spurious")
    assert sorted(np.concatenate(list(relations.values()))) == lucchi.truth_ids.tolist()
    assert set(spurious).isdisjoint(matching.matched_prediction_ids)


def test_foreground_overlap(lucchi):
    expected = reference()["foreground"]
    both, predicted, true = (int(n.sum()) for n in (lucchi.pair_voxels, lucchi.prediction_sizes, lucchi.truth_sizes))
    assert (both, predicted, true) == (expected["tp"], expected["pred"], expected["gt"])
    assert lucchi.foreground_overlap() == pytest.approx((expected["jaccard"], expected["dice"]), abs=1e-9)
