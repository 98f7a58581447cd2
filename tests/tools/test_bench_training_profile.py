# SPDX-License-Identifier: Apache-2.0
"""What the profiles of training promise, how they are made, and the text that quotes them."""

from __future__ import annotations

import json
import math

import pytest

from tools import REPOSITORY
from tools.bench.measure import TOTAL
from tools.bench.tables import TRAINING as TEXT
from tools.bench.tables import profile_tables, replace_tables
from tools.bench.training_profile import (
    AMP,
    BACKWARD,
    FORWARD,
    ITERATION,
    LOADER,
    LOSS,
    NETWORKS,
    OPTIMISER,
    PARTS,
    PREPARE,
    PROFILES,
    REST,
    WAIT,
    profile_training,
    rows_of_profile,
)

FOLDER = REPOSITORY / "docs" / "benchmarks"


def committed(name):
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"{path.relative_to(REPOSITORY)} does not exist: python -m tools bench {name} writes it")
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", PROFILES)
def test_training_hardly_waits_for_the_loader(name):
    rows = {row["mode"]: row for row in committed(name)["rows"]}
    assert rows[WAIT]["share"] < 0.1
    # the clocks miss nothing
    assert sum(rows[part]["share"] for part in (*PARTS, REST) if part in rows) == pytest.approx(1, abs=0.05)
    assert rows[FORWARD]["share"] + rows[BACKWARD]["share"] > 0.8


@pytest.mark.parametrize("bundle", NETWORKS)
def test_mixed_precision_makes_training_at_the_papers_size_faster(bundle):
    rows = {row["mode"]: row for row in committed(f"{bundle}_training_profile")["rows"]}
    assert rows[AMP]["ratio"] > 1.2


def test_the_text_shows_the_results():
    for name in PROFILES:
        committed(name)
    text = TEXT.read_text(encoding="utf-8")
    assert replace_tables(text, profile_tables(FOLDER)) == text


def lap(total, **parts):
    return {**parts, TOTAL: total}


def test_rows_are_parts_of_the_iteration_in_their_order():
    iterations = [
        lap(1.0, **{WAIT: 0.05, PREPARE: 0.00001, FORWARD: 0.3, LOSS: 0.04, BACKWARD: 0.5, OPTIMISER: 0.06}),
        lap(1.2, **{WAIT: 0.05, PREPARE: 0.00001, FORWARD: 0.4, LOSS: 0.04, BACKWARD: 0.5, OPTIMISER: 0.1}),
        lap(1.1, **{WAIT: 0.05, PREPARE: 0.00001, FORWARD: 0.3, LOSS: 0.04, BACKWARD: 0.6, OPTIMISER: 0.05}),
    ]
    batches = [lap(0.5, Crop=0.3, Flip=0.0001), lap(0.3, Crop=0.1, Blur=0.15)]
    rows = rows_of_profile(
        {"iterations": iterations, "batches": batches, "peak_mb": 900},
        {"iterations": [lap(0.44), lap(0.5), lap(0.46)], "peak_mb": 500},
    )
    by_name = {row["mode"]: row for row in rows}
    assert list(by_name) == [
        ITERATION, WAIT, FORWARD, LOSS, BACKWARD, OPTIMISER, REST,
        LOADER, "loader: Crop", "loader: Blur", "loader: cache, collation, below 1 ms", AMP,
    ]  # fmt: skip
    whole = {"median_s": 1.1, "min_s": 1.0, "max_s": 1.2, "n": 3, "ratio": 1.0, "share": 1.0, "peak_mb": 900}
    assert by_name[ITERATION] == {"mode": ITERATION, **whole}
    assert by_name[FORWARD] == {
        "mode": FORWARD, "median_s": 0.3, "min_s": 0.3, "max_s": 0.4, "n": 3, "ratio": 3.67, "share": 0.2727,
    }  # fmt: skip
    assert by_name[REST]["median_s"] == pytest.approx(0.06)
    assert by_name[LOADER]["share"] == pytest.approx(0.4 / 1.1, abs=1e-4)
    assert by_name["loader: Blur"]["median_s"] == 0.075
    assert by_name[AMP]["ratio"] == 2.39


SMALL = {
    "pdvnet_lung": {"phantom_shape": [40, 48, 32], "spatial_size": [32, 40, 24]},
    "vnet_prostate": {
        "phantom_shape": [48, 40, 16], "spatial_size": [32, 48, 16], "spacing_mm": [4.0, 3.0, 6.0],
        "network_def#channels": [2, 4, 4, 8, 8],
    },
    "resunet_mitoem": {
        "phantom_shape": [12, 48, 64], "spatial_size": [8, 32, 48], "margin_pixels": 8, "batch_size": 1,
        "network_def#channels": [4, 4, 4, 4, 4],
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("bundle", "configs", "at_papers_size", "transform"),
    [
        ("pdvnet_lung", ["train", "train_amp"], False, None),
        ("vnet_prostate", ["train", "train_amp"], False, "RandHistogramMatchd"),
        ("resunet_mitoem", ["train"], True, "RandLoadImageCropd"),
    ],
)
def test_a_profile_of_the_bundles_own_training(bundle, configs, at_papers_size, transform, tmp_path):
    settings = {**SMALL[bundle], "device": "cpu", **({"num_workers": 0} if at_papers_size else {})}
    profile = profile_training(bundle, configs, at_papers_size, settings, 2, str(tmp_path), seed=3)
    assert len(profile["iterations"]) == len(profile["batches"]) == 2
    for iteration in profile["iterations"]:
        assert next(iter(iteration)) == WAIT
        assert set(iteration) == {*PARTS, TOTAL}
        assert 0 < sum(iteration[part] for part in PARTS) <= iteration[TOTAL]
    assert len(profile["losses"]) == 4
    assert all(math.isfinite(loss) for loss in profile["losses"])
    assert profile["spatial_size"] == SMALL[bundle]["spatial_size"]
    for batch in profile["batches"]:
        # what is in the cache is not made again
        assert "LoadImageVolumed" not in batch
        assert transform is None or batch[transform] > 0


def test_every_bundle_has_both_profiles():
    assert set(PROFILES) == {f"{b}_training_profile{s}" for b in NETWORKS for s in ("", "_phantom")}
