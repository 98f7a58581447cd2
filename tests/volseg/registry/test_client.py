# SPDX-License-Identifier: Apache-2.0
"""Tests of finding, downloading and verifying bundles."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from tests.volseg.registry.tiny_registry import (
    NAME,
    as_bytes,
    bundle_files,
    bundle_zip,
    entry_of,
    manifest_of,
    publish,
    release,
    tree,
)
from volseg.errors import UserError
from volseg.registry import bundle_zip as bundle_zip_module
from volseg.registry import client, location
from volseg.registry.client import download, find, verify
from volseg.registry.index import INDEX
from volseg.registry.location import BLOCK_BYTES, StoredLocation
from volseg.registry.manifest import MANIFEST, Change

PAYLOAD = 300_000
LARGE = bytes(range(250)) * 100


def released(version="0.1.0", payload=0):
    files = bundle_files(version, payload)
    return files | {MANIFEST: as_bytes(manifest_of(files, version))}


def installed(bundle_dir):
    """The bundle's files; nothing else may be in the folder of bundles but a lock."""
    files = {path: data for path, data in tree(bundle_dir).items() if path != f".{NAME}.lock"}
    assert all(path.startswith(f"{NAME}/") for path in files), files.keys()
    return {path.removeprefix(f"{NAME}/"): data for path, data in files.items()}


def part(bundle_dir, version="0.1.0"):
    return bundle_dir / f".{NAME}_v{version}.zip.part"


@pytest.fixture
def two_versions(registry):
    return [release(registry, "0.10.0"), release(registry, "0.9.0")]


# what is found


@pytest.mark.parametrize(
    ("bundle", "version"), [(NAME, "0.10.0"), (f"{NAME}==0.9.0", "0.9.0"), (f"{NAME}==0.10.0", "0.10.0")]
)
def test_newest_or_named_version_is_found(two_versions, bundle, version):
    assert find(two_versions, bundle, "here").release.version == version


@pytest.mark.parametrize(
    ("bundle", "message"),
    [
        ("other", "here: has no bundle 'other'; it holds tiny_bundle"),
        ("", "here: has no bundle ''; it holds"),
        (f"{NAME}==0.11.0", "here: has no version 0.11.0 of tiny_bundle; choose one of 0.10.0, 0.9.0"),
        (f"{NAME}==0.9", "the version of tiny_bundle must be three numbers, as in 0.10.2, got '0.9'"),
        (f"{NAME}==", "the version of tiny_bundle must be three numbers, as in 0.10.2, got ''"),
        (f"{NAME}==0.9.0==1", "the version of tiny_bundle must be three numbers, as in 0.10.2, got '0.9.0==1'"),
    ],
)
def test_what_is_not_found_is_named(two_versions, bundle, message):
    with pytest.raises(UserError) as error:
        find(two_versions, bundle, "here")
    assert str(error.value).startswith(message)


def test_empty_registry_holds_nothing():
    with pytest.raises(UserError, match=r"it holds nothing"):
        find([], NAME, "here")


# what is put in place


@pytest.mark.usefixtures("two_versions")
@pytest.mark.parametrize("kind", ["folder", "file url", "web"])
def test_newest_version_is_put_in_place(registry, server, bundle_dir, kind):
    where = {"folder": registry, "file url": registry.as_uri(), "web": server.url}[kind]
    assert download(NAME, where, bundle_dir) == bundle_dir / NAME
    assert installed(bundle_dir) == released("0.10.0")
    assert verify(bundle_dir / NAME) == (manifest_of(bundle_files("0.10.0"), "0.10.0"), [])


def test_zip_with_a_url_of_its_own(registry, server, tmp_path, bundle_dir):
    release(registry, source=f"{server.url}/{NAME}_v0.1.0.zip")
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(registry / INDEX, tmp_path / "elsewhere")
    download(NAME, tmp_path / "elsewhere", bundle_dir)
    assert installed(bundle_dir) == released()
    assert server.ranges(f"/{NAME}_v0.1.0.zip") == [None]


