# SPDX-License-Identifier: Apache-2.0
"""Tests of the table of instances."""

from __future__ import annotations

import numpy as np
import pytest

from volseg.errors import UserError
from volseg.instances.table import (
    Instance,
    extents,
    instance_table,
    instances,
    joined_extents,
    write_instance_table,
)

VOXEL_SIZE_NM = (30.0, 8.0, 4.0)  # 960 nm3


def volume(dtype: type[np.generic] = np.int32) -> np.ndarray:
    """A bar of id 2 in one row, an L of id 7 over two sections."""
    labels = np.zeros((3, 4, 5), dtype)
    labels[1, 2, 1:4] = 2
    labels[1, 0, 0:2] = labels[2, 0:2, 0] = 7
    return labels


def test_known_instances():
    bar, corner = instance_table(volume(), VOXEL_SIZE_NM)
    assert bar == Instance(2, 3, pytest.approx(2880e-9), 1, 2, 1, 2, 3, 4, 1.0, 2.0, 2.0)
    assert corner == Instance(7, 4, pytest.approx(3840e-9), 1, 0, 0, 3, 2, 2, 1.5, 0.25, 0.25)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_type_of_the_labels_does_not_matter(dtype):
    assert instance_table(volume(dtype), None) == instance_table(volume(), None)


def test_ids_of_any_size_with_gaps():
    labels = volume(np.uint64)
    ids = {2: 65_536, 7: 2**63 + 5}
    for old, new in ids.items():
        labels[labels == old] = new
    assert [(i.id, i.voxels) for i in instance_table(labels, None)] == [(65_536, 3), (2**63 + 5, 4)]


def test_unknown_voxel_size():
    assert [i.volume_um3 for i in instance_table(volume(), None)] == [None, None]


def test_an_instance_goes_on_where_a_row_ends_and_the_next_begins():
    labels = np.zeros((1, 2, 4), np.uint8)
    labels[0, 0, 3] = labels[0, 1, 0] = 1
    assert instance_table(labels, None) == [Instance(1, 2, None, 0, 0, 0, 1, 2, 4, 0.0, 0.5, 1.5)]


@pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray, lambda a: a[:, ::-1, ::2]])
def test_agrees_with_a_search_for_each_id(layout):
    labels = layout(np.random.default_rng(0).integers(0, 6, (5, 6, 8)) * 1001)
    table = instance_table(labels, VOXEL_SIZE_NM)
    assert [i.id for i in table] == [1001, 2002, 3003, 4004, 5005]
    for instance in table:
        found = np.argwhere(labels == instance.id)
        assert instance.voxels == len(found)
        assert [instance.z_start, instance.y_start, instance.x_start] == found.min(axis=0).tolist()
        assert [instance.z_stop, instance.y_stop, instance.x_stop] == (found.max(axis=0) + 1).tolist()
        centroid = [instance.centroid_z, instance.centroid_y, instance.centroid_x]
        assert centroid == pytest.approx(found.mean(axis=0))


def test_no_instances():
    assert instance_table(np.zeros((2, 3, 4), np.uint16), VOXEL_SIZE_NM) == []


def test_file(tmp_path):
    table = [
        Instance(7, 4, 0.00000123456789, 1, 0, 0, 3, 2, 2, 1.5, 0.25, 2 / 3),
        Instance(70_000, 1, None, 0, 1, 2, 1, 2, 3, 0.0, 1.0, 2.0),
    ]
    write_instance_table(tmp_path / "out" / "a.csv", table)
    assert (tmp_path / "out" / "a.csv").read_bytes().decode().split("\n") == [
        "id,voxels,volume_um3,z_start,y_start,x_start,z_stop,y_stop,x_stop,centroid_z,centroid_y,centroid_x",
        "7,4,1.23457e-06,1,0,0,3,2,2,1.5,0.25,0.67",
        "70000,1,,0,1,2,1,2,3,0.0,1.0,2.0",
        "",
    ]


def test_file_without_instances_holds_the_header(tmp_path):
    write_instance_table(tmp_path / "a.csv", [])
    (line,) = (tmp_path / "a.csv").read_text().splitlines()
    assert line.startswith("id,voxels,volume_um3,")


def test_file_is_written_whole_or_not_at_all(tmp_path):
    (tmp_path / "a.csv").write_text("before")
    with pytest.raises(TypeError):
        write_instance_table(tmp_path / "a.csv", [*instance_table(volume(), None), "no instance"])  # type: ignore[list-item]
    assert [p.name for p in tmp_path.iterdir()] == ["a.csv"]
    assert (tmp_path / "a.csv").read_text() == "before"
    with pytest.raises(UserError, match="cannot be written"):
        write_instance_table(tmp_path / "a.csv" / "b.csv", [])


def test_parts_that_were_counted_by_themselves_make_the_table_of_the_whole():
    labels = np.random.default_rng(0).integers(0, 5, (4, 6, 7)) * 3
    parts = [extents(labels[z : z + 3, :, x : x + 4], (z, 0, x)) for z in (3, 0) for x in (0, 4)]
    assert list(instances(joined_extents(parts), VOXEL_SIZE_NM)) == instance_table(labels, VOXEL_SIZE_NM)
