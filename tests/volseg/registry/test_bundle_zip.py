# SPDX-License-Identifier: Apache-2.0
"""Tests of unpacking zips that were made to do harm."""

from __future__ import annotations

import json
import os
import stat
import struct
import zipfile

import pytest

from tests.volseg.registry.tiny_registry import (
    NAME,
    as_bytes,
    bundle_files,
    bundle_zip,
    manifest_of,
    tree,
    write_zip,
    zip_info,
)
from volseg.errors import UserError
from volseg.registry.bundle_zip import unpack
from volseg.registry.manifest import MANIFEST


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.zip"


@pytest.fixture
def refused(tmp_path, path):
    """Unpack, expect an error, and see that nothing was written beside the folder; the message."""

    def unpack_and_see():
        (tmp_path / "below").mkdir()
        target = tmp_path / "below" / "target"
        target.mkdir()
        with pytest.raises(UserError) as error:
            unpack(path, target)
        assert set(tree(tmp_path)) - {p for p in tree(tmp_path) if p.startswith("below/target/")} == {"a.zip"}
        message = str(error.value)
        assert message.startswith(str(path))
        assert "\n" not in message
        return message

    return unpack_and_see


def with_more(path, *more, files=None):
    """A bundle's zip with further entries, which its manifest may name."""
    files = bundle_files() if files is None else files
    entries = [(zip_info(f"{NAME}/{name}"), data) for name, data in files.items()]
    entries.append((zip_info(f"{NAME}/{MANIFEST}"), as_bytes(manifest_of(files))))
    return write_zip(path, [*entries, *more])


def test_bundle_is_unpacked_without_its_top_folder(tmp_path, path):
    files = bundle_files(payload=3_000_000)
    bundle_zip(path, files)
    (tmp_path / "target").mkdir()
    manifest = unpack(path, tmp_path / "target")
    assert manifest == manifest_of(files)
    assert tree(tmp_path / "target") == files | {MANIFEST: as_bytes(manifest)}
    mode = (tmp_path / "target" / "LICENSE").stat().st_mode
    assert not mode & (stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "../../evil",
        f"{NAME}/../../evil",
        "/tmp/evil",
        f"{NAME}/..\\..\\evil",
        "C:\\evil",
        "C:evil",
        "evil",
        f"{NAME}/evil",
        f"{NAME}2/evil",
        f"{NAME}/license",
        f"{NAME}/LICENSE/evil",
        f"{NAME}/data/evil",
    ],
)
def test_entry_that_the_manifest_does_not_name(path, refused, name):
    with_more(path, (zip_info(name), b"evil"))
    assert "will not be unpacked" in refused()


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "..\\evil", "C:/evil", "C:evil", "a/../../evil"])
def test_manifest_that_names_a_path_outside(path, refused, name):
    with_more(path, files=bundle_files() | {name: b"evil"})
    assert f"the path {name!r}" in refused()


@pytest.mark.parametrize("name", [".git/config", "configs/.git/hooks/post-checkout", ".gitattributes", ".GitModules"])
def test_files_of_git_which_name_commands(path, refused, name):
    with_more(path, files=bundle_files() | {name: b"evil"})
    assert f"the path {name!r} is reserved" in refused()


def test_names_that_differ_in_case_only(path, refused):
    with_more(path, files=bundle_files() | {"license": b"evil"})
    assert "differ in case only" in refused()


def test_file_and_folder_of_one_name(path, refused):
    with_more(path, files=bundle_files() | {"LICENSE/evil": b"evil"})
    assert "a file and a folder at once" in refused()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("data", [b"Apache-2.0\n", b"Apache-6.6\n"])
def test_entry_that_is_there_twice(path, refused, data):
    with_more(path, (zip_info(f"{NAME}/LICENSE"), data))
    assert "'tiny_bundle/LICENSE' differs between manifest and zip" in refused()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_manifests(path, refused):
    with_more(path, (zip_info(f"{NAME}/{MANIFEST}"), b"{}"))
    assert "no readable NAME/manifest.json" in refused()


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFDIR])
def test_link_or_device(path, refused, mode):
    files = bundle_files()
    entries = [(zip_info(f"{NAME}/{name}"), data) for name, data in files.items() if name != "LICENSE"]
    entries.append((zip_info(f"{NAME}/{MANIFEST}"), as_bytes(manifest_of(files))))
    write_zip(path, [*entries, (zip_info(f"{NAME}/LICENSE", mode | 0o777), files["LICENSE"])])
    assert "'tiny_bundle/LICENSE' is a link, a device or a folder" in refused()


def test_folder_entry(path, refused):
    with_more(path, (zip_info(f"{NAME}/configs/", 0), b""))
    assert "'tiny_bundle/configs/'" in refused()


def test_missing_file(path, refused):
    bundle_zip(path, {"LICENSE": b"x"}, manifest=as_bytes(manifest_of({"LICENSE": b"x", "a": b"y"})))
    assert "'tiny_bundle/a' differs between manifest and zip" in refused()


def test_wrong_size(path, refused):
    bundle_zip(path, {"LICENSE": b"xx"}, manifest=as_bytes(manifest_of({"LICENSE": b"x"})))
    assert "'tiny_bundle/LICENSE' differs between manifest" in refused()


