# SPDX-License-Identifier: Apache-2.0
"""Tests of where cases come from."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pdvnet_lung.data import datalist, inference_list

from volseg.data.datalist import write_datalist
from volseg.errors import UserError

CASES = {"training": 2, "validation": 1, "test": 1}
SHAPE = (32, 24, 28)


@pytest.fixture
def phantoms(tmp_path) -> dict:
    return {"phantom_dir": str(tmp_path / "phantom"), "phantom_cases": CASES, "phantom_shape": SHAPE}


def test_phantoms_are_made_at_first_use_and_kept(phantoms):
    cases = {split: datalist(None, split, **phantoms) for split in CASES}
    assert {split: len(found) for split, found in cases.items()} == CASES
    files = {path for found in cases.values() for case in found for path in case.values()}
    assert len(files) == 8
    assert all(nib.load(path).shape == SHAPE for path in files)
    written = {path: Path(path).stat().st_mtime_ns for path in files}
    assert datalist("", "training", **{**phantoms, "phantom_shape": list(SHAPE)}) == cases["training"]
    assert {path: Path(path).stat().st_mtime_ns for path in files} == written


def test_phantoms_of_another_seed_are_others(phantoms):
    def first_image(seed: int) -> np.ndarray:
        return np.asarray(nib.load(datalist(None, "training", **phantoms, phantom_seed=seed)[0]["image"]).dataobj)

    assert not np.array_equal(first_image(0), first_image(1))


def test_data_set_that_was_given(phantoms, tmp_path):
    folder = tmp_path / "data set"
    for name in ("a.nii", "a_label.nii"):
        folder.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.eye(4)), folder / name)
    case = {"image": str(folder / "a.nii"), "label": str(folder / "a_label.nii")}
    write_datalist(folder, {"training": [case]})
    assert datalist(str(folder), "training", **phantoms) == [case]
    assert not Path(phantoms["phantom_dir"]).exists()


def test_wrong_data_set_is_an_error_and_no_reason_for_phantoms(phantoms, tmp_path):
    with pytest.raises(UserError, match="dataset_dir: no such folder"):
        datalist(str(tmp_path / "absent"), "training", **phantoms)
    assert not Path(phantoms["phantom_dir"]).exists()


def test_cases_to_segment(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("b.nii.gz", "a.nrrd"):
        (folder / name).write_bytes(b"")
    arguments = {"phantom_dir": str(tmp_path / "phantom"), "phantom_shape": SHAPE}
    assert inference_list(str(folder), **arguments) == [{"image": str(folder / n)} for n in ("a.nrrd", "b.nii.gz")]
    with pytest.raises(UserError, match="no such file or folder"):
        inference_list(str(tmp_path / "absent"), **arguments)
    assert not (tmp_path / "phantom").exists()
    (case,) = inference_list(None, **arguments)
    assert set(case) == {"image"}  # no label: nothing to compare with where inference is concerned
    assert nib.load(case["image"]).shape == SHAPE
