# SPDX-License-Identifier: Apache-2.0
"""Tests of tuning the thresholds of decoding in an evaluation."""

from __future__ import annotations

import csv
import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from volseg.errors import UserError
from volseg.handlers.threshold_tuner import ThresholdTuner
from volseg.instances.decoding import Decoding

SHAPE = (2, 8, 14)
THRESHOLDS = {"mask_thresholds": [0.5, 0.9], "boundary_thresholds": [0.3, 0.7], "foreground_thresholds": [0.4, 0.85]}
SMALLEST = Decoding(min_size=1, dilation=(1, 1, 1))


def case(true_id: int = 70_000) -> list[dict]:
    """Two objects that touch at a column with a boundary of 0.5, mask 0.95; the background's mask is 0.6.

    Only a mask threshold of 0.9 tells them from the background, only a boundary threshold of 0.3 from each other.
    """
    truth, probabilities = torch.zeros(1, *SHAPE, dtype=torch.int32), torch.zeros(2, *SHAPE)
    probabilities[0] = 0.6
    probabilities[0, :, 2:6, 1:13] = 0.95
    probabilities[1, :, 2:6, 6] = 0.5
    truth[0, :, 2:6, 1:6] = true_id
    truth[0, :, 2:6, 7:13] = 3 * (true_id > 0)
    return [{"pred": MetaTensor(probabilities), "label": MetaTensor(truth)}]


def run(folder: Path, cases: list[list[dict]], **options) -> ThresholdTuner:
    engine = Engine(lambda engine, batch: batch)
    tuner = ThresholdTuner(str(folder), **THRESHOLDS, **{"decoding": SMALLEST, **options})
    tuner.attach(engine)
    engine.run(cases)
    return tuner


def test_best_thresholds_are_written_and_logged(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        run(tmp_path / "out", [case(), case()])
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "thresholds.csv",
        "thresholds.json",
        "thresholds.png",
    ]
    assert json.loads((tmp_path / "out" / "thresholds.json").read_text()) == {
        "decoding": "connected_components",
        "mask_threshold": 0.9,
        "boundary_threshold": 0.3,
        "ap75": 1.0,
        "ap50": 1.0,
        "cases": 2,
    }
    with (tmp_path / "out" / "thresholds.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = {(row["mask_threshold"], row["boundary_threshold"]): row["instances"] for row in rows}
    assert found == {("0.5", "0.3"): "2", ("0.5", "0.7"): "2", ("0.9", "0.3"): "4", ("0.9", "0.7"): "2"}
    arguments = "--decoding connected_components --mask_threshold 0.9 --boundary_threshold 0.3"
    assert f"best AP-75 1.000 with {arguments}\n" in caplog.text


def test_watershed_has_a_third_threshold(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        run(tmp_path, [case()], decoding=replace(SMALLEST, method="watershed"))
    found = json.loads((tmp_path / "thresholds.json").read_text())
    assert (found["decoding"], found["foreground_threshold"]) == ("watershed", 0.85)
    assert (
        "--decoding watershed --mask_threshold 0.9 --boundary_threshold 0.3 --foreground_threshold 0.85" in caplog.text
    )
    assert len((tmp_path / "thresholds.csv").read_text().splitlines()) == 1 + 8


def test_truth_of_a_resampled_case_is_taken_from_the_nearest_voxels(tmp_path):
    (fine,) = case()
    fine["label"] = MetaTensor(fine["label"].repeat_interleave(3, 1).repeat_interleave(2, 3))
    [(_, _, truth)] = run(tmp_path, [[fine]]).cases
    np.testing.assert_array_equal(truth, case()[0]["label"][0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_are_kept_as_truncated_bytes(tmp_path, dtype):
    (item,) = case()
    item["pred"] = item["pred"].to(dtype)
    item["pred"][:, 0, 0, :4] = torch.tensor([[0, 0.999, 1, 0.5], [0.9001, 0, 0.8, 1]], dtype=dtype)
    before = item["pred"].clone()
    ((mask, boundary, truth),) = run(tmp_path, [[item]]).cases
    assert (mask.dtype, boundary.dtype, mask.shape, truth.shape) == (np.uint8, np.uint8, SHAPE, SHAPE)
    assert type(mask) is type(boundary) is type(truth) is np.ndarray
    assert mask[0, 0, :4].tolist() == [0, 254, 255, 127]
    assert boundary[0, 0, :4].tolist() == [229, 0, 204, 255]
    assert set(np.unique(truth).tolist()) == {0, 3, 70_000}
    assert torch.equal(item["pred"], before)


def test_an_evaluator_may_run_again(tmp_path):
    engine = Engine(lambda engine, batch: batch)
    tuner = ThresholdTuner(str(tmp_path), **THRESHOLDS, decoding=Decoding(min_size=1))
    tuner.attach(engine)
    for _ in range(2):
        engine.run([case()])
    assert json.loads((tmp_path / "thresholds.json").read_text())["cases"] == 1


def test_one_number_is_a_threshold_too(tmp_path):
    ThresholdTuner(str(tmp_path), **{**THRESHOLDS, "mask_thresholds": 0.5})


def test_no_true_instances(tmp_path):
    with pytest.raises(UserError, match=r"at least 1 voxels, found none in 2 case\(s\)"):
        run(tmp_path, [case(0), case(0)])
    with pytest.raises(UserError, match=r"at least 49 voxels, found none in 1 case\(s\)"):
        run(tmp_path, [case()], min_truth_size=49)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"mask_thresholds": [2]}, {"mask_thresholds": []}, {"boundary_thresholds": []}])
def test_wrong_options_are_found_at_once(tmp_path, wrong):
    with pytest.raises(ValueError, match=", got "):
        ThresholdTuner(str(tmp_path), **{**THRESHOLDS, **wrong})
