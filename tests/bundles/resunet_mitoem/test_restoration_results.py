# SPDX-License-Identifier: Apache-2.0
"""What the results file says of the restoration of noisy sections."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from statistics import mean

import pytest

BUNDLE = Path(__file__).resolve().parents[3] / "bundles" / "resunet_mitoem"


@pytest.fixture(scope="module")
def results() -> dict:
    return json.loads((BUNDLE / "docs" / "results" / "restoration.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def segmentation(results) -> dict:
    if "segmentation" not in results:
        pytest.skip("restoration.json was written before there were weights for the segmentation")
    return results["segmentation"]


def test_results_are_those_of_the_weights(results):
    weights = BUNDLE / "models" / "interpolation.pt"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == results["weights_sha256"]
    assert json.loads(weights.with_suffix(".json").read_text(encoding="utf-8")) == results["weights"]


def test_summary_follows_from_the_sections(results):
    for method, summary in results["psnr_db"].items():
        values = [section["psnr_db"][method] for section in results["sections"]]
        assert summary["n"] == len(values) >= 30
        assert summary["mean"] == pytest.approx(mean(values), abs=1e-4)


def test_network_beats_linear_interpolation(results):
    psnr_db = {method: summary["mean"] for method, summary in results["psnr_db"].items()}
    assert psnr_db["network"] > psnr_db["linear"] + 0.5
    assert psnr_db["network"] > psnr_db["smoothed_linear"]
    for other in ("linear", "smoothed_linear", "spoilt"):
        better = [section["psnr_db"]["network"] > section["psnr_db"][other] for section in results["sections"]]
        assert mean(better) > 0.5, other
    assert mean(s["psnr_db"]["network"] > s["psnr_db"]["linear"] for s in results["sections"]) > 0.9


def test_noisy_sections_are_found(results):
    search = results["search"]
    assert search["spoilt"] == len(results["sections"])
    assert search["found"] >= 0.9 * search["spoilt"]
    assert search["false_alarms"] <= 0.1 * search["spoilt"]


def test_segmentation_gains(segmentation):
    for measure in ("ap50", "ap75", "foreground_dice"):
        means = {volume: segmentation[volume][measure]["mean"] for volume in ("clean", "spoilt", "restored")}
        assert means["spoilt"] < means["restored"], measure
