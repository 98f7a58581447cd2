# SPDX-License-Identifier: Apache-2.0
"""Volumes are found in folders of patients, studies and series; scouts, labels and results are no inputs."""

from __future__ import annotations

import json
import logging
import os

import pytest

from tests.volseg.data.test_dicom_series import write_slice
from volseg.data.find_volumes import find_volumes
from volseg.data.volume_reader import load_volume, volume_name
from volseg.errors import UserError


def write_series(folder, slices=5, **tags):
    folder.mkdir(parents=True)
    for number in range(slices):
        write_slice(folder / f"IM{number}", (0, 0, 2.5 * number), **tags)
    return folder


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return list(paths)


def test_volume_files_of_a_folder(tmp_path):
    expected = touch(*(tmp_path / name for name in ("a.nrrd", "b.nii.gz", "c.MHA", "d.nhdr", "e.hdr")))
    touch(*(tmp_path / name for name in ("b.json", ".hidden.nii.gz", "c.raw", "e.img", ".git/a.nii")))
    (tmp_path / "folder.nii").mkdir()
    assert find_volumes(tmp_path) == expected
    assert find_volumes(str(tmp_path / "b.json")) == [tmp_path / "b.json"]  # a file given by name is taken at its word


def test_files_of_patients(tmp_path):
    expected = touch(
        tmp_path / "10000" / "1_t2w.mha", tmp_path / "PAT1" / "ct.nii.gz", tmp_path / "PAT2" / "a" / "b" / "ct.nii.gz"
    )
    assert find_volumes(tmp_path) == expected


def test_series_of_patients_and_studies(tmp_path):
    expected = [write_series(tmp_path / name) for name in ("1/2/3", "PAT/STUDY/SERIES_1", "PAT/STUDY/SERIES_2")]
    (tmp_path / "PAT" / "empty").mkdir()
    (tmp_path / "PAT" / "notes.txt").write_text("x")
    assert find_volumes(tmp_path) == expected
    assert find_volumes(expected[0]) == [expected[0]]
    assert [volume_name(path) for path in expected] == ["3", "SERIES_1", "SERIES_2"]


def test_parts_of_one_series_are_told(tmp_path, caplog):
    uids = {"1": "1.2", "2": "1.3", "3": "1.2"}
    parts = [write_series(tmp_path / name, SeriesInstanceUID=uid) for name, uid in uids.items()]
    assert find_volumes(tmp_path) == parts
    (said,) = caplog.messages
    assert said.startswith(f"{parts[2]}: slices of the series in {parts[0]}, taken as another volume;")


def test_a_directory_of_a_disc_is_no_series(tmp_path):
    series = write_series(tmp_path / "IMAGES" / "1")
    write_slice(tmp_path / "DICOMDIR", (0, 0, 0), Rows=None, Columns=None, PixelData=None)
    assert find_volumes(tmp_path) == [series]


def test_files_without_a_suffix_are_named(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    volume, other, _ = touch(tmp_path / "a.nii.gz", tmp_path / "b", tmp_path / "notes.txt")
    assert find_volumes(tmp_path) == [volume]
    assert caplog.messages == [f"{other}: left out, it is not DICOM and no suffix says another format"]


def test_a_scout_beside_a_series_is_left_out_and_named(tmp_path, caplog):
    volume = write_series(tmp_path / "STUDY" / "2")
    scout = write_series(tmp_path / "STUDY" / "1", slices=1, ImagePositionPatient=None)
    multi_frame = write_series(tmp_path / "STUDY" / "3", slices=1, NumberOfFrames=40)
    assert find_volumes(tmp_path) == [volume, multi_frame]
    assert f"{scout}: left out, a scout of 1 slice(s)" in caplog.text
    assert find_volumes(scout) == [scout]


def test_results_and_labels_are_no_inputs(tmp_path):
    (image,) = touch(tmp_path / "images" / "a.nii.gz")
    touch(tmp_path / "labels" / "a.nii.gz", tmp_path / "out" / "a_lobes.nii.gz", tmp_path / "out" / "a.seg.nrrd")
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [{"image": "x", "label": "labels/a.nii.gz"}]}))
    entry = {"segmentation": "a_lobes.nii.gz", "seg_nrrd": "a.seg.nrrd"}
    (tmp_path / "out" / "statistics.json").write_text(json.dumps([entry, {"error": "x"}]))
    (tmp_path / "images" / "statistics.json").write_text("somebody else's")
    assert find_volumes(tmp_path) == [image]


def test_links_are_followed_once(tmp_path):
    (image,) = touch(tmp_path / "store" / "a.nii.gz")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(image.parent)
    (tmp_path / "in" / "self").symlink_to(tmp_path / "in")
    assert find_volumes(tmp_path / "in") == [tmp_path / "in" / "link" / "a.nii.gz"]


def test_what_cannot_be_read_is_no_less_an_input(tmp_path):
    """Else a link of which the target was moved would leave a batch in silence."""
    (tmp_path / "b.nii").symlink_to("moved.nii")
    os.mkfifo(tmp_path / "c.nii.gz")
    os.mkfifo(tmp_path / "d")
    assert find_volumes(tmp_path) == [tmp_path / "b.nii", tmp_path / "c.nii.gz"]
    with pytest.raises(UserError, match=r"b\.nii: no such file or folder, a link to moved\.nii"):
        load_volume(tmp_path / "b.nii")


def test_nothing_to_find(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        find_volumes(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"no volume found in a folder with 1 files; none is \.nii\.gz"):
        find_volumes(tmp_path)
    os.mkfifo(tmp_path / "pipe.nii")
    with pytest.raises(UserError, match="pipe"):
        find_volumes(tmp_path / "pipe.nii")


def test_label_maps_named_after_an_image_are_left_out(tmp_path, caplog):
    images = touch(tmp_path / "Case00.mhd", tmp_path / "Case00.nrrd", tmp_path / "b" / "x_seg.nii.gz")
    labels = touch(tmp_path / "Case00_segmentation.mhd", tmp_path / "Case00_mask.nii.gz")
    assert find_volumes(tmp_path) == images
    assert caplog.messages == [f"{path}: left out, by its name a label map of Case00" for path in sorted(labels)]
    assert find_volumes(labels[0]) == labels[:1]
