# SPDX-License-Identifier: Apache-2.0
"""Tests of writing what inference found."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from volseg.data.volume_reader import load_volume
from volseg.errors import UserError
from volseg.handlers.segmentation_writer import SaveImageSegmentations

AFFINE = np.array([[0, 0, -1.5, 12], [-0.7, 0, 0, -30], [0, 2.5, 0, 400], [0, 0, 0, 1.0]])
SIZE = (6, 5, 4)


def save(path: Path, value: int) -> str:
    nib.save(nib.Nifti1Image(np.full(SIZE, value, np.int16), AFFINE), path)
    return str(path)


def measure(image: np.ndarray, labels: np.ndarray, affine: np.ndarray) -> dict:
    np.testing.assert_allclose(affine, AFFINE)
    assert image.shape == labels.shape == SIZE
    warnings = ["dark"] if image.mean() < -500 else []
    return {"mean": float(image.mean()), "warnings": warnings, "legend": {1: "LUL", 2: "LLL"}}


def prediction(path: str, value: int) -> list[dict]:
    # the image on the network's grid: the writer takes what the engine has read
    image = MetaTensor(torch.zeros(1, 2, 2, 2), meta={"filename_or_obj": path})
    labels = torch.zeros(1, *SIZE, dtype=torch.uint8)
    labels[:, 1:4, 2:, 1:3] = value
    return [{"image": image, "pred": MetaTensor(labels)}]


def run(folder: Path, cases: list[list[dict]], **options) -> None:
    writer = SaveImageSegmentations(str(folder), {"1": "LUL", "2": "LLL"}, "lobes", measure, (-1350, 150), **options)

    def segment(engine: Engine, batch: list[dict]) -> list[dict]:
        writer.take(load_volume(batch[0]["image"].meta["filename_or_obj"]))
        engine.warnings = []
        return batch

    engine = Engine(segment)
    writer.attach(engine)
    engine.run(cases)


def test_files_of_each_case(tmp_path, caplog):
    (tmp_path / "in").mkdir()
    a, b = save(tmp_path / "in" / "a.nii.gz", -300), save(tmp_path / "in" / "b.nii", -800)
    out = tmp_path / "out"
    with caplog.at_level(logging.INFO):
        run(out, [prediction(a, 1), prediction(b, 2)])
    names = ["a_lobes.nii.gz", "a_preview.png", "b_lobes.nii.gz", "b_preview.png", "statistics.json"]
    assert sorted(p.name for p in out.iterdir()) == names
    for name, value in (("a", 1), ("b", 2)):
        image = nib.load(out / f"{name}_lobes.nii.gz")
        np.testing.assert_array_equal(np.asarray(image.dataobj), prediction(a, value)[0]["pred"][0])
        np.testing.assert_allclose(image.affine, AFFINE)
        assert b'{"labels": {"1": "LUL", "2": "LLL"}}' in image.header.extensions[0].get_content()
    assert json.loads((out / "statistics.json").read_text()) == [
        {"image": a, "segmentation": "a_lobes.nii.gz", "mean": -300.0, "warnings": []},
        {"image": b, "segmentation": "b_lobes.nii.gz", "mean": -800.0, "warnings": ["dark"]},
    ]
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == [f"{b}: dark"]
    lines = [record.getMessage() for record in caplog.records if record.name.endswith("segmentation_writer")]
    assert [re.sub(r"\d+\.\d s", "N s", line) for line in lines if "LUL" in line] == [
        f"{a}: LUL, LLL (N s)",
        f"{b}: LUL, LLL (N s)",
    ]
    assert f"2 case(s) segmented, results in {out}" in caplog.text


def test_no_preview(tmp_path):
    run(tmp_path / "out", [prediction(save(tmp_path / "a.nii.gz", 0), 1)], preview=False)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a_lobes.nii.gz", "statistics.json"]


def test_same_name_in_two_formats(tmp_path):
    cases = [prediction(save(tmp_path / name, 0), value) for name, value in (("a.nii", 1), ("a.nii.gz", 2))]
    run(tmp_path / "out", cases, preview=False)
    found = {p.name: np.asarray(nib.load(p).dataobj).max() for p in (tmp_path / "out").glob("*.nii.gz")}
    assert found == {"a_lobes.nii.gz": 1, "a.nii.gz_lobes.nii.gz": 2}


def test_other_formats_beside_nifti(tmp_path):
    image, out = save(tmp_path / "a.nii", 0), tmp_path / "out"
    anatomy = {"1": ["UpperLobeOfLung", "Left"], "2": ["LowerLobeOfLung", "Left"]}
    run(out, [prediction(image, 2)], preview=False, output_format="seg_nrrd", anatomy=anatomy)
    volume = load_volume(out / "a_lobes.seg.nrrd")
    np.testing.assert_array_equal(volume, prediction(image, 2)[0]["pred"])
    np.testing.assert_allclose(volume.affine, AFFINE)
    (entry,) = json.loads((out / "statistics.json").read_text())
    assert (entry["segmentation"], entry["seg_nrrd"]) == ("a_lobes.nii.gz", "a_lobes.seg.nrrd")
    run(out, [prediction(image, 1)], preview=False)  # what is left would be of another result
    assert sorted(p.name for p in out.iterdir()) == ["a_lobes.nii.gz", "statistics.json"]
    with pytest.raises(UserError, match=r"a\.nii: not DICOM"):
        run(out, [prediction(image, 1)], output_format=["nifti", "dicom_seg"], anatomy=anatomy)


def test_cases_before_a_failure_are_reported(tmp_path):
    good = save(tmp_path / "a.nii.gz", 0)
    with pytest.raises(ValueError, match="absent"):
        run(tmp_path / "out", [prediction(good, 1), prediction(str(tmp_path / "absent.nii"), 1)], preview=False)
    assert [case["image"] for case in json.loads((tmp_path / "out" / "statistics.json").read_text())] == [good]
