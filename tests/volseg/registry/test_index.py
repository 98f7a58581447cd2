# SPDX-License-Identifier: Apache-2.0
"""Tests of the index of a registry."""

from __future__ import annotations

import json

import pytest

from tests.volseg.registry.tiny_registry import publish, release
from volseg.errors import UserError
from volseg.registry.index import INDEX, Entry, as_index, read_index
from volseg.registry.location import locate


@pytest.fixture
def content(registry):
    release(registry, "0.1.0")
    return json.loads((registry / INDEX).read_text())


def read(registry, content):
    (registry / INDEX).write_text(content if isinstance(content, str) else json.dumps(content))
    return read_index(locate(registry))


def test_entries_are_ordered_by_name_and_number(registry):
    versions = ["0.10.0", "0.9.0", "0.2.0", "1.0.0"]
    entries = [release(registry, version) for version in versions]
    index = json.loads((registry / INDEX).read_text())
    assert [e.release.version for e in read_index(locate(registry))] == ["0.2.0", "0.9.0", "0.10.0", "1.0.0"]
    assert list(as_index(entries)) == [f"tiny_bundle_v{v}" for v in ("0.2.0", "0.9.0", "0.10.0", "1.0.0")]
    assert index == as_index(entries)


def test_entry_is_read_as_it_is_written(registry):
    entry = release(
        registry,
        source="https://example.org/a/b.zip?key=1",
        title="Ein Bündel",
        task="Segmentation",
        metrics={"dice": 0.9, "lobes": {"upper": 1}},
        signature="a.zip.sig",
        picture="a.png",
    )
    assert read_index(locate(registry)) == [entry]


def test_zoo_reads_the_index():
    """MONAI looks for these two."""
    assert {"source", "checksum"} <= {*Entry.__dataclass_fields__}


def test_what_a_later_version_adds_is_passed_over(registry, content):
    content["tiny_bundle_v0.1.0"]["colour"] = "green"
    assert len(read(registry, content)) == 1


def test_empty_registry(registry):
    publish(registry)
    assert read_index(locate(registry)) == []


@pytest.mark.parametrize("name", ["source", "checksum", "sha256", "size", "unpacked_size", "date", "license"])
def test_missing_item_is_named(registry, content, name):
    del content["tiny_bundle_v0.1.0"][name]
    with pytest.raises(UserError, match=f"not a registry index: tiny_bundle_v0.1.0 without {name}"):
        read(registry, content)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", "1"),
        ("size", 1.0),
        ("size", True),
        ("size", 0),
        ("size", -1),
        ("unpacked_size", -1),
        ("sha256", "0" * 63),
        ("sha256", "g" * 64),
        ("sha256", None),
        ("source", ""),
        ("source", "../a.zip"),
        ("source", "/etc/passwd"),
        ("source", "a/b.zip"),
        ("source", ".hidden"),
        ("source", "file:///etc/passwd"),
        ("source", "s3://bucket/a.zip"),
        ("source", "https://host"),
        ("signature", "../a.sig"),
        ("signature", "https://host/a.sig"),
        ("picture", "javascript:alert(1)"),
        ("license", "\x1b]0;title\x07"),
        ("title", "two\nlines"),
        ("metrics", []),
        ("metrics", "x"),
    ],
)
def test_item_that_does_not_fit(registry, content, name, value):
    content["tiny_bundle_v0.1.0"][name] = value
    with pytest.raises(UserError, match=f"{INDEX}: not a registry index: tiny_bundle_v0.1.0 with") as error:
        read(registry, content)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("key", ["tiny_bundle", "tiny_bundle_v1", "../x_v0.1.0", "Tiny_v0.1.0", ""])
def test_forbidden_key(registry, content, key):
    with pytest.raises(UserError, match=r"not a registry index"):
        read(registry, {key: content["tiny_bundle_v0.1.0"]})


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "1", '"x"', "<html>", '{"a_v0.1.0": []}', "[" * 100_000])
def test_text_that_is_no_index(registry, text):
    with pytest.raises(UserError, match=f"^{registry}/{INDEX}: not a registry index: "):
        read(registry, text)


def test_folder_without_an_index(registry, server):
    for location in (locate(registry), locate(server.url)):
        with pytest.raises(UserError, match=f"{INDEX}: not found; "):
            read_index(location)
