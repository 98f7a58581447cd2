# SPDX-License-Identifier: Apache-2.0
"""What the texts promise of the results stands in the results files."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from statistics import mean

import pytest

BUNDLE = Path(__file__).resolve().parents[3] / "bundles" / "vnet_prostate"
RESULTS = BUNDLE / "docs" / "results"
PHANTOMS = BUNDLE.parents[1] / "docs" / "phantoms.md"
REGIONS = ("whole", "base", "apex")


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def paper() -> dict:
    return read("phantom")


@pytest.fixture(scope="module")
def practical() -> dict:
    return read("phantom_practical")


def test_dice_on_held_out_phantoms_is_at_least_085(paper):
    assert paper["summary"]["whole"]["dice"]["mean"] >= 0.85
    assert all(paper["summary"][region]["dice"]["n"] == 12 for region in REGIONS)


def test_training_on_phantoms_takes_at_most_ten_minutes_on_two_cores(paper, practical):
    for results in (paper, practical):
        assert results["training"]["machine"]["cores"] == 2
        assert results["training"]["seconds"] <= 600


def test_practical_recipe_learns_faster_and_better_in_the_same_iterations(paper, practical):
    curves = [r["training"]["learning_curve"] for r in (paper, practical)]
    assert curves[0]["epoch"] == curves[1]["epoch"]
    pairs = list(zip(*(c["val_mean_dice"] for c in curves), strict=True))
    assert [(p, q) for p, q in pairs[: len(pairs) // 2] if q <= p] == []
    assert max(q for _, q in pairs) > max(p for p, _ in pairs)
    assert practical["summary"]["whole"]["dice"]["mean"] > paper["summary"]["whole"]["dice"]["mean"]
    same = ("max_epochs", "spatial_size", "spacing_mm", "seed")
    weights = [r["training"]["weights"] for r in (paper, practical)]
    assert [w[key] for w in weights[:1] for key in same] == [w[key] for w in weights[1:] for key in same]


@pytest.mark.parametrize("name", ["phantom", "phantom_practical"])
def test_summary_follows_from_the_cases(name):
    with (RESULTS / f"{name}_per_case.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for region in REGIONS:
        dice = [float(row["dice"]) for row in rows if row["label"] == region]
        assert mean(dice) == pytest.approx(read(name)["summary"][region]["dice"]["mean"], abs=1e-6)


def test_texts_quote_the_results(paper, practical):
    page, card = (path.read_text(encoding="utf-8") for path in (PHANTOMS, BUNDLE / "docs" / "README.md"))
    for results in (paper, practical):
        for region in REGIONS:
            measures = results["summary"][region]
            for name, digits in (("dice", 3), ("hausdorff_95_mm", 1), ("average_boundary_distance_mm", 2)):
                quoted = f"{measures[name]['mean']:.{digits}f} +- {measures[name]['std']:.{digits}f}"
                assert quoted in page, (region, name)
        assert f"{results['training']['seconds'] / 60:.1f} minutes" in page
        dice = results["summary"]["whole"]["dice"]
        assert f"{dice['mean']:.3f} +- {dice['std']:.3f}" in card


def test_released_weights_are_those_that_were_scored_on_patients_and_beat_the_floor():
    results, record = read("promise12_subset"), json.loads((BUNDLE / "models" / "model.json").read_text())
    assert results["weights"] == record
    card = (BUNDLE / "docs" / "README.md").read_text(encoding="utf-8")
    for name, n in (("all", 18), ("endorectal_coil", 7), ("no_coil", 11)):
        ours, floor = results["dice"][name], results["floor_dice"][name]
        assert ours["n"] == floor["n"] == n
        assert ours["mean"] > floor["mean"]
        assert f"| {n} | {ours['mean']:.3f} +- {ours['std']:.3f} | {ours['min']:.3f} |" in card
    with (RESULTS / "promise12_subset_per_case.csv").open(encoding="utf-8") as file:
        dice = [float(row["dice"]) for row in csv.DictReader(file) if row["label"] == "whole"]
    assert mean(dice) == pytest.approx(results["dice"]["all"]["mean"], abs=1e-4)


def test_model_card_quotes_what_recipes_reach_on_patients():
    recipes = read("promise12_subset")["recipes"]
    card = (BUNDLE / "docs" / "README.md").read_text(encoding="utf-8")
    dice = {name: recipe["dice"] for name, recipe in recipes.items() if "dice" in recipe}
    assert {"the paper's", "practical", "fine-tuning", "released weights", "floor"} == set(dice)
    for found in dice.values():
        assert found["n"] == 5
        assert f"| {found['mean']:.3f} +- {found['std']:.3f} | {found['min']:.3f} |" in card
    assert dice["fine-tuning"]["mean"] > max(dice["released weights"]["mean"], dice["practical"]["mean"])
    assert dice["practical"]["mean"] > dice["floor"]["mean"] + 0.2
