# SPDX-License-Identifier: Apache-2.0
"""Tests of putting a folder in the place of another, and of what a kill leaves behind."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.volseg.registry.tiny_registry import tree
from volseg.errors import UserError
from volseg.storage import files as module
from volseg.storage.files import complete_replacement, replacement

KEEP = ("data", "output")
OLD = {"a": b"old", "data/mine": b"mine"}


def write(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "bundle"


@pytest.fixture
def staging(tmp_path):
    return tmp_path / ".bundle.0123456789ab.staging"


@pytest.fixture(params=["exchange", "two renames"])
def _both_ways(request, monkeypatch):
    if request.param == "two renames":
        monkeypatch.setattr(module, "_exchange", lambda one, other: False)


@pytest.mark.usefixtures("_both_ways")
def test_new_folder_is_seen_at_the_end_only(tmp_path, target):
    with replacement(target) as new:
        write(new, {"a": b"new"})
        assert not target.exists()
    assert tree(tmp_path) == {"bundle/a": b"new"}


@pytest.mark.usefixtures("_both_ways")
def test_old_folder_is_replaced_and_what_is_kept_moves(tmp_path, target):
    write(target, OLD | {"output/x/y": b"result", "b": b"old"})
    with replacement(target, KEEP) as new:
        write(new, {"a": b"new"})
        assert (target / "a").read_bytes() == b"old"
    assert tree(tmp_path) == {"bundle/a": b"new", "bundle/data/mine": b"mine", "bundle/output/x/y": b"result"}


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_error_leaves_the_old_folder(tmp_path, target, error):
    write(target, OLD)
    with pytest.raises(error), replacement(target, KEEP) as new:
        write(new, {"a": b"half"})
        raise error
    assert tree(target) == OLD
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.usefixtures("_both_ways")
def test_link_is_replaced_and_what_it_points_to_stays(tmp_path, target):
    write(tmp_path / "elsewhere", OLD)
    target.symlink_to(tmp_path / "elsewhere")
    with replacement(target, KEEP) as new:
        write(new, {"a": b"new"})
    assert not target.is_symlink()
    assert tree(target) == {"a": b"new"}
    assert tree(tmp_path / "elsewhere") == OLD


@pytest.mark.usefixtures("_both_ways")
def test_link_that_leads_nowhere_and_is_kept_moves(tmp_path, target):
    write(target, {"a": b"old"})
    (target / "data").symlink_to("/not/mounted/today")
    with replacement(target, KEEP) as new:
        write(new, {"a": b"new"})
    assert (target / "data").readlink() == Path("/not/mounted/today")


def test_killed_while_the_new_folder_was_written(tmp_path, target, staging):
    write(target, OLD)
    write(staging / "new", {"a": b"half"})
    complete_replacement(target, KEEP)
    assert tree(tmp_path) == {"bundle/a": b"old", "bundle/data/mine": b"mine"}


def test_killed_while_the_first_folder_was_written(tmp_path, target, staging):
    write(staging / "new", {"a": b"half"})
    complete_replacement(target, KEEP)
    assert list(tmp_path.iterdir()) == []


def test_killed_after_the_exchange(tmp_path, target, staging):
    write(target, {"a": b"new"})
    write(staging / "new", OLD)
    complete_replacement(target, KEEP)
    assert tree(tmp_path) == {"bundle/a": b"new", "bundle/data/mine": b"mine"}


def test_killed_after_the_exchange_and_then_the_new_folder_removed_by_hand(tmp_path, target, staging):
    write(staging / "new", OLD)
    complete_replacement(target, KEEP)
    assert tree(tmp_path) == {"bundle/a": b"old", "bundle/data/mine": b"mine"}


def test_killed_between_the_two_renames(tmp_path, target, staging):
    write(staging / "new", {"a": b"new"})
    write(staging / "old", OLD)
    complete_replacement(target, KEEP)
    assert tree(tmp_path) == {"bundle/a": b"old", "bundle/data/mine": b"mine"}


def test_killed_after_the_two_renames(tmp_path, target, staging):
    write(target, {"a": b"new"})
    write(staging / "old", OLD)
    complete_replacement(target, KEEP)
    assert tree(tmp_path) == {"bundle/a": b"new", "bundle/data/mine": b"mine"}


def test_killed_while_what_is_kept_moved(tmp_path, target, staging):
    write(target, {"a": b"new", "data/mine": b"mine"})
    write(staging / "new", {"a": b"old", "output/x": b"result"})
    complete_replacement(target, KEEP)
    assert tree(tmp_path) == {"bundle/a": b"new", "bundle/data/mine": b"mine", "bundle/output/x": b"result"}


def test_killed_while_the_old_folder_was_removed(tmp_path, target, staging):
    write(target, {"a": b"new", "data/mine": b"mine"})
    write(staging / "new", {"b": b"old"})
    complete_replacement(target, KEEP)
    assert tree(tmp_path) == {"bundle/a": b"new", "bundle/data/mine": b"mine"}


@pytest.mark.parametrize("left", ["old", "new"])
def test_nothing_that_is_kept_is_ever_lost(tmp_path, target, staging, left):
    write(target, {"a": b"new", "data/mine": b"newer"})
    write(staging / left, OLD)
    (staging / ".lock").touch()
    before = tree(tmp_path)
    with pytest.raises(UserError, match=f"staging/{left}/data: is left from an interrupted replacement"):
        complete_replacement(target, KEEP)
    assert tree(tmp_path) == before


def test_replacement_starts_by_completing_the_one_before(target, staging):
    write(staging / "new", {"a": b"new"})
    write(staging / "old", OLD)
    with replacement(target, KEEP) as new:
        assert tree(target) == OLD
        assert list(new.iterdir()) == []


def test_system_that_refuses_to_rename(tmp_path, target, monkeypatch):
    """The old folder stays in its place, or comes back."""
    write(target, OLD)
    monkeypatch.setattr(module, "_exchange", lambda one, other: False)
    rename = type(target).rename

    def refuse(self, to):
        if self.name == "new":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(type(target), "rename", refuse)
    with pytest.raises(OSError, match=r"Input/output"), replacement(target, KEEP) as new:
        write(new, {"a": b"new"})
    assert tree(tmp_path) == {f"bundle/{name}": data for name, data in OLD.items()}