def test_wrong_content_of_the_right_size(path, refused):
    bundle_zip(path, {"LICENSE": b"x"}, manifest=as_bytes(manifest_of({"LICENSE": b"y"})))
    assert "LICENSE differs from the manifest" in refused()


def test_bomb_of_zeros(path, refused):
    zeros = bytes(20_000_000)
    files = bundle_files() | {"zeros": zeros}
    with zipfile.ZipFile(bundle_zip(path), "w", zipfile.ZIP_DEFLATED) as bomb:
        for name, data in (files | {MANIFEST: as_bytes(manifest_of(files))}).items():
            bomb.writestr(f"{NAME}/{name}", data)
    assert path.stat().st_size < 100_000
    assert "is compressed or encrypted" in refused()


def test_bomb_of_entries_that_share_their_bytes(path, refused):
    """Ten names in the zip's directory for the bytes of one."""
    data = bytes(100_000)
    files = {f"zeros{i}": data for i in range(10)}
    entries = {f"{NAME}/{MANIFEST}": as_bytes(manifest_of(files)), f"{NAME}/zeros0": data}
    write_zip(path, entries)
    raw = path.read_bytes()
    start, count = struct.unpack("<I", raw[-6:-2])[0], len(entries)
    directory = raw[start:-22]
    last = directory[directory.rindex(b"PK\x01\x02") :]
    copies = b"".join(last.replace(b"zeros0", b"zeros%d" % i) for i in range(1, 10))
    size, count = len(directory) + len(copies), count + 9
    end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, count, count, size, start, 0)
    path.write_bytes(raw[:start] + directory + copies + end)
    with zipfile.ZipFile(path) as opened:
        assert sum(entry.file_size for entry in opened.infolist()) > 1_000_000
    assert "its entries are larger than the zip" in refused()


def test_encrypted_entry(path, refused):
    bundle_zip(path)
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(raw)
    assert "is compressed or encrypted" in refused()


def test_content_that_the_check_sum_of_the_zip_does_not_fit(path, refused):
    files = bundle_files(payload=1000)
    bundle_zip(path, files)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(files["models/model.pt"], bytes(1000)))
    assert "cannot be read as a zip: Bad CRC-32" in refused()


@pytest.mark.parametrize("kept", [0, 1, 30, 0.5, 0.9, -1])
def test_zip_that_was_cut_off(path, refused, kept):
    raw = bundle_zip(path).read_bytes()
    path.write_bytes(raw[: int(kept * len(raw)) if isinstance(kept, float) else kept])
    assert "cannot be read as a zip: " in refused()


def test_any_flipped_bit_is_refused_or_changes_nothing_that_is_unpacked(tmp_path, path):
    raw = bundle_zip(path, {"a": b"x"}).read_bytes()
    original = {"a": b"x", MANIFEST: as_bytes(manifest_of({"a": b"x"}))}
    refusals = 0
    for position in range(len(raw)):
        path.write_bytes(raw[:position] + bytes([raw[position] ^ 1 << position % 8]) + raw[position + 1 :])
        target = tmp_path / str(position)
        target.mkdir()
        try:
            unpack(path, target)
            assert tree(target) == original
        except UserError:
            refusals += 1
    assert refusals > len(raw) / 2


@pytest.mark.parametrize("position", ["local", "central"])
def test_name_that_is_no_text(path, refused, position):
    write_zip(path, {f"{NAME}/ä": b"x"})  # marked as UTF-8
    raw = path.read_bytes()
    name = "ä".encode()
    at = raw.index(name) if position == "local" else raw.rindex(name)
    path.write_bytes(raw[:at] + b"\xff\xff" + raw[at + 2 :])
    refused()


@pytest.mark.parametrize(
    "entries", [{}, {"a": b"x"}, {f"{NAME}/a": b"x"}, {MANIFEST: b"{}"}, {f"a/b/{MANIFEST}": b"{}"}]
)
def test_zip_without_a_manifest(path, refused, entries):
    write_zip(path, entries)
    assert "not a bundle: has no readable NAME/manifest.json" in refused()


def test_top_folder_of_another_name(path, refused):
    files = bundle_files()
    entries = {f"other/{name}": data for name, data in files.items()}
    write_zip(path, entries | {f"other/{MANIFEST}": as_bytes(manifest_of(files))})
    assert "differs between manifest and zip" in refused()


def test_huge_manifest_is_not_read(path, refused, monkeypatch):
    text = as_bytes(manifest_of(bundle_files()))
    monkeypatch.setattr("volseg.registry.bundle_zip.MANIFEST_LIMIT_BYTES", len(text))
    bundle_zip(path, manifest=text + b" ")
    assert "no readable NAME/manifest.json" in refused()


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, json.dumps({"name": NAME}).encode()])
def test_broken_manifest(path, refused, text):
    bundle_zip(path, manifest=text)
    assert f"{NAME}/{MANIFEST}: not a bundle manifest" in refused()


def test_file_that_is_no_zip(path, refused):
    path.write_bytes(os.urandom(1000))
    assert "cannot be read as a zip: File is not a zip file" in refused()


def test_missing_zip(tmp_path, path):
    with pytest.raises(UserError, match=r"cannot be read as a zip: No such file or directory"):
        unpack(path, tmp_path)
