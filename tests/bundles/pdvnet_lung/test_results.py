# SPDX-License-Identifier: Apache-2.0
"""What the texts promise of the results stands in the results files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from statistics import mean

import pytest

BUNDLE = Path(__file__).resolve().parents[3] / "bundles" / "pdvnet_lung"
RESULTS = BUNDLE / "docs" / "results"
LOBES = ("LUL", "LLL", "RUL", "RML", "RLL")


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["phantom_training", "demonstration_weights"])
def test_mean_lobe_dice_on_held_out_phantoms_is_at_least_090(name):
    summary = read(name)["summary"]
    assert summary["mean"]["dice"]["mean"] >= 0.90
    assert all(summary[lobe]["dice"]["n"] == 12 for lobe in LOBES)


def test_training_on_phantoms_takes_at_most_ten_minutes_on_two_cores():
    results = read("phantom_training")
    assert results["machine"]["cores"] == 2
    assert results["training"]["seconds"] <= 600


@pytest.mark.parametrize("name", ["phantom_training", "demonstration_weights"])
def test_summary_follows_from_the_cases(name):
    with (RESULTS / f"{name}_per_case.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for lobe in LOBES:
        dice = [float(row["dice"]) for row in rows if row["label"] == lobe]
        assert mean(dice) == pytest.approx(read(name)["summary"][lobe]["dice"]["mean"], abs=1e-6)


def test_shipped_weights_are_those_that_were_evaluated():
    assert read("demonstration_weights")["weights"] == json.loads((BUNDLE / "models" / "model.json").read_text())


def test_model_card_quotes_the_results():
    card = (BUNDLE / "docs" / "README.md").read_text(encoding="utf-8")
    for name in ("phantom_training", "demonstration_weights"):
        summary = read(name)["summary"]
        for label in (*LOBES, "mean"):
            dice = summary[label]["dice"]
            assert f"{dice['mean']:.3f} +- {dice['std']:.3f}" in card, (name, label)
    assert f"{read('phantom_training')['training']['seconds'] / 60:.1f} minutes" in card