@pytest.mark.usefixtures("two_versions")
def test_versions_replace_each_other_and_what_a_user_made_moves_on(registry, bundle_dir):
    download(f"{NAME}==0.9.0", registry, bundle_dir)
    for name in ("data/mine.nii.gz", "output/run/model.pt"):
        (bundle_dir / NAME / name).parent.mkdir(parents=True)
        (bundle_dir / NAME / name).write_bytes(b"mine")
    mine = {"data/mine.nii.gz": b"mine", "output/run/model.pt": b"mine"}
    download(NAME, registry, bundle_dir)
    assert installed(bundle_dir) == released("0.10.0") | mine
    download(f"{NAME}==0.9.0", registry, bundle_dir)
    assert installed(bundle_dir) == released("0.9.0") | mine


@pytest.mark.usefixtures("two_versions")
def test_same_version_is_not_fetched_again(registry, server, bundle_dir):
    for _ in range(2):
        download(NAME, server.url, bundle_dir)
    assert len(server.ranges(f"/{NAME}_v0.10.0.zip")) == 1


def test_same_version_of_another_registry_is_another_bundle(registry, tmp_path, bundle_dir):
    release(registry)
    download(NAME, registry, bundle_dir)
    (tmp_path / "other").mkdir()
    files = bundle_files() | {"LICENSE": b"another"}
    publish(tmp_path / "other", entry_of(bundle_zip(tmp_path / "other" / f"{NAME}_v0.1.0.zip", files)))
    download(NAME, tmp_path / "other", bundle_dir)
    assert (bundle_dir / NAME / "LICENSE").read_bytes() == b"another"


def test_newest_version_does_not_replace_a_newer_one(registry, tmp_path, bundle_dir):
    """A registry that was set back, by mistake or by an attacker."""
    release(registry, "0.2.0")
    download(NAME, registry, bundle_dir)
    release(tmp_path / "back", "0.1.0")
    with pytest.raises(UserError, match=r"0.2.0 is newer than the registry's newest, 0.1.0; give .*==0.1.0"):
        download(NAME, tmp_path / "back", bundle_dir)
    assert installed(bundle_dir) == released("0.2.0")
    download(f"{NAME}==0.1.0", tmp_path / "back", bundle_dir)
    assert installed(bundle_dir) == released("0.1.0")


@pytest.mark.usefixtures("two_versions")
@pytest.mark.parametrize("bundle", [NAME, f"{NAME}==0.9.0"])
def test_changes_of_a_user_are_lost_by_force_only(registry, bundle_dir, bundle):
    download(NAME, registry, bundle_dir)
    (bundle_dir / NAME / "LICENSE").write_bytes(b"mine")
    (bundle_dir / NAME / "mine").write_bytes(b"mine")
    with pytest.raises(
        UserError,
        match=r"2 changes since its release, LICENSE \(changed\), mine \(added\); move it away or give",
    ):
        download(bundle, registry, bundle_dir)
    assert installed(bundle_dir) == released("0.10.0") | {"LICENSE": b"mine", "mine": b"mine"}
    download(bundle, registry, bundle_dir, force=True)
    assert installed(bundle_dir) == released("0.9.0" if "==" in bundle else "0.10.0")


@pytest.mark.parametrize("kind", ["folder", "file", "link", "link to nothing"])
def test_what_is_no_bundle_is_replaced_by_force_only(registry, tmp_path, bundle_dir, kind):
    release(registry)
    bundle_dir.mkdir()
    target, elsewhere = bundle_dir / NAME, tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "data").write_bytes(b"mine")
    if kind == "folder":
        target.mkdir()
        (target / "mine").write_bytes(b"mine")
    elif kind == "file":
        target.write_bytes(b"mine")
    else:
        target.symlink_to(elsewhere if kind == "link" else tmp_path / "nothing")
    before = tree(bundle_dir)
    with pytest.raises(UserError, match=r"exists and is not a downloaded bundle; move it away"):
        download(NAME, registry, bundle_dir)
    assert {k: v for k, v in tree(bundle_dir).items() if not k.endswith(".lock")} == before
    download(NAME, registry, bundle_dir, force=True)
    assert installed(bundle_dir) == released()
    assert not target.is_symlink()
    assert tree(elsewhere) == {"data": b"mine"}


