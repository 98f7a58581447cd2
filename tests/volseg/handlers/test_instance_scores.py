# SPDX-License-Identifier: Apache-2.0
"""Tests of scoring the instances of an evaluation."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from volseg.errors import UserError
from volseg.handlers.instance_scores import InstanceScores

SHAPE = (2, 12, 15)
SIZE_RANGES = {"small": (0, 10), "large": (10, float("inf"))}


def truth() -> np.ndarray:
    """40 voxels of id 5, 8 of id 70,000 and 6 of id 9."""
    ids = np.zeros(SHAPE, np.int64)
    ids[:, 1:5, 1:6] = 5
    ids[:, 8, 1:5] = 70_000
    ids[0, 10, 1:7] = 9
    return ids


def prediction() -> np.ndarray:
    """Id 5 as 2 with an IoU of 32 / 40, 70,000 as 3 with 8 / 12, id 9 missed, 4 voxels of id 80,000 too much."""
    ids = np.zeros(SHAPE, np.int32)
    ids[:, 1:5, 2:6] = 2
    ids[:, 8, 1:7] = 3
    ids[1, 2:4, 10:12] = 80_000
    return ids


def case(path: str, predicted: np.ndarray, true: np.ndarray) -> list[dict]:
    image = MetaTensor(torch.zeros(1, 1, 1, 1), meta={"filename_or_obj": path})
    return [{"image": image, "pred": torch.from_numpy(predicted)[None], "label": torch.from_numpy(true)[None]}]


def run(folder: Path, cases: list[list[dict]], **options) -> InstanceScores:
    engine = Engine(lambda engine, batch: batch)
    handler = InstanceScores(str(folder), **options)
    handler.attach(engine)
    engine.run(cases)
    return handler


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_measures_of_a_case(tmp_path):
    run(tmp_path, [case("/x/a.ome.zarr", prediction(), truth())], size_ranges=SIZE_RANGES)
    (row,) = rows(tmp_path / "per_case.csv")
    assert (row.pop("case"), row.pop("label")) == ("a", "instances")
    values = {name: float(value) for name, value in row.items()}
    # IoU 0.8, 2/3 and 0, in the order of size. Recall 1/3 reaches 34 of the 101 recalls, 2/3 reaches 67.
    assert values["ap50"] == pytest.approx(67 / 101)
    assert values["ap75"] == pytest.approx(34 / 101)
    # of the ten thresholds two matches reach 0.5 to 0.65, one 0.7 to 0.8
    assert values["ap"] == pytest.approx((4 * 67 + 3 * 34) / 101 / 10)
    assert values["ap75_large"] == 1
    assert values["ap50_small"] == pytest.approx(51 / 101)
    assert values["ap75_small"] == 0
    assert [values[f"{name}_50"] for name in ("accuracy", "precision", "recall", "f1")] == pytest.approx(
        [2 / 4, 2 / 3, 2 / 3, 2 / 3]
    )
    assert values["accuracy_75"] == pytest.approx(1 / 5)
    assert values["panoptic_quality_50"] == pytest.approx((0.8 + 2 / 3) / 3)
    assert values["panoptic_quality_75"] == pytest.approx(0.8 / 3)
    relations = ("one_to_one", "split", "merged", "many_to_many", "missing", "spurious")
    assert [values[name] for name in relations] == [2, 0, 0, 0, 1, 1]
    assert values["foreground_dice"] == pytest.approx(2 * 40 / (54 + 48))
    assert values["foreground_jaccard"] == pytest.approx(40 / (54 + 48 - 40))
    assert (values["true_instances"], values["predicted_instances"]) == (3, 3)


def test_matches_of_a_case(tmp_path):
    run(tmp_path, [case("/x/a.ome.zarr", prediction(), truth())])
    assert (tmp_path / "a_matches.csv").read_bytes().decode().split("\n") == [
        "prediction_id,prediction_voxels,truth_id,truth_voxels,iou",
        "2,32,5,40,0.8",
        "3,12,70000,8,0.666667",
        "80000,4,0,0,0.0",
        "0,0,9,6,0.0",
        "",
    ]


def test_split_and_merged_instances(tmp_path):
    true, predicted = np.zeros((2, *SHAPE), np.int32)
    true[:, 1:4, 1:11], predicted[:, 1:4, 1:6], predicted[:, 1:4, 6:11] = 1, 1, 2
    true[:, 6:8, 1:6], true[:, 6:8, 6:11], predicted[:, 6:8, 1:11] = 2, 3, 3
    run(tmp_path, [case("a", predicted, true)])
    (row,) = rows(tmp_path / "per_case.csv")
    relations = ("one_to_one", "split", "merged", "many_to_many", "missing", "spurious")
    assert [float(row[name]) for name in relations] == [0, 1, 2, 0, 0, 0]


def test_small_true_instances_count_as_background(tmp_path):
    run(tmp_path, [case("a", prediction(), truth())], min_size=8)
    (row,) = rows(tmp_path / "per_case.csv")
    assert [float(row[name]) for name in ("true_instances", "missing", "recall_50")] == [2, 0, 1]


def test_empty_ranges_and_volumes_do_not_enter_a_mean(tmp_path, caplog):
    nothing = np.zeros(SHAPE, np.int32)
    cases = [case("a", prediction(), truth()), case("b", nothing, nothing), case("c", nothing, truth())]
    with caplog.at_level(logging.INFO):
        run(tmp_path, cases, size_ranges={"small": (0, 10), "huge": (100, float("inf"))})
    values = rows(tmp_path / "per_case.csv")
    assert [row["ap75_huge"] for row in values] == ["nan"] * 3
    assert [row["ap50"] for row in values][1:] == ["nan", "0.0"]
    measures = json.loads((tmp_path / "summary.json").read_text())["labels"]["instances"]
    assert measures["ap50"]["mean"] == pytest.approx(67 / 202)
    assert (measures["ap50"]["n"], measures["ap50"]["nan"]) == (2, 1)
    assert measures["ap75_huge"]["mean"] is None
    assert f"ap75            {34 / 202:.3f} +- " in caplog.text and f"report in {tmp_path}" in caplog.text
    assert "foreground_dice" in caplog.text
    of_cases = [message.partition(": ")[2] for message in caplog.messages if ": ap75 " in message]
    assert len(of_cases) == 3
    assert of_cases[1].startswith("ap75 nan, ap50 nan, foreground_dice nan (")
    assert of_cases[2].startswith("ap75 0.000, ap50 0.000, foreground_dice 0.000 (")


def test_cases_of_one_name_stay_apart(tmp_path):
    nothing = np.zeros(SHAPE, np.int32)
    run(tmp_path, [case("/rat/im", prediction(), truth()), case("/human/im", nothing, truth())])
    assert [row["case"] for row in rows(tmp_path / "per_case.csv")] == ["im", "im_2"]
    assert len(rows(tmp_path / "im_matches.csv")) == 4
    assert len(rows(tmp_path / "im_2_matches.csv")) == 3


def test_thresholds_and_ranges_of_the_config(tmp_path):
    run(tmp_path, [case("a", prediction(), truth())], size_ranges={"mine": [0, 7]}, matching_thresholds=[0.8])
    (row,) = rows(tmp_path / "per_case.csv")
    assert row["f1_80"] == str(1 / 3)
    assert "ap_mine" in row and "f1_50" not in row and "ap_small" not in row


@pytest.mark.parametrize(
    "options",
    [
        {"matching_thresholds": []},
        {"matching_thresholds": [0.3]},
        {"size_ranges": {"small": [10, 5]}},
        {"size_ranges": {"all": [0, 5]}},
    ],
)
def test_wrong_options_are_found_at_once(tmp_path, options):
    with pytest.raises(UserError, match=", got "):
        InstanceScores(str(tmp_path), **options)


def test_an_evaluator_may_run_again(tmp_path):
    engine = Engine(lambda engine, batch: batch)
    InstanceScores(str(tmp_path)).attach(engine)
    for _ in range(2):
        engine.run([case("a", prediction(), truth())])
    assert [row["case"] for row in rows(tmp_path / "per_case.csv")] == ["a"]
