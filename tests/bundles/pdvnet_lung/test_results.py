# SPDX-License-Identifier: Apache-2.0
"""What the texts promise of the results stands in the results files."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from statistics import mean

import pytest

BUNDLE = Path(__file__).resolve().parents[3] / "bundles" / "pdvnet_lung"
RESULTS = BUNDLE / "docs" / "results"
PHANTOMS = BUNDLE.parents[1] / "docs" / "phantoms.md"
LOBES = ("LUL", "LLL", "RUL", "RML", "RLL")


@pytest.fixture(scope="module")
def results() -> dict:
    return json.loads((RESULTS / "phantom.json").read_text(encoding="utf-8"))


def test_mean_lobe_dice_on_held_out_phantoms_is_at_least_090(results):
    assert results["summary"]["mean"]["dice"]["mean"] >= 0.90
    assert all(results["summary"][lobe]["dice"]["n"] == 12 for lobe in LOBES)


def test_training_on_phantoms_takes_at_most_ten_minutes_on_two_cores(results):
    assert results["training"]["machine"]["cores"] == 2
    assert results["training"]["seconds"] <= 600


def test_summary_follows_from_the_cases(results):
    with (RESULTS / "phantom_per_case.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for lobe in LOBES:
        dice = [float(row["dice"]) for row in rows if row["label"] == lobe]
        assert mean(dice) == pytest.approx(results["summary"][lobe]["dice"]["mean"], abs=1e-6)


@pytest.fixture(scope="module")
def painted() -> dict:
    return json.loads((RESULTS / "painted.json").read_text(encoding="utf-8"))


def test_shipped_weights_are_those_that_were_evaluated(painted):
    weights = BUNDLE / "models" / "model.pt"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert painted["weights_sha256"] == digest
    assert painted["training"]["weights"] == json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
    assert json.loads((RESULTS / "real_ct.json").read_text(encoding="utf-8"))["weights_sha256"] == digest


def test_painted_lobes_beat_the_floor(painted):
    summary, floor = painted["summary"], painted["floor"]
    for label in (*LOBES, "mean"):
        assert summary[label]["dice"]["mean"] > floor[label]["dice"]["mean"]
        assert summary[label]["fissure_distance_mm"]["mean"] < floor[label]["fissure_distance_mm"]["mean"]
    with (RESULTS / "painted_per_case.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for lobe in LOBES:
        dice = [float(row["dice"]) for row in rows if row["label"] == lobe and row["dice"] != "nan"]
        assert mean(dice) == pytest.approx(summary[lobe]["dice"]["mean"], abs=1e-6)


def test_other_fields_of_view_cost_little(painted):
    fields = painted["fields_of_view"]
    assert fields["chest"]["n"] >= 6
    assert all(field["dice"] > fields["chest"]["dice"] - 0.03 for field in fields.values())


def test_a_real_ct_is_filled_by_whole_lobes():
    found = json.loads((RESULTS / "real_ct.json").read_text(encoding="utf-8"))
    assert found["lungs_dice"] >= 0.965
    assert abs(found["lungs_ml"] / found["lungs_reference_ml"] - 1) <= 0.04
    assert found["unusual_lobes"] == []
    assert found["lowest_lobe_dice_with_the_series"] >= 0.99


def test_texts_quote_the_results(results):
    page = PHANTOMS.read_text(encoding="utf-8")
    for label in (*LOBES, "mean"):
        dice = results["summary"][label]["dice"]
        assert f"{dice['mean']:.3f} +- {dice['std']:.3f}" in page, label
    assert f"{results['training']['seconds'] / 60:.1f} minutes" in page
    card = (BUNDLE / "docs" / "README.md").read_text(encoding="utf-8")
    assert f"mean lobe Dice of {dice['mean']:.3f} +- {dice['std']:.3f}" in card


def test_model_card_quotes_the_painted_cts(painted):
    card = (BUNDLE / "docs" / "README.md").read_text(encoding="utf-8")
    for table in ("summary", "floor"):
        for label in (*LOBES, "mean"):
            dice = painted[table][label]["dice"]
            assert f"{dice['mean']:.3f} +- {dice['std']:.3f}" in card, (table, label)
    for field in painted["fields_of_view"].values():
        assert f"| {field['dice']:.3f} | {field['largest_loss']:.3f} |" in card
    assert f"{painted['training']['hours']:.1f} hours" in card
