# SPDX-License-Identifier: Apache-2.0
"""What the texts promise of the results stands in the results files."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from statistics import mean

import pytest

BUNDLE = Path(__file__).resolve().parents[3] / "bundles" / "resunet_mitoem"
RESULTS = BUNDLE / "docs" / "results"
NAMES = ("phantom", "phantom_second_stage", "phantom_h")
WEIGHTS = ("model.pt", "model_h.pt")


def read(name: str) -> dict:
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"{path.name} does not exist: python -m tools results resunet_mitoem writes it")
    return json.loads(path.read_text(encoding="utf-8"))


def test_held_out_phantoms_are_segmented():
    measures = read("phantom")["summary"]["instances"]
    assert measures["foreground_dice"]["n"] == 12
    assert measures["foreground_dice"]["mean"] >= 0.85
    assert measures["ap50"]["mean"] >= 0.5


def test_training_on_phantoms_takes_at_most_15_minutes_on_two_cores():
    training = read("phantom")["training"]
    assert training["machine"]["cores"] == 2
    assert training["seconds"] <= 900


@pytest.mark.parametrize("name", NAMES)
def test_summary_follows_from_the_cases(name):
    measures = read(name)["summary"]["instances"]
    with (RESULTS / f"{name}_per_case.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for measure in ("ap50", "ap75", "foreground_dice"):
        assert mean(float(row[measure]) for row in rows) == pytest.approx(measures[measure]["mean"], abs=1e-6)


def test_weights_are_those_that_were_scored_on_tissue():
    results = read("real_em")
    for network, training, name in zip(
        results["networks"].values(), results["training"].values(), WEIGHTS, strict=True
    ):
        weights = BUNDLE / "models" / name
        assert hashlib.sha256(weights.read_bytes()).hexdigest() == network["weights_sha256"]
        record = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
        assert record == training["weights"]
        assert record["trained_on"] == "phantom"
        assert network["foreground_dice"] >= 0.78
        assert network["ap50"] >= 0.3
        assert network["foreground_dice"] > results["grey_threshold_dice"] + 0.3


@pytest.mark.parametrize("name", NAMES)
def test_model_card_quotes_the_results(name):
    results = read(name)
    card = " ".join((BUNDLE / "docs" / "README.md").read_text(encoding="utf-8").split())
    for measure in ("foreground_dice", "ap50", "ap75"):
        statistics = results["summary"]["instances"][measure]
        assert f"{statistics['mean']:.3f} +- {statistics['std']:.3f}" in card, measure
    if name != "phantom_second_stage":
        assert f"{results['training']['seconds'] / 60:.1f} minutes" in card


def test_model_card_quotes_real_tissue():
    results = read("real_em")
    card = (BUNDLE / "docs" / "README.md").read_text(encoding="utf-8")
    networks = results["networks"].values()
    for name, measure in (("foreground Dice", "foreground_dice"), ("foreground Jaccard", "foreground_jaccard"),
                          ("AP-50", "ap50"), ("AP-75", "ap75")):  # fmt: skip
        assert f"| {name} | {' | '.join(f'{network[measure]:.3f}' for network in networks)} |" in card
    assert f"| {results['grey_threshold_dice']:.3f} |" in card
    assert f"their {results['true_instances']} connected components" in card
    assert f"{' and '.join(str(network['instances']) for network in networks)} instances were found" in card


def test_model_card_quotes_the_fine_tuning():
    card = " ".join((BUNDLE / "docs" / "README.md").read_text(encoding="utf-8").split())
    measured = read("real_em")["fine_tuning"]["networks"]["Res-UNet-R"]
    before, after = measured["released"], measured["fine_tuned"]
    assert f"Res-UNet-R on the other ten from {before['ap50']:.3f} to {after['ap50']:.3f}" in card
    assert f"foreground Dice from {before['foreground_dice']:.3f} to {after['foreground_dice']:.3f}" in card


def test_texts_quote_the_restoration():
    results = json.loads((RESULTS / "restoration.json").read_text(encoding="utf-8"))["psnr_db"]
    page = " ".join((BUNDLE.parents[1] / "docs" / "restoration.md").read_text(encoding="utf-8").split())
    card = " ".join((BUNDLE / "docs" / "README.md").read_text(encoding="utf-8").split())
    quoted = {name: f"{statistics['mean']:.1f} +- {statistics['std']:.1f} dB" for name, statistics in results.items()}
    assert [text for text in quoted.values() if text not in page] == []
    assert f"PSNR of {quoted['network']}, where linear interpolation has {quoted['linear']}" in card
