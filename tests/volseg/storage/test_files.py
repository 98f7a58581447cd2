# SPDX-License-Identifier: Apache-2.0
"""Tests of writing files whole or not at all."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from volseg.errors import UserError
from volseg.storage.files import (
    atomic_folder,
    atomic_path,
    check_folder,
    claim_folder,
    complete_replacement,
    remove_leftovers,
    write_json,
)


def test_file_appears_at_the_end_with_its_folders(tmp_path):
    path = tmp_path / "a" / "b" / "map.nii.gz"
    with atomic_path(path) as temporary:
        assert temporary.parent.parent == path.parent
        assert temporary.name == "map.nii.gz"
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
    with pytest.raises(UserError, match=r"file.a\.json: cannot be written: .+; check the free space and permissions$"):
        write_json(tmp_path / "file" / "a.json", {})


def test_full_disk(tmp_path):
    with (
        pytest.raises(UserError, match="a: cannot be written: No space left on device;"),
        atomic_path(tmp_path / "a") as temporary,
    ):
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
        with pytest.raises(UserError, match=rf"^{folder}: not a folder for results, because {tmp_path}/a is a file; "):
            check_folder(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_rights(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=f"no permission to write to {tmp_path}"):
        check_folder(tmp_path / "a")


def test_writers_of_one_file_and_of_one_folder_do_not_disturb_each_other(tmp_path):
    for atomic, name in ((atomic_path, "a.txt"), (partial(atomic_folder, is_replaceable=bool), "folder")):
        with atomic(tmp_path / name) as first, atomic(tmp_path / name) as second:
            assert first != second
            for number, path in enumerate((first, second)):
                (path / "a.txt" if path.is_dir() else path).write_text(str(number))
                remove_leftovers(tmp_path)
        last_to_end = tmp_path / name
        assert (last_to_end / "a.txt" if last_to_end.is_dir() else last_to_end).read_text() == "0"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "folder"]


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    script = "from volseg.storage.files import *; import os, sys, signal\n" + "\n".join(
        [
            "with atomic_path(sys.argv[1]) as file, atomic_folder(sys.argv[2]) as folder:",
            "    file.write_text('half'); (folder / 'a').write_text('half')",
            "    print(flush=True); sys.stdin.readline(); os.kill(os.getpid(), signal.SIGKILL)",
        ]
    )
    file, folder = tmp_path / "below" / "a.txt", tmp_path / "folder"
    command = [sys.executable, "-c", script, str(file), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"\n"
        for is_alive in (True, False):
            remove_leftovers(tmp_path)
            complete_replacement(folder)
            texts = [path.read_text() for path in tmp_path.rglob("a*") if path.is_file()]
            assert texts == (["half", "half"] if is_alive else [])
            process.communicate(b"die\n") if is_alive else None
    assert process.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.rglob("*")] == ["below"]


def test_leftovers_of_other_names_stay(tmp_path):
    other = tmp_path / ".a.ome.zarr.0123456789ab.staging" / "old"
    other.mkdir(parents=True)
    complete_replacement(tmp_path / "a")
    assert other.is_dir()
    complete_replacement(tmp_path / "a.ome.zarr")
    assert [path.name for path in tmp_path.iterdir()] == ["a.ome.zarr"]


def test_what_may_not_be_replaced_stays_also_when_it_appears_meanwhile(tmp_path):
    path = tmp_path / "folder"
    with pytest.raises(UserError, match=r"folder: exists and will not be replaced"), atomic_folder(path) as folder:
        (folder / "a").write_text("ours")
        path.mkdir()
        (path / "a").write_text("theirs")
    assert (path / "a").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_folder_has_one_run_at_a_time(tmp_path, monkeypatch, claimed_elsewhere):
    out = tmp_path / "out"
    with claimed_elsewhere(out):
        for name in ("out", "x/../out"):
            with pytest.raises(UserError, match="another run writes its results there; wait for it to end, or choose"):
                claim_folder(tmp_path / name)
        claim_folder(tmp_path / "other")
        monkeypatch.setenv("RANK", "1")
        claim_folder(out)  # of the same training by torchrun
        monkeypatch.delenv("RANK")
    claim_folder(out)
    assert list(tmp_path.iterdir()) == []
