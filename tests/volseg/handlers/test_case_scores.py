# SPDX-License-Identifier: Apache-2.0
"""Tests of scoring the cases of an evaluation."""

from __future__ import annotations

import csv
import json
import logging
from functools import partial

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from volseg.errors import UserError
from volseg.handlers.case_scores import CaseScores
from volseg.label_maps.case_report import label_measures

LOBE_MEASURES = partial(label_measures, labels={"1": "LUL", "2": "LLL"})

# voxel axes run to posterior, superior, left; a voxel is 2.625 mm3
AFFINE = torch.tensor([[0, 0, -1.5, 12], [-0.7, 0, 0, -30], [0, 2.5, 0, 400], [0, 0, 0, 1.0]])


def case(path: str, moved: int) -> list[dict]:
    """A block of 4 x 3 x 2 voxels of label 1, predicted some voxels further along the first axis."""
    label, pred = torch.zeros(2, 1, 12, 7, 9)
    label[0, 2:6, 2:5, 3:5] = 1
    pred[0, 2 + moved : 6 + moved, 2:5, 3:5] = 1
    label[0, 0, 0, 0] = pred[0, 0, 0, 0] = 2
    image = MetaTensor(torch.zeros(1, 2, 2, 2), meta={"filename_or_obj": path})
    return [{"image": image, "label": MetaTensor(label, affine=AFFINE), "pred": MetaTensor(pred.byte())}]


def run(folder, cases: list[list[dict]], measure=LOBE_MEASURES, **options) -> None:
    engine = Engine(lambda engine, batch: batch)
    CaseScores(str(folder), measure, **options).attach(engine)
    engine.run(cases)


def volumes(prediction: np.ndarray, truth: np.ndarray, affine: np.ndarray) -> dict[str, dict[str, float]]:
    """Some other measure, of regions that overlap."""
    assert prediction.dtype == truth.dtype == np.uint8
    voxel_mm3 = abs(np.linalg.det(affine[:3, :3]))
    overlap = np.count_nonzero(prediction * truth) * voxel_mm3
    return {"all": {"overlap_mm3": overlap, "truth_mm3": np.count_nonzero(truth) * voxel_mm3}}


def test_report(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        run(tmp_path, [case("/x/a.nii.gz", 0), case("/x/b.nrrd", 1)])
    with (tmp_path / "per_case.csv").open() as file:
        rows = {(row["case"], row["label"]): row for row in csv.DictReader(file)}
    assert set(rows) == {("a", "LUL"), ("a", "LLL"), ("b", "LUL"), ("b", "LLL")}
    assert float(rows["a", "LUL"]["dice"]) == 1
    assert float(rows["b", "LUL"]["dice"]) == 0.75
    assert float(rows["b", "LUL"]["hausdorff_95_mm"]) == pytest.approx(0.7)  # one voxel along the first axis
    assert float(rows["a", "LUL"]["reference_volume_ml"]) == pytest.approx(24 * 0.7 * 1.5 * 2.5 / 1000)
    assert json.loads((tmp_path / "summary.json").read_text())["labels"]["LUL"]["dice"]["mean"] == 0.875
    assert sum(message.startswith(("a: LUL dice 1.000, ", "b: LUL dice 0.750, ")) for message in caplog.messages) == 2
    assert f"LUL   dice 0.875 +- {np.std([1, 0.75], ddof=1):.3f} (n = 2)" in caplog.text


def test_measures_and_case_values_of_a_bundle(tmp_path, caplog):
    case_values = {"share": lambda m: m["all"]["overlap_mm3"] / m["all"]["truth_mm3"], "score": lambda m: None}
    with caplog.at_level(logging.INFO):
        run(tmp_path, [case("a.nii", 0), case("b.nii", 3)], volumes, mean_row=False, case_values=case_values)
    with (tmp_path / "per_case.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [list(row) for row in rows] == [["case", "label", "overlap_mm3", "truth_mm3", "share"]] * 2
    assert [float(row["overlap_mm3"]) for row in rows] == pytest.approx([25 * 2.625, 7 * 2.625])
    assert [float(row["share"]) for row in rows] == pytest.approx([1, 7 / 25])
    labels = json.loads((tmp_path / "summary.json").read_text())["labels"]
    assert list(labels) == ["all", "case"]
    assert labels["case"]["share"]["mean"] == pytest.approx(0.64)
    assert "all   overlap_mm3 42.000" in caplog.text
    assert "case  share 0.640" in caplog.text


def test_two_cases_of_one_name_are_refused(tmp_path):
    with pytest.raises(UserError, match="case a is already in the report"):
        run(tmp_path, [case("/x/a.nii.gz", 0), case("/y/a.nii.gz", 0)])


def test_an_empty_reference_is_no_zero_in_the_mean(tmp_path, caplog):
    empty = case("/x/b.nrrd", 0)
    empty[0]["label"] = MetaTensor(torch.zeros(1, 12, 7, 9), affine=AFFINE)
    run(tmp_path, [case("/x/a.nii.gz", 1), empty])
    dice = json.loads((tmp_path / "summary.json").read_text())["labels"]["LUL"]["dice"]
    assert (dice["mean"], dice["n"], dice["nan"]) == (0.75, 1, 1)
    assert "b: the reference is empty; its scores are NaN and no part of the means" in caplog.text
