# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from volseg.data.datalist import load_datalist
from volseg.data.image_file import VoxelGrid
from volseg.data.prepare import (
    Case,
    Source,
    check_folders,
    convert_labels,
    is_up_to_date,
    labelled_entries,
    write_nifti,
    write_prepared,
)
from volseg.errors import UserError

SOURCE = Source(key="liver", name="Livers", layout="*.nii", licence="CC0", citation="Doe 2020")
GRID = VoxelGrid((4, 3, 2), np.diag([0.7, -0.8, 2.5, 1]))


def make_cases(root: Path) -> list[Case]:
    cases = [Case(name, root / f"{name}.nii", (root / f"{name}_label.nii",)) for name in "abc"]
    for case in cases:
        case.image.touch()
        case.labels[0].touch()
    return cases


def convert(cases: list[Case], output: Path, skipped: Counter[str], seen: list[str]) -> list[Case]:
    """The label of case b is empty."""

    def make_label(case: Case) -> tuple[np.ndarray, VoxelGrid]:
        seen.append(case.case_id)
        return np.full(GRID.shape, case.case_id != "b", np.uint8), GRID

    def reject(label: np.ndarray) -> str | None:
        return None if label.any() else "empty"

    return convert_labels(cases, make_label, reject, output, skipped, expected="livers")


def test_labels_are_made_once_and_again_when_their_source_changes(tmp_path: Path):
    cases, output = make_cases(tmp_path), tmp_path / "out"
    skipped: Counter[str] = Counter()
    seen: list[str] = []
    assert convert(cases, output, skipped, seen) == [cases[0], cases[2]]
    assert skipped == {"empty": 1} and seen == ["a", "b", "c"]
    label = nib.load(output / "labels" / "c.nii.gz")
    assert label.get_data_dtype() == np.uint8 and label.header.get_xyzt_units()[0] == "mm"
    np.testing.assert_allclose(label.affine, GRID.affine, atol=1e-6)
    future = (output / "labels" / "c.nii.gz").stat().st_mtime + 10
    os.utime(cases[2].labels[0], (future, future))
    convert(cases, output, skipped, seen)
    assert seen[3:] == ["b", "c"]
    with pytest.raises(UserError, match="no case is left of 1 cases, skipped: 3 empty; give livers"):
        convert(cases[1:2], output, skipped, seen)


def test_up_to_date_counts_every_source(tmp_path: Path):
    old, new, target = (tmp_path / name for name in ("old", "new", "target"))
    for seconds, file in ((10, old), (30, new), (20, target)):
        file.touch()
        os.utime(file, (seconds, seconds))
    assert is_up_to_date(target, [old]) and not is_up_to_date(target, [old, new])
    assert not is_up_to_date(tmp_path / "absent", [old])


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    image = nib.Nifti1Image(np.zeros(GRID.shape, np.uint8), GRID.affine)

    def full_disk(image: nib.Nifti1Image, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib, "save", full_disk)
    with pytest.raises(UserError, match=r"a\.nii\.gz: cannot be written: No space left on device;"):
        write_nifti(tmp_path / "labels" / "a.nii.gz", image)
    assert list((tmp_path / "labels").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_nifti(tmp_path / "file" / "a.nii.gz", image)


def test_a_dataset_folder_has_one_run_at_a_time(tmp_path: Path, claimed_elsewhere):
    with claimed_elsewhere(tmp_path / "out"), pytest.raises(UserError, match="another run writes its results there"):
        check_folders(SOURCE, tmp_path, tmp_path / "out")
    assert check_folders(SOURCE, tmp_path, tmp_path / "out") == (tmp_path, tmp_path / "out")


def test_data_list_and_closing_line(tmp_path: Path, capsys: pytest.CaptureFixture):
    cases, output = make_cases(tmp_path), tmp_path / "out"
    kept = convert(cases, output, Counter(), [])
    splits = {"training": ["c"], "validation": [], "test": ["a"]}
    capsys.readouterr()
    path = write_prepared(
        SOURCE,
        labelled_entries(kept, splits),
        output,
        Counter(empty=1, other=0),
        split_rule="drawn",
        labels={1: "liver"},
    )
    assert capsys.readouterr().out == (
        f"{path}: 2 cases (training 1, validation 0, test 1; split: drawn); skipped: 1 empty; licence: CC0; "
        "cite: Doe 2020\n"
    )
    assert load_datalist(output, "test") == [
        {"image": str(tmp_path / "a.nii"), "label": str(output / "labels" / "a.nii.gz")}
    ]
    assert check_folders(SOURCE, tmp_path, output) == (tmp_path, output)
    other = Source(key="spleen", name="", layout="", licence="", citation="")
    with pytest.raises(UserError, match="would be overwritten"):
        check_folders(other, tmp_path, output)
