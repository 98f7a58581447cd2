# SPDX-License-Identifier: Apache-2.0
"""Tests of the manifest of a packed bundle."""

from __future__ import annotations

import json
import os

import pytest

from tests.volseg.registry.tiny_registry import as_bytes, bundle_files, manifest_of
from volseg.errors import UserError
from volseg.registry.manifest import MANIFEST, Change, Manifest


@pytest.fixture
def installed(tmp_path):
    """A bundle as it was released."""
    folder = tmp_path / "tiny_bundle"
    for name, data in bundle_files(payload=100).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder / MANIFEST).write_bytes(as_bytes(manifest_of(bundle_files(payload=100))))
    return folder


def changes(folder):
    return Manifest.read(folder).changes(folder)


def test_manifest_is_read_as_it_is_written():
    manifest = manifest_of(bundle_files(payload=100))
    assert Manifest.parse(as_bytes(manifest), "here") == manifest


def test_bundle_as_released_has_no_changes(installed):
    assert changes(installed) == []


def test_changes_are_named(installed):
    (installed / "LICENSE").write_bytes(b"Apache-2.1\n")  # as long as before
    (installed / "docs/README.md").write_bytes(b"longer than before, by far")
    (installed / "models/model.pt").unlink()
    (installed / "configs/more.json").write_bytes(b"{}")
    assert changes(installed) == [
        Change("LICENSE", "changed"),
        Change("configs/more.json", "added"),
        Change("docs/README.md", "changed"),
        Change("models/model.pt", "missing"),
    ]


def test_link_to_the_same_content_is_a_change(installed, tmp_path):
    (installed / "LICENSE").rename(tmp_path / "LICENSE")
    (installed / "LICENSE").symlink_to(tmp_path / "LICENSE")
    (installed / "configs").rename(tmp_path / "configs")
    (installed / "configs").symlink_to(tmp_path / "configs")
    assert changes(installed) == [
        Change("LICENSE", "changed"),
        Change("configs", "added"),
        Change("configs/metadata.json", "missing"),
    ]


def test_pipe_in_the_place_of_an_empty_file_is_not_waited_for(installed):
    (installed / "volseg/__init__.py").unlink()
    os.mkfifo(installed / "volseg/__init__.py")
    assert changes(installed) == [Change("volseg/__init__.py", "changed")]


def test_what_running_and_sharing_adds_is_not_looked_at(installed):
    for name in (
        "data/a.nii.gz",
        "output/model.pt",
        "volseg/__pycache__/a.pyc",
        "README.md",
        ".gitattributes",
        ".cache/huggingface/x",
    ):
        (installed / name).parent.mkdir(parents=True, exist_ok=True)
        (installed / name).write_bytes(b"x")
    assert changes(installed) == []
    (installed / "configs/data").mkdir()
    (installed / "configs/data/a").write_bytes(b"x")
    assert changes(installed) == [Change("configs/data/a", "added")]


@pytest.mark.parametrize(
    "path",
    [
        "../a",
        "a/../../b",
        "/etc/passwd",
        "a//b",
        "a/",
        "",
        ".",
        "./a",
        "a/.",
        "a\\b",
        "C:/a",
        "C:a",
        "a:stream",
        "a\n",
        "a\x00b",
        "a\x1b[2J",
        "a*",
        "a b",
        "ä",
        "a.",
        "nul",
        "NUL.txt",
        "configs/com1.json",
        "data/a",
        "output/a",
        "manifest.json",
        ".cache/a",
        "volseg/__pycache__/a.pyc",
        ".git/config",
        ".GIT/config",
        ".gitattributes",
        "volseg/.git/hooks/a",
        "volseg/.gitmodules",
    ],
)
def test_path_that_no_release_has(path):
    content = manifest_of({"a": b""}).as_json()
    content["files"] = {path: content["files"]["a"]}
    with pytest.raises(UserError, match=r"^here: not a bundle manifest: the path"):
        Manifest.parse(json.dumps(content), "here")


@pytest.mark.parametrize("paths", [("a", "A"), ("a/b", "A/B"), ("a", "a/b"), ("A", "a/b/c")])
def test_paths_that_would_be_one(paths):
    with pytest.raises(UserError, match=r"differ in case only, or are a file and a folder"):
        Manifest.parse(as_bytes(manifest_of(dict.fromkeys(paths, b""))), "here")


@pytest.mark.parametrize("name", ["name", "version", "revision", "licenses", "required_packages", "files"])
def test_missing_item_is_named(name):
    content = manifest_of({"a": b""}).as_json()
    del content[name]
    with pytest.raises(UserError, match=f"^here: not a bundle manifest: '{name}' is missing"):
        Manifest.parse(json.dumps(content), "here")


@pytest.mark.parametrize(
    "file",
    [{}, {"size": 0}, {"sha256": "0" * 64}, {"sha256": "0" * 63, "size": 0}, {"sha256": "0" * 64, "size": -1}]
    + [{"sha256": "0" * 64, "size": size} for size in (1.5, True, "1", None)]
    + [{"sha256": 1, "size": 1}, [], None, "x"],
)
def test_file_without_facts(file):
    content = manifest_of({"a": b""}).as_json() | {"files": {"a": file}}
    with pytest.raises(UserError, match=r"^here: not a bundle manifest"):
        Manifest.parse(json.dumps(content), "here")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "1", "null", "[" * 100_000, b"\xff", '{"name": "A", "version": "0.1.0"}']
)
def test_text_that_is_no_manifest(text):
    with pytest.raises(UserError):
        Manifest.parse(text, "here")


def test_folder_without_a_manifest(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read: No such file or directory; give the folder of a downl"):
        Manifest.read(tmp_path)