# what is refused


def refused(registry, bundle_dir, message, **arguments):
    with pytest.raises(UserError, match=message) as error:
        download(NAME, registry, bundle_dir, **arguments)
    assert not (bundle_dir / NAME).exists()
    assert not (bundle_dir / f".{NAME}.0123456789ab.staging").exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_flipped_bit_in_the_zip(registry, bundle_dir):
    release(registry, payload=PAYLOAD)
    path = registry / f"{NAME}_v0.1.0.zip"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    refused(registry, bundle_dir, f"{path}: does not have the SHA-256 that the index lists")
    assert not part(bundle_dir).exists()


@pytest.mark.parametrize("more", [b"x", bytes(200_000)])
def test_zip_longer_than_announced(registry, server, bundle_dir, more):
    release(registry)
    path = registry / f"{NAME}_v0.1.0.zip"
    path.write_bytes(path.read_bytes() + more)
    refused(server.url, bundle_dir, "does not have the SHA-256 that the index lists")
    assert not part(bundle_dir).exists()


def test_no_more_is_read_than_was_announced(registry, bundle_dir, monkeypatch):
    """A server that never stops sending would fill the disk."""
    entry = release(registry)
    with (registry / f"{NAME}_v0.1.0.zip").open("ab") as file:
        file.write(bytes(20 * BLOCK_BYTES))
    offsets = []
    blocks = StoredLocation.blocks

    def observed(self, file, start=0):
        for offset, block in blocks(self, file, start):
            offsets.append(offset)
            yield offset, block

    monkeypatch.setattr(StoredLocation, "blocks", observed)
    refused(registry, bundle_dir, "does not have the SHA-256 that the index lists")
    assert max(offsets) <= entry.size


def test_zip_shorter_than_announced(registry, bundle_dir):
    entry = release(registry, payload=PAYLOAD)
    path = registry / f"{NAME}_v0.1.0.zip"
    data = path.read_bytes()
    path.write_bytes(data[:1000])
    refused(registry, bundle_dir, f"zip: broke off after 1000 of {entry.size} bytes; run the same command again")
    path.write_bytes(data)
    download(NAME, registry, bundle_dir)
    assert installed(bundle_dir) == released(payload=PAYLOAD)


def test_zip_that_was_made_to_do_harm(registry, tmp_path, bundle_dir):
    files = bundle_files() | {"../../evil": b"evil"}
    publish(registry, entry_of(bundle_zip(registry / f"{NAME}_v0.1.0.zip", files)))
    refused(registry, bundle_dir, "the path '../../evil'")
    assert not list(tmp_path.rglob("evil"))


def test_zip_of_another_version_than_the_index_says(registry, bundle_dir):
    path = bundle_zip(registry / f"{NAME}_v0.2.0.zip", version="0.1.0")
    publish(registry, entry_of(path))
    refused(registry, bundle_dir, "holds tiny_bundle_v0.1.0, but the index lists it as")


def test_zip_that_is_missing(registry, server, bundle_dir):
    release(registry)
    (registry / f"{NAME}_v0.1.0.zip").unlink()
    for where in (registry, server.url):
        refused(where, bundle_dir, "zip: not found, although the index lists it")


def test_index_that_is_missing_or_broken(registry, server, bundle_dir):
    refused(server.url, bundle_dir, f"{INDEX}: not found")
    (registry / INDEX).write_text('{"half": ')
    refused(server.url, bundle_dir, f"{INDEX}: not a registry index")
    assert not bundle_dir.exists()


