# SPDX-License-Identifier: Apache-2.0
"""Decoding beside scikit-image: what the results promise, and that both do the same."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tools import REPOSITORY
from tools.bench import decoding
from tools.bench.decoding import METHODS, OURS, PEER, bench_instance_decoding, decode_with_scikit_image, matched_share
from volseg.instances.decoding import Decoding, decode_instances

RESULT = REPOSITORY / "docs" / "benchmarks" / "instance_decoding.json"
NAMES = [method.replace("_", " ") for method in METHODS]


@pytest.mark.parametrize("method", NAMES)
def test_decoding_agrees_with_scikit_image_and_needs_less(method):
    if not RESULT.is_file():
        pytest.skip("python -m tools bench instance_decoding writes it")
    rows = {row["mode"]: row for row in json.loads(RESULT.read_text(encoding="utf-8"))["rows"]}
    peer, ours = (rows[f"{library}, {method}"] for library in (PEER, OURS))
    assert ours["instances"] == peer["instances"]
    assert ours["agreement"] >= 0.999
    assert ours["ratio"] >= 1
    assert ours["peak_mb"] < peer["peak_mb"]


@pytest.fixture
def probabilities():
    """Two boxes with an outline between them, and one that is too small to be kept."""
    mask, boundary = np.zeros((2, 6, 24, 40), np.uint8)
    mask[:, 4:20, 4:30] = 250
    boundary[:, 4:20, 14:20] = 250  # so wide that growth does not meet
    mask[0, 22:24, 38:40] = 250
    return mask, boundary


@pytest.mark.parametrize("method", METHODS)
def test_scikit_image_does_the_same(method, probabilities):
    theirs = decode_with_scikit_image(*probabilities, method)
    ours = decode_instances(*probabilities, Decoding(method))
    assert len(np.unique(ours)) == 3
    assert matched_share(ours, theirs) == 1


def test_labels_are_matched_one_to_one():
    reference = np.array([[0, 0, 1, 1, 1, 2, 2, 0]])
    assert matched_share(np.array([[0, 0, 7, 7, 7, 3, 3, 0]]), reference) == 1
    # one label for two instances goes with the larger one
    assert matched_share(np.array([[0, 0, 7, 7, 7, 7, 7, 0]]), reference) == 6 / 8
    # two labels for one instance: so does the larger one
    assert matched_share(np.array([[0, 0, 5, 7, 7, 3, 3, 3]]), reference) == 6 / 8


def test_both_methods_have_rows(monkeypatch):
    monkeypatch.setattr(decoding, "in_fresh_process", lambda function, *given: function(*given))
    result = bench_instance_decoding(1, seed=0, shape=(6, 64, 80))
    assert [row["mode"] for row in result["rows"]] == [f"{who}, {name}" for name in NAMES for who in (PEER, OURS)]
    assert all(row["agreement"] > 0.98 and row["instances"] > 0 for row in result["rows"])
    assert result["rows"][0]["ratio"] == 1
