# SPDX-License-Identifier: Apache-2.0
"""Tests of scoring the cases of an evaluation."""

from __future__ import annotations

import csv
import json
import logging

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from volseg.errors import UserError
from volseg.handlers.case_scores import CaseScores

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


def run(folder, cases: list[list[dict]], **options) -> None:
    engine = Engine(lambda engine, batch: batch)
    CaseScores(str(folder), {"1": "LUL", "2": "LLL"}, **options).attach(engine)
    engine.run(cases)


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
    assert f"LUL   Dice 0.875 +- {np.std([1, 0.75], ddof=1):.3f} (n = 2)" in caplog.text


def test_tolerance_of_the_surface_dice(tmp_path):
    for tolerance_mm, expected in ((0.8, 1.0), (0.6, None)):
        run(tmp_path / str(tolerance_mm), [case("a.nii", 1)], tolerance_mm=tolerance_mm)
        with (tmp_path / str(tolerance_mm) / "per_case.csv").open() as file:
            found = float(next(csv.DictReader(file))[f"surface_dice_{tolerance_mm}mm"])
        assert (found == 1.0) == (expected == 1.0)


def test_two_cases_of_one_name_are_refused(tmp_path):
    with pytest.raises(UserError, match="The case a is in the report already"):
        run(tmp_path, [case("/x/a.nii.gz", 0), case("/y/a.nii.gz", 0)])