def test_replacement_that_is_refused_leaves_the_old_version(registry, bundle_dir):
    release(registry, "0.1.0")
    download(NAME, registry, bundle_dir)
    (bundle_dir / NAME / "output").mkdir()
    files = bundle_files("0.2.0")
    manifest = as_bytes(manifest_of(files | {"LICENSE": b"other bytes"}, "0.2.0"))
    publish(registry, entry_of(bundle_zip(registry / f"{NAME}_v0.2.0.zip", files, "0.2.0", manifest)))
    with pytest.raises(UserError, match=r"LICENSE differs from the manifest"):
        download(NAME, registry, bundle_dir)
    part(bundle_dir, "0.2.0").unlink()
    assert installed(bundle_dir) == released("0.1.0") | {"output/": b""}


def test_folder_that_cannot_be_made(registry, tmp_path):
    release(registry)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"file.*: cannot be written: (Not a directory|File exists); check the free space"
    ):
        download(NAME, registry, tmp_path / "file" / "bundles")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_the_right_to_write(registry, bundle_dir):
    release(registry)
    bundle_dir.mkdir(mode=0o555)
    refused(registry, bundle_dir, "cannot be written: Permission denied; check the free space and permissions")


def test_not_enough_space_is_said_before_anything_is_fetched(registry, server, bundle_dir, monkeypatch):
    entry = release(registry, payload=PAYLOAD)
    usage = namedtuple("usage", ["free"])
    needed = entry.size + entry.unpacked_size
    monkeypatch.setattr(client.shutil, "disk_usage", lambda path: usage(needed - 1))
    refused(server.url, bundle_dir, "bundles: not enough space: needs 1 MB, has 1 MB; free some")
    assert server.ranges(f"/{NAME}_v0.1.0.zip") == []
    # what is there already needs no more space
    part(bundle_dir).write_bytes((registry / f"{NAME}_v0.1.0.zip").read_bytes()[:1000])
    download(NAME, server.url, bundle_dir)
    assert installed(bundle_dir) == released(payload=PAYLOAD)


# what breaks off


def test_broken_download_asks_for_the_rest_only(registry, server, bundle_dir):
    release(registry, payload=PAYLOAD)
    bundle_dir.mkdir()
    part(bundle_dir).write_bytes((registry / f"{NAME}_v0.1.0.zip").read_bytes()[:123_456])
    download(NAME, server.url, bundle_dir)
    assert server.ranges(f"/{NAME}_v0.1.0.zip") == ["bytes=123456-"]
    assert installed(bundle_dir) == released(payload=PAYLOAD)


@pytest.mark.parametrize("knows_ranges", [True, False])
@pytest.mark.parametrize("size", [1, 100_000, PAYLOAD, None, 2 * PAYLOAD])
def test_what_is_left_of_another_file_is_begun_anew(registry, server, bundle_dir, knows_ranges, size):
    entry = release(registry, payload=PAYLOAD)
    server.knows_ranges = knows_ranges
    bundle_dir.mkdir()
    part(bundle_dir).write_bytes(bytes(entry.size if size is None else size))
    download(NAME, server.url, bundle_dir)
    assert installed(bundle_dir) == released(payload=PAYLOAD)


def test_complete_zip_that_was_not_unpacked_is_not_fetched_again(registry, server, bundle_dir):
    release(registry, payload=PAYLOAD)
    bundle_dir.mkdir()
    shutil.copy(registry / f"{NAME}_v0.1.0.zip", part(bundle_dir))
    download(NAME, server.url, bundle_dir)
    assert server.ranges(f"/{NAME}_v0.1.0.zip") == []
    assert installed(bundle_dir) == released(payload=PAYLOAD)


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_connection_that_breaks(registry, server, bundle_dir, knows_ranges):
    release(registry, payload=PAYLOAD)
    server.knows_ranges = knows_ranges
    server.breaks, server.break_after = 2, 100_000
    server.busy = 2
    download(NAME, server.url, bundle_dir)
    assert installed(bundle_dir) == released(payload=PAYLOAD)


