# SPDX-License-Identifier: Apache-2.0
"""Tests of writing files whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from volseg.errors import UserError
from volseg.storage.files import atomic_path, check_folder, write_json


def test_file_appears_at_the_end_with_its_folders(tmp_path):
    path = tmp_path / "a" / "b" / "map.nii.gz"
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffixes == [".nii", ".gz"] or temporary.name.endswith(".nii.gz")
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["map.nii.gz"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt()])
def test_interrupted_write_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "map.nii.gz"
    path.write_text("old")
    with pytest.raises(type(error)), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["map.nii.gz"]


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"file.a\.json: cannot be written\. Received: .+\. Check space and rights"):
        write_json(tmp_path / "file" / "a.json", {})


def test_full_disk(tmp_path):
    with pytest.raises(UserError, match="Received: No space left on device"), atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_json(tmp_path):
    path = tmp_path / "a.json"
    write_json(str(path), {"a": [1, None], "b": "ä"})
    text = Path(path).read_text(encoding="utf-8")
    assert json.loads(text) == {"a": [1, None], "b": "ä"}
    assert text.startswith('{\n    "a"') and text.endswith("}\n")


def test_folder_for_results(tmp_path):
    check_folder(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "a").write_text("no folder")
    for folder in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(UserError, match=rf"^{folder}: no folder for results\. Received: a file, {tmp_path}/a\. "):
            check_folder(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_rights(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=f"no right to write to {tmp_path}"):
        check_folder(tmp_path / "a")
