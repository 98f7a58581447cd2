# SPDX-License-Identifier: Apache-2.0
"""Files of a registry: made once, replaced whole, with several publishers, on a disk and on an object store."""

from __future__ import annotations

import json
import uuid

import pytest

from tools.registry_store import RegistryStore
from volseg.errors import UserError
from volseg.registry.index import Entry
from volseg.registry.release import Release


def entry(version: str, sha256: str = "a" * 64, name: str = "lung_lobes") -> Entry:
    release = Release(name, version)
    return Entry(release, release.zip_name, "0" * 40, sha256, 3, 3, "2026-01-31", "Apache-2.0")


def page(entries: list[Entry]) -> str:
    return " ".join(e.release.key for e in entries)


@pytest.fixture(params=["folder", "object store"])
def store(request, registry):
    if request.param == "folder":
        return RegistryStore(str(registry))
    return RegistryStore(f"memory://{uuid.uuid4()}/registry")


def text(store: RegistryStore, name: str) -> str:
    return store.file_system.cat_file(f"{store.folder}/{name}").decode()


def names(store: RegistryStore) -> set[str]:
    paths = store.file_system.ls(store.folder, detail=False)
    return {path.rpartition("/")[2] for path in paths} - {".publish.lock"}


def test_an_index_lists_the_entries_by_name_and_in_the_order_of_versions(store):
    for name, version in [("vnet", "0.9.0"), ("lung", "0.10.0"), ("lung", "0.9.1"), ("lung", "0.2.0")]:
        store.create_entry(entry(version, name=name))
    entries = store.publish_index(page)
    keys = ["lung_v0.2.0", "lung_v0.9.1", "lung_v0.10.0", "vnet_v0.9.0"]
    assert [e.release.key for e in entries] == list(json.loads(text(store, "model_info.json"))) == keys
    assert text(store, "index.html") == " ".join(keys)


def test_an_empty_registry_has_an_empty_index(store):
    if not store.is_local:  # object stores have no empty folders
        store.file_system.pseudo_dirs.remove(store.folder)
    assert store.publish_index(page) == []
    assert json.loads(text(store, "model_info.json")) == {}


def test_an_entry_that_is_there_stays(store):
    first, second = entry("0.1.0"), entry("0.1.0", "b" * 64)
    assert store.create_entry(first) == first
    assert store.create_entry(second) == first
    assert store.entries() == [first]


def test_a_zip_that_is_there_stays_and_only_the_same_goes_through(store, tmp_path):
    path = tmp_path / "one.zip"
    path.write_bytes(b"one")
    one = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"
    store.create_zip("lung_v0.1.0.zip", path, one)
    store.create_zip("lung_v0.1.0.zip", path, one)
    path.write_bytes(b"two")
    with pytest.raises(UserError, match=r"another zip has this name but was never released"):
        store.create_zip("lung_v0.1.0.zip", path, "b" * 64)
    assert text(store, "lung_v0.1.0.zip") == "one"


def test_nothing_but_files_of_the_registry_is_written(store):
    with store.locked():
        store.create_entry(entry("0.1.0"))
        store.replace("index.html", b"old")
        store.publish_index(page)
    assert names(store) == {"lung_lobes_v0.1.0.json", "model_info.json", "index.html"}


def test_what_a_killed_publisher_left_half_written_goes(registry):
    store = RegistryStore(str(registry))
    left = registry / ".model_info.json.0123456789ab.unfinished"
    left.mkdir()
    (left / "model_info.json").write_text('{"lung')
    (registry / ".mine").write_text("")
    with store.locked():
        pass
    assert names(store) == {".mine"}


def test_a_foreign_json_file_is_named(store):
    store.replace("notes.json", b"{}")
    with pytest.raises(UserError, match=r"notes\.json: not the entry of a release: .*; remove it$"):
        store.entries()


@pytest.mark.parametrize("moment", range(4))
def test_of_two_publishers_on_an_object_store_neither_is_lost(moment, monkeypatch):
    """The second does all its work within the first's, before each of the first's four reads and writes."""
    url = f"memory://{uuid.uuid4()}"
    first, second = RegistryStore(url), RegistryStore(url)
    steps = iter(range(100))

    def interrupted(function):
        def call(*arguments):
            if next(steps) == moment:
                second.create_entry(entry("0.2.0"))
                second.publish_index(page)
            return function(*arguments)

        return call

    first.create_entry(entry("0.1.0"))
    monkeypatch.setattr(first, "entries", interrupted(first.entries))
    monkeypatch.setattr(first, "replace", interrupted(first.replace))
    first.publish_index(page)
    assert list(json.loads(text(second, "model_info.json"))) == ["lung_lobes_v0.1.0", "lung_lobes_v0.2.0"]
    assert text(second, "index.html") == "lung_lobes_v0.1.0 lung_lobes_v0.2.0"


def test_of_two_publishers_of_one_version_on_an_object_store_the_first_stays(monkeypatch, tmp_path):
    """Both saw that nothing is there; the storage lets one of them create the files."""
    store = RegistryStore(f"memory://{uuid.uuid4()}")
    exists, asked_before = store.file_system.exists, []

    def too_early(path):
        asked_before.append(path)
        return asked_before.count(path) > 2 and exists(path)  # the third time it is the storage that asks

    monkeypatch.setattr(store.file_system, "exists", too_early)
    one, two = tmp_path / "one.zip", tmp_path / "two.zip"
    for path in (one, two):
        path.write_bytes(path.stem.encode())
    store.create_zip("lung_v0.1.0.zip", one, "")
    with pytest.raises(UserError, match="another zip has this name"):
        store.create_zip("lung_v0.1.0.zip", two, "b" * 64)
    assert store.create_entry(entry("0.1.0")) == store.create_entry(entry("0.1.0", "b" * 64)) == entry("0.1.0")
    assert text(store, "lung_v0.1.0.zip") == "one"


@pytest.mark.parametrize(
    ("registry", "line"),
    [
        ("https://example.org/bundles", "web servers cannot be written to"),
        ("nonsense://bundles", "nonsense://bundles: cannot be opened: Protocol not known: nonsense"),
        (__file__, "cannot be written: File exists"),
        (f"{__file__}/registry", "cannot be written: Not a directory"),
    ],
)
def test_a_place_that_cannot_be_written_is_named(registry, line):
    with pytest.raises(UserError) as error:
        RegistryStore(registry)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_url_is_a_folder(tmp_path):
    store = RegistryStore((tmp_path / "all bundles").as_uri())
    assert store.is_local
    assert store.name == str(tmp_path / "all bundles")
    assert (tmp_path / "all bundles").is_dir()