def test_server_that_is_given_up_leaves_nothing_in_place_and_is_asked_again_later(registry, server, bundle_dir):
    release(registry, payload=PAYLOAD)
    server.breaks, server.break_after = 1000, 0
    refused(server.url, bundle_dir, "zip: cannot be reached: ")
    server.breaks, server.break_after = 1, 100_000
    server.status[f"/{NAME}_v0.1.0.zip"] = 403
    refused(server.url, bundle_dir, "was refused: 403 Forbidden")
    server.status.clear()
    download(NAME, server.url, bundle_dir)
    assert installed(bundle_dir) == released(payload=PAYLOAD)


def test_zip_that_changes_between_two_parts(registry, server, bundle_dir):
    """Without an ETag the SHA-256 tells."""
    release(registry, payload=PAYLOAD)
    name = f"{NAME}_v0.1.0.zip"
    data = (registry / name).read_bytes()
    server.breaks, server.break_after = 1, 100_000
    server.changes[f"/{name}"] = (bytes(len(data)), "")
    refused(server.url, bundle_dir, rf"{name}: does not have the SHA-256 that the index lists")
    server.changes.clear()
    download(NAME, server.url, bundle_dir)
    assert installed(bundle_dir) == released(payload=PAYLOAD)


@pytest.mark.parametrize("announced", [1000, 2 * PAYLOAD])
def test_answer_that_announces_another_length(registry, server, bundle_dir, monkeypatch, announced):
    monkeypatch.setattr(location, "ATTEMPTS", 1)
    entry = release(registry, payload=PAYLOAD)
    index = (registry / INDEX).read_bytes()
    (registry / INDEX).write_bytes(index.ljust(announced))  # right for the index
    server.announced = announced
    if announced < entry.size:
        refused(server.url, bundle_dir, rf"zip: broke off after 1000 of {entry.size} bytes; run the same command again")
    else:
        refused(server.url, bundle_dir, r"zip: cannot be reached: IncompleteRead")
    server.announced = None
    download(NAME, server.url, bundle_dir)
    assert installed(bundle_dir) == released(payload=PAYLOAD)


