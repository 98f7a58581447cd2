# SPDX-License-Identifier: Apache-2.0
"""Tests of Zarr arrays whose blocks are written by several processes."""

from __future__ import annotations

import uuid

import numpy as np
import pytest
import zarr

from volseg.blockwise.zarr_array import (
    array_name,
    open_array,
    open_or_create_array,
    read_region,
    remove_partial_chunks,
    write_region,
)
from volseg.errors import UserError

SHAPE, CHUNKS = (4, 6, 5), (2, 3, 5)


@pytest.mark.parametrize("kind", ["path", "file URL", "memory URL"])
def test_an_array_is_gone_on_with(tmp_path, kind):
    path = tmp_path / "a b"
    location = {"path": path, "file URL": path.as_uri(), "memory URL": f"memory://{uuid.uuid4().hex}/a"}[kind]
    first = open_or_create_array(location, SHAPE, "uint16", CHUNKS)
    write_region(first, (slice(0, 2), slice(3, 6), slice(0, 5)), np.full((2, 3, 5), 7))
    second = open_or_create_array(location, SHAPE, "uint16", CHUNKS, is_begun=True)
    write_region(second, (slice(2, 4), slice(0, 3), slice(0, 5)), np.full((2, 3, 5), 9))
    expected = np.zeros(SHAPE)
    expected[:2, 3:], expected[2:, :3] = 7, 9
    np.testing.assert_array_equal(read_region(open_array(location), (slice(None),) * 3), expected)


@pytest.mark.parametrize(
    ("shape", "dtype", "chunks", "received"),
    [
        ((4, 6, 6), "uint16", CHUNKS, "shape (4, 6, 5)"),
        (SHAPE, "uint8", CHUNKS, "uint16"),
        (SHAPE, "uint16", (4, 3, 5), "chunks (2, 3, 5)"),
    ],
)
def test_another_array_is_refused(tmp_path, shape, dtype, chunks, received):
    open_or_create_array(tmp_path / "a", SHAPE, "uint16", CHUNKS)
    with pytest.raises(UserError, match="already holds another array") as caught:
        open_or_create_array(tmp_path / "a", shape, dtype, chunks)
    assert received in str(caught.value).partition("expected")[0]


def test_an_array_that_is_begun_must_exist(tmp_path):
    with pytest.raises(UserError, match="is missing"):
        open_or_create_array(tmp_path / "a", SHAPE, "uint16", CHUNKS, is_begun=True)
    assert not (tmp_path / "a").exists()


def test_damaged_metadata_are_one_line(tmp_path):
    open_or_create_array(tmp_path / "a", SHAPE, "uint16", CHUNKS)
    (tmp_path / "a" / "zarr.json").write_text("{")
    for call in (lambda: open_array(tmp_path / "a"), lambda: open_or_create_array(tmp_path / "a", SHAPE, "u2", CHUNKS)):
        with pytest.raises(UserError, match=r"a: cannot be read as a Zarr array \(") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_names_of_arrays(tmp_path):
    data = np.arange(4 * 6 * 5).reshape(SHAPE)
    assert array_name(zarr.create_array(tmp_path / "a", data=data)) == f"{tmp_path}/a"
    assert array_name(data) == "ndarray of shape (4, 6, 5)"


def test_what_killed_processes_left_is_removed(tmp_path):
    array = open_or_create_array(tmp_path / "a", SHAPE, "uint16", CHUNKS)
    write_region(array, (slice(0, 2), slice(0, 6), slice(0, 5)), np.ones((2, 6, 5)))
    left = tmp_path / "a" / "c" / "0" / "0" / "0.1234.partial"
    left.write_bytes(b"half")
    remove_partial_chunks(str(tmp_path))
    assert not left.exists()
    assert array[:2].all()
