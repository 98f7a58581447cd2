# SPDX-License-Identifier: Apache-2.0
"""What results are called, and which of them are done."""

from __future__ import annotations

import json
import os

import pytest

from volseg.data.case_statistics import CaseStatistics, file_state
from volseg.errors import UserError

ENDING = "_lobes.nii.gz"


def test_names_tell_the_folders_below_the_input(tmp_path):
    statistics = CaseStatistics(tmp_path / "out", ENDING, tmp_path / "in")
    names = []
    for image in ("in/ct.nii.gz", "in/A/ct.nii.gz", "in/A/S/2", "in/ct.nrrd", "other/ct.nii.gz", "more/ct.nrrd"):
        path = str(tmp_path / image)
        names.append(statistics.result_name(path).removesuffix(ENDING))
        statistics.add(path, {"segmentation": names[-1] + ENDING})
        assert statistics.result_name(path) == names[-1] + ENDING  # the next time, too
    assert names == ["ct", "A_ct", "A_S_2", "ct.nrrd", "ct.nii.gz", "ct_2"]


def test_long_names_leave_room_for_endings(tmp_path):
    statistics = CaseStatistics(tmp_path, ENDING)
    names = []
    for last in "ab":
        path = f"{'ü' * 120}{last}.nii.gz"
        names.append(statistics.result_name(path))
        statistics.add(path, {"segmentation": names[-1]})
        (tmp_path / f".{names[-1]}.0123456789abcdef").touch()  # what is written first
    assert len(set(names)) == 2 and all(name.startswith("ü" * 85 + "_") and name.endswith(ENDING) for name in names)


def test_results_are_done_if_image_settings_and_file_are_the_same(tmp_path):
    CaseStatistics(tmp_path, ENDING).add("a", {"segmentation": "a_lobes.nii.gz", "fingerprint": "1"})
    statistics = CaseStatistics(tmp_path, ENDING)
    statistics.read()
    assert not statistics.is_finished("a", "1")  # no file
    (tmp_path / "a_lobes.nii.gz").touch()
    assert statistics.is_finished("a", "1")
    assert not statistics.is_finished("a", "2")
    assert not statistics.is_finished("b", "1")
    statistics.note_failure("a", "damaged")
    assert not statistics.is_finished("a", "1")
    kept = {"image": "a", "segmentation": "a_lobes.nii.gz", "fingerprint": "1"}  # its file is still there
    assert json.loads((tmp_path / "statistics.json").read_text()) == [{**kept, "error": "damaged"}]
    (tmp_path / "a_lobes.nii.gz").unlink()
    statistics.note_failure("a", "damaged")
    assert json.loads((tmp_path / "statistics.json").read_text()) == [{"image": "a", "error": "damaged"}]


def test_a_result_is_done_if_all_of_its_files_are_there(tmp_path):
    statistics = CaseStatistics(tmp_path, ENDING)
    statistics.add("a", {"segmentation": "a_lobes.nii.gz", "dicom_seg": "a_lobes.dcm", "fingerprint": "1"})
    (tmp_path / "a_lobes.nii.gz").touch()
    assert not statistics.is_finished("a", "1")
    (tmp_path / "a_lobes.dcm").touch()
    assert statistics.is_finished("a", "1")


def test_a_file_of_that_name_that_is_somebody_elses(tmp_path):
    for content in ("no list", "{}x", "[1]", '[{"a": 1}]', '[{"image": "a", "segmentation": ["b"]}]', "[" * 100_000):
        (tmp_path / "statistics.json").write_text(content)
        with pytest.raises(UserError, match=r"statistics\.json must list the results .*; choose another folder"):
            CaseStatistics(tmp_path, ENDING).read()


def test_state_of_files(tmp_path):
    header, voxels, series = tmp_path / "a.mhd", tmp_path / "a.raw", tmp_path / "series"
    series.mkdir()
    for path in (header, voxels, series / "0.dcm"):
        path.touch()
    states = [file_state(str(header)), file_state(str(series))]
    os.utime(voxels, ns=(1, 1))
    (series / "0.dcm").write_text("x")
    assert file_state(str(header)) != states[0] and file_state(str(series)) != states[1]