@pytest.mark.parametrize("limit", [100_000, 320_000])
def test_disk_that_is_full(registry, bundle_dir, limit):
    """The system refuses to write more than the limit: in the middle of the zip, or of the bundle put in place."""
    files = bundle_files(payload=PAYLOAD) | {"models/big.pt": bytes(2 * PAYLOAD)} if limit > PAYLOAD else None
    files = files or bundle_files(payload=PAYLOAD)
    publish(registry, entry_of(bundle_zip(registry / f"{NAME}_v0.1.0.zip", files)))
    bundle_dir.mkdir()
    if limit > PAYLOAD:
        shutil.copy(registry / f"{NAME}_v0.1.0.zip", part(bundle_dir))
    command = [sys.executable, "-m", "volseg", "download", NAME, "--registry", registry, "--bundle_dir", bundle_dir]
    limited = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
    failed = subprocess.run(command, check=False, capture_output=True, text=True, preexec_fn=limited)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert (
        failed.stderr
        == f"error: {bundle_dir}: cannot be written: File too large; check the free space and permissions\n"
    )
    assert {path.name for path in bundle_dir.iterdir()} == {f".{NAME}.lock", part(bundle_dir).name}
    subprocess.run(command, check=True, capture_output=True)
    assert (bundle_dir / NAME / "models/model.pt").read_bytes() == files["models/model.pt"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_error_of_the_disk_in_the_middle_of_a_file(registry, bundle_dir, monkeypatch, code):
    release(registry, "0.1.0", payload=PAYLOAD)
    download(NAME, registry, bundle_dir)
    release(registry, "0.2.0", payload=PAYLOAD)
    before = installed(bundle_dir)
    blocks = bundle_zip_module._blocks

    def failing(archive, name, path):
        yield from blocks(archive, name, path)
        if name.endswith("README.md"):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(bundle_zip_module, "_blocks", failing)
    with pytest.raises(UserError, match=rf"bundles: cannot be written: {os.strerror(code)}; check the free space"):
        download(NAME, registry, bundle_dir)
    part(bundle_dir, "0.2.0").rename(bundle_dir.parent / "part")
    assert installed(bundle_dir) == before
    monkeypatch.undo()
    download(NAME, registry, bundle_dir)
    assert installed(bundle_dir) == released("0.2.0", payload=PAYLOAD)


@pytest.mark.usefixtures("two_versions")
def test_broken_download_of_another_version_is_removed(registry, bundle_dir):
    bundle_dir.mkdir()
    part(bundle_dir, "0.9.0").write_bytes(b"half")
    (bundle_dir / ".other_v0.9.0.zip.part").write_bytes(b"half")
    download(NAME, registry, bundle_dir)
    assert [p.name for p in bundle_dir.glob(".*.part")] == [".other_v0.9.0.zip.part"]


@pytest.mark.usefixtures("two_versions")
def test_replacement_that_was_killed_is_completed_first(registry, bundle_dir):
    download(f"{NAME}==0.10.0", registry, bundle_dir)
    staging = bundle_dir / f".{NAME}.0123456789ab.staging"
    staging.mkdir()
    (bundle_dir / NAME / "data").mkdir()
    (bundle_dir / NAME).rename(staging / "old")
    (staging / "new").mkdir()
    download(NAME, registry, bundle_dir)
    assert installed(bundle_dir) == released("0.10.0") | {"data/": b""}


@pytest.mark.usefixtures("two_versions")
def test_changes_in_a_bundle_that_a_killed_replacement_left_aside_are_not_lost(registry, bundle_dir):
    download(f"{NAME}==0.9.0", registry, bundle_dir)
    (bundle_dir / NAME / "LICENSE").write_bytes(b"mine")
    staging = bundle_dir / f".{NAME}.0123456789ab.staging"
    staging.mkdir()
    (bundle_dir / NAME).rename(staging / "old")
    with pytest.raises(UserError, match=r"1 change since its release, LICENSE \(changed\)"):
        download(NAME, registry, bundle_dir)
    assert installed(bundle_dir) == released("0.9.0") | {"LICENSE": b"mine"}


def test_zip_left_by_a_kill_right_after_the_replacement_is_removed(registry, server, bundle_dir):
    release(registry)
    download(NAME, server.url, bundle_dir)
    shutil.copy(registry / f"{NAME}_v0.1.0.zip", part(bundle_dir))
    download(NAME, server.url, bundle_dir)
    assert installed(bundle_dir) == released()
    assert len(server.ranges(f"/{NAME}_v0.1.0.zip")) == 1


def test_second_download_at_once_is_told_to_wait(registry, server, bundle_dir):
    release(registry, payload=PAYLOAD)
    server.stalls_after = 1000
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(download, NAME, server.url, bundle_dir)
        assert server.stalled.wait(600)
        with pytest.raises(UserError, match=r"tiny_bundle: another download is writing it; wait"):
            download(NAME, registry, bundle_dir)
        server.stalls_after = None
        server.released.set()
        first.result(600)
    assert installed(bundle_dir) == released(payload=PAYLOAD)


def test_downloads_of_different_bundles_do_not_wait_for_each_other(registry, server, bundle_dir):
    release(registry, payload=PAYLOAD)
    other = entry_of(registry / f"{NAME}_v0.1.0.zip")
    index = json.loads((registry / INDEX).read_text())
    index["other_v0.1.0"] = other.as_json()
    (registry / INDEX).write_text(json.dumps(index))
    server.stalls_after = 1000
    done = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(download, NAME, server.url, bundle_dir).add_done_callback(lambda _: done.set())
        assert server.stalled.wait(600)
        with pytest.raises(
            UserError, match=r"holds tiny_bundle_v0.1.0, but the index lists it as"
        ):  # it came, and was looked at
            download("other", registry, bundle_dir)
        assert not done.is_set()
        server.stalls_after = None
        server.released.set()


# what is published elsewhere


def with_large_file(registry, url, digest=None, path="models/large.pt", version="0.1.0"):
    digest = digest or hashlib.sha256(LARGE).hexdigest()
    text = f"large_files:\n  - path: {path}\n    url: {url}\n    hash_type: sha256\n    hash_val: {digest}\n"
    files = bundle_files(version) | {"large_files.yml": text.encode()}
    publish(registry, entry_of(bundle_zip(registry / f"{NAME}_v{version}.zip", files, version)))


@pytest.fixture
def large(registry, server):
    (registry / "large.pt").write_bytes(LARGE)
    with_large_file(registry, f"{server.url}/large.pt")
    return registry / "large.pt"


@pytest.mark.usefixtures("large")
def test_large_file_is_downloaded_and_verified(registry, bundle_dir):
    folder = download(NAME, registry, bundle_dir)
    assert installed(bundle_dir)["models/large.pt"] == LARGE
    assert verify(folder)[1] == []
    (folder / "models/large.pt").write_bytes(bytes(len(LARGE)))
    assert verify(folder)[1] == [Change("models/large.pt", "changed")]
    (folder / "models/large.pt").unlink()
    assert verify(folder)[1] == [Change("models/large.pt", "missing")]
    (folder / "large_files.yml").write_text("large_files: []")
    assert verify(folder)[1] == [Change("large_files.yml", "changed")]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("changed", "large.pt: does not have the SHA-256 that large_files.yml lists"),
        ("longer", "large.pt: does not have the SHA-256 that large_files.yml lists"),
        ("shorter", "large.pt: does not have the SHA-256 that large_files.yml lists"),
        ("missing", "large.pt: not found, although large_files.yml lists it; report"),
        ("breaks", "large.pt: cannot be reached: IncompleteRead"),
        ("redirect", "large.pt: redirects from http to ftp"),
    ],
)
def test_large_file_that_does_not_come(registry, server, bundle_dir, large, monkeypatch, fault, message):
    monkeypatch.setattr(location, "ATTEMPTS", 1)
    if fault == "redirect":
        server.redirects["/large.pt"] = "ftp://127.0.0.1/large.pt"
    elif fault == "breaks":
        server.announced = len(LARGE) + 1
    elif fault == "missing":
        large.unlink()
    else:
        large.write_bytes({"changed": bytes(len(LARGE)), "longer": LARGE + b"x", "shorter": LARGE[:-1]}[fault])
    refused(registry, bundle_dir, message)
    large.write_bytes(LARGE)
    server.redirects.clear()
    server.announced = None
    download(NAME, registry, bundle_dir)
    assert installed(bundle_dir)["models/large.pt"] == LARGE


