# SPDX-License-Identifier: Apache-2.0
"""Tests of where volumes come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from resunet_mitoem.data import LABEL_NAME, check_training_cases, datalist, find_em_volumes, inference_list

from volseg.data.datalist import write_datalist
from volseg.data.ome_zarr import create_ome_zarr
from volseg.data.open_volume import open_chunked_volume
from volseg.errors import UserError

CASES = {"training": 1, "validation": 0, "test": 1}
SHAPE = (4, 64, 72)
TISSUE = np.random.default_rng(0).integers(0, 250, (5, 20, 24), dtype=np.uint8)
INSTANCES = np.zeros(TISSUE.shape, np.uint8)
INSTANCES[:, 2:6, 3:9], INSTANCES[1:, 12:15, 3:9] = 1, 2


@pytest.fixture
def phantoms(tmp_path) -> dict:
    return {"phantom_dir": str(tmp_path / "phantom"), "phantom_cases": CASES, "phantom_shape": SHAPE}


def save_zarr(path: Path) -> Path:
    with create_ome_zarr(path, (2, 3, 5), np.uint8, (30, 8, 4)) as voxels:
        voxels[:] = 1
    return path


def save_sections(folder: Path) -> Path:
    folder.mkdir()
    for z in range(2):
        Image.fromarray(np.zeros((3, 5), np.uint8)).save(folder / f"im{z}.png")
    return folder


def test_phantoms_are_made_at_first_use_and_kept(phantoms):
    (training,), (test,) = (datalist(None, split, **phantoms) for split in ("training", "test"))
    assert training["label"] == f"{training['image']}/labels/{LABEL_NAME}"
    for case in (training, test):
        image, label = (open_chunked_volume(case[kind]) for kind in ("image", "label"))
        assert image.shape == label.shape == SHAPE
        assert image.voxel_size_nm == label.voxel_size_nm == (30, 32, 32)
        assert image.dtype == np.uint8 and label.dtype.kind == "u"
    assert not np.array_equal(*(open_chunked_volume(case["image"])[:] for case in (training, test)))
    written = Path(training["image"], "zarr.json").stat().st_mtime_ns
    assert datalist("", "training", **{**phantoms, "phantom_shape": list(SHAPE)}) == [training]
    assert Path(training["image"], "zarr.json").stat().st_mtime_ns == written


def test_data_set_that_was_given(phantoms, tmp_path):
    folder = tmp_path / "data set"
    folder.mkdir()
    case = {"image": str(save_zarr(folder / "a.ome.zarr")), "label": str(save_zarr(folder / "b.ome.zarr"))}
    write_datalist(folder, {"training": [case]})
    assert datalist(str(folder), "training", **phantoms) == [case]
    assert not Path(phantoms["phantom_dir"]).exists()


def test_wrong_data_set_is_an_error_and_no_reason_for_phantoms(phantoms, tmp_path):
    with pytest.raises(UserError, match="dataset_dir: no such folder"):
        datalist(str(tmp_path / "absent"), "training", **phantoms)
    assert not Path(phantoms["phantom_dir"]).exists()


@pytest.mark.parametrize("name", ["a.tif", "a.h5", "a.nii.gz", "a.json"])
def test_a_file(tmp_path, name):
    (tmp_path / name).touch()
    assert find_em_volumes(str(tmp_path / name)) == [tmp_path / name]


def test_a_data_set_in_a_file(tmp_path):
    (tmp_path / "a.h5").touch()
    assert find_em_volumes(f"{tmp_path}/a.h5:volumes/raw") == [tmp_path / "a.h5:volumes/raw"]


def test_a_folder_of_sections_is_one_volume(tmp_path):
    folder = save_sections(tmp_path / "sections")
    assert find_em_volumes(str(folder)) == [folder]
    assert find_em_volumes(f"{folder}/") == [folder]


@pytest.mark.parametrize("metadata", ["zarr.json", ".zarray", ".zgroup"])
def test_a_zarr_folder_is_one_volume(tmp_path, metadata):
    folder = tmp_path / "a.zarr"
    (folder / "inner.zarr").mkdir(parents=True)
    (folder / metadata).touch()
    assert find_em_volumes(str(folder)) == [folder]


def test_sections_are_not_passed_over_for_their_labels(tmp_path):
    folder = save_sections(tmp_path / "sections")
    (folder / "labels.h5").touch()
    with pytest.raises(UserError, match=r"sections: must hold sections or volumes, got \d+ sections .* labels\.h5"):
        find_em_volumes(str(folder))


def test_a_folder_of_volumes(tmp_path):
    names = ["B.NII.GZ", "a.h5", "b.nii", "c.ome.zarr", "d.zarr", "e.hdf5"]
    for name in [*names, ".hidden.h5", "._a.h5", "notes.txt", "section.png"]:
        (tmp_path / name).touch()
    assert find_em_volumes(str(tmp_path)) == [tmp_path / name for name in names]


@pytest.mark.parametrize("name", ["absent", "absent.h5:main", "a.h5/main"])
def test_nothing_there(tmp_path, name):
    (tmp_path / "a.h5").touch()
    with pytest.raises(UserError, match=f"{name}: no such file or folder. --input takes"):
        find_em_volumes(str(tmp_path / name))


def test_cases_to_segment(tmp_path):
    arguments = {"phantom_dir": str(tmp_path / "phantom"), "phantom_shape": SHAPE}
    folder = save_sections(tmp_path / "sections")
    assert inference_list(str(folder), **arguments) == [{"image": str(folder)}]
    with pytest.raises(UserError, match="no such file or folder"):
        inference_list(str(tmp_path / "absent"), **arguments)
    assert not (tmp_path / "phantom").exists()
    (case,) = inference_list("", **arguments)
    assert set(case) == {"image"}  # no label: nothing to compare with where inference is concerned
    assert open_chunked_volume(case["image"]).shape == SHAPE


@pytest.mark.parametrize(
    ("image", "label", "words"),
    [
        (TISSUE, INSTANCES, []),
        (TISSUE, (INSTANCES > 0).astype(np.uint8) * 255, ["l.tif: a semantic mask"]),
        (TISSUE, INSTANCES * 0, ["l.tif: no voxel is labelled"]),
        (TISSUE, TISSUE | 1, ["l.tif: 100% of the voxels are labelled"]),
        (TISSUE * 0 + 7, INSTANCES, ["i.tif: no tissue"]),
    ],
)
def test_what_no_network_can_learn_from_is_told_before_a_training(image, label, words, tmp_path, caplog):
    case = {"image": str(tmp_path / "i.tif"), "label": str(tmp_path / "l.tif")}
    for path, voxels in zip(case.values(), (image, label), strict=True):
        tifffile.imwrite(path, voxels)
    check_training_cases([case])
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == len(words) and all(word in text for word, text in zip(words, said, strict=True)), said


def test_training_cases_that_cannot_be(tmp_path):
    with pytest.raises(UserError, match="nothing to train on"):
        check_training_cases([])
    case = {"image": str(tmp_path / "i.tif"), "label": str(tmp_path / "l.tif")}
    tifffile.imwrite(case["image"], TISSUE)
    for label, words in ((INSTANCES[:, 1:], "one shape"), (-INSTANCES.astype(np.int16), r"ids must be integers >= 0")):
        tifffile.imwrite(case["label"], label)
        with pytest.raises(UserError, match=words):
            check_training_cases([case])