@pytest.mark.usefixtures("large")
def test_large_file_goes_on_where_it_broke_in_an_earlier_run(registry, server, bundle_dir, monkeypatch):
    monkeypatch.setattr(location, "ATTEMPTS", 1)
    server.announced = len(LARGE) + 1
    refused(registry, bundle_dir, "IncompleteRead")
    server.announced = None
    left = bundle_dir / f".{NAME}_v0.1.0.{hashlib.sha256(LARGE).hexdigest()}.part"
    assert left.read_bytes() == LARGE[:BLOCK_BYTES]
    download(NAME, registry, bundle_dir)
    assert server.ranges("/large.pt") == [None, f"bytes={BLOCK_BYTES}-"]
    assert installed(bundle_dir)["models/large.pt"] == LARGE


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"path": "../evil"}, "the path '../evil' is not portable"),
        ({"path": "output/x"}, "the path 'output/x' is reserved"),
        ({"url": "ftp://example.org/x"}, "models/large.pt has url 'ftp://example.org/x'"),
        ({"digest": "ab" * 16}, "hash_val 'abababababababababababababababab', which is no SHA-256"),
    ],
)
def test_list_of_large_files_that_is_refused(registry, bundle_dir, entry, message):
    with_large_file(registry, **({"url": "http://127.0.0.1/x"} | entry))
    refused(
        registry, bundle_dir, rf"zip, large_files.yml: not a list of large files .*: .*{message}; pack the bundle again"
    )


# what is verified


def test_verify_names_every_change(registry, bundle_dir):
    release(registry)
    folder = download(NAME, registry, bundle_dir)
    (folder / "LICENSE").write_bytes(b"Apache-2.1\n")
    (folder / "docs/README.md").unlink()
    (folder / "more").symlink_to("/etc/passwd")
    assert verify(folder)[1] == [
        Change("LICENSE", "changed"),
        Change("docs/README.md", "missing"),
        Change("more", "added"),
    ]


def test_verify_names_what_python_could_run_in_place_of_a_module(registry, bundle_dir):
    release(registry)
    folder = download(NAME, registry, bundle_dir)
    for path in ("volseg/__pycache__/__init__.cpython-311.pyc", "volseg/extra.py", "volseg/x.so", "README.md/a.py"):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(b"")
    assert verify(folder)[1] == [
        Change("README.md/a.py", "added"),
        Change("volseg/__pycache__/__init__.cpython-311.pyc", "added"),
        Change("volseg/extra.py", "added"),
        Change("volseg/x.so", "added"),
    ]


def test_a_bundle_that_was_run_can_be_replaced(registry, bundle_dir):
    release(registry)
    cache = download(NAME, registry, bundle_dir) / "volseg" / "__pycache__"
    cache.mkdir()
    (cache / "__init__.cpython-311.pyc").write_bytes(b"")
    release(registry, "0.2.0")
    assert verify(download(NAME, registry, bundle_dir))[1] == []


def test_verify_against_a_registry(registry, server, bundle_dir):
    release(registry)
    folder = download(NAME, registry, bundle_dir)
    assert verify(folder, server.url)[1] == []
    (folder / "LICENSE").write_bytes(b"evil")
    files = bundle_files() | {"LICENSE": b"evil"}
    (folder / MANIFEST).write_bytes(as_bytes(manifest_of(files)))
    assert verify(folder)[1] == []  # compared with itself
    with pytest.raises(UserError, match=r"manifest\.json: is not the manifest of tiny_bundle_v0\.1\.0 in .*; download"):
        verify(folder, registry)
    (folder / MANIFEST).write_bytes(as_bytes(manifest_of(files, "0.2.0")))
    with pytest.raises(UserError, match=r"registry: has no version 0\.2\.0 of tiny_bundle; choose one of 0\.1\.0"):
        verify(folder, registry)


def test_verify_against_an_index_that_does_not_list_the_manifest(registry, bundle_dir):
    release(registry, manifest_sha256="")
    folder = download(NAME, registry, bundle_dir)
    with pytest.raises(
        UserError, match=r"model_info\.json: does not list the manifest of tiny_bundle_v0\.1\.0; publish"
    ):
        verify(folder, registry)


@pytest.mark.parametrize("path", ["nothing", "empty", "file"])
def test_verify_of_what_is_no_bundle(tmp_path, path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=f"{path}/manifest.json: cannot be read: .*; give the folder of a downl"):
        verify(tmp_path / path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_verify_of_a_file_that_may_not_be_read(registry, bundle_dir):
    release(registry)
    folder = download(NAME, registry, bundle_dir)
    (folder / "LICENSE").chmod(0)
    with pytest.raises(UserError, match=r"LICENSE: cannot be read: Permission denied"):
        verify(folder)
