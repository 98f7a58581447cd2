# SPDX-License-Identifier: Apache-2.0
"""Tests that decoding by blocks gives what decoding the whole volume gives, ids included."""

from __future__ import annotations

import csv
import json
import logging
import uuid
from dataclasses import replace
from itertools import product

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from scipy import ndimage

from volseg.blockwise.decoding import decode_blockwise
from volseg.data.open_volume import open_chunked_volume
from volseg.errors import UserError
from volseg.instances.decoding import Decoding, decode_instances, seed_map
from volseg.instances.table import instance_table, write_instance_table

SHAPE = (13, 45, 58)
BLOCK_SHAPES = [(13, 45, 58), (13, 45, 20), (5, 16, 16), (4, 45, 58), (4, 17, 21), (6, 23, 29), (100, 9, 57)]
NOTHING = np.zeros((2, 3, 4)), np.zeros((2, 3, 4))
# low thresholds, so that objects reach through several blocks and touch by faces, edges and corners
SEEDS = {"mask_threshold": 0.7, "boundary_threshold": 0.7}


def as_bytes(*probabilities: np.ndarray) -> list[np.ndarray]:
    return [(255 * p).astype(np.uint8) for p in probabilities]


def blockwise(mask, boundary, output, decoding, **options) -> np.ndarray:
    result = decode_blockwise(mask, boundary, output, decoding, progress=False, **options)
    return open_chunked_volume(result.labels)[:]


@pytest.mark.parametrize(
    ("block_shape", "dilation"),
    [*product(BLOCK_SHAPES, [(1, 7, 7), (3, 5, 5)]), ((5, 16, 16), (1, 1, 1)), ((6, 9, 29), (5, 1, 3))],
)
def test_components_are_those_of_the_whole_volume(tmp_path, probabilities, block_shape, dilation):
    mask, boundary = as_bytes(*probabilities(SHAPE, seed=sum(block_shape)))
    options = {"dilation": dilation, "min_size": 8, **SEEDS}
    expected = decode_instances(mask, boundary, Decoding(**options))
    labels = blockwise(mask, boundary, tmp_path, Decoding(**options), block_shape=block_shape)
    assert len(np.unique(expected)) > 5
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("method", ["connected_components", "watershed"])
def test_any_seeds_in_any_blocks(tmp_path, seed, method):
    random = np.random.default_rng(seed)
    shape = random.integers(1, (9, 13, 17))
    # close to where components percolate, through faces and through corners: long and winding ones
    mask = (random.random(shape) < (0.3 if method == "connected_components" else 0.1)).astype(np.float32)
    boundary = np.zeros(shape, np.float32)
    options = {"min_size": 3, "dilation": (1, 1, 1)}
    expected = decode_instances(mask, boundary, Decoding(method, **options))
    for block_shape in random.integers((1, 3, 3), shape + 3, (3, 3)):
        output = tmp_path / f"{block_shape}"
        labels = blockwise(mask, boundary, output, Decoding(method, halo=shape, **options), block_shape=block_shape)
        np.testing.assert_array_equal(labels, expected)


def test_one_component_winds_through_all_blocks_by_corners(tmp_path):
    mask = np.zeros((3, 3, 3), np.float32)
    steps = np.arange(3)
    mask[steps, steps, steps] = 1
    mask[steps, steps[::-1], steps] = 1
    labels = blockwise(
        mask, np.zeros_like(mask), tmp_path, Decoding("watershed", min_size=1, halo=(2, 2, 2)), block_shape=(1, 1, 1)
    )
    # through faces it is many
    assert ndimage.label(mask)[1] == 5
    np.testing.assert_array_equal(labels, mask)


@pytest.mark.parametrize(
    ("block_shape", "kind"), [*product(BLOCK_SHAPES, ["uint8"]), ((5, 16, 16), "float32"), ((4, 45, 58), "float64")]
)
def test_watershed_is_that_of_the_whole_volume_where_the_halo_covers_it(tmp_path, probabilities, block_shape, kind):
    mask, boundary = probabilities(SHAPE, seed=1, sigma=(1, 1, 1))
    mask, boundary = as_bytes(mask, boundary) if kind == "uint8" else [p.astype(kind) for p in (mask, boundary)]
    options = {"mask_threshold": 0.99, "boundary_threshold": 0.8, "foreground_threshold": 0.975, "min_size": 2}
    expected = decode_instances(mask, boundary, Decoding("watershed", **options))
    result = decode_blockwise(
        mask,
        boundary,
        tmp_path,
        Decoding("watershed", halo=(13, 20, 20), **options),
        block_shape=block_shape,
        progress=False,
    )
    assert len(np.unique(expected)) > 40
    assert (expected > 0).sum() > 1.5 * seed_map(mask, boundary, 0.99, 0.8).sum()
    assert result.statistics["cut_pieces"] == result.statistics["voxels_in_cut_pieces"] == 0
    np.testing.assert_array_equal(open_chunked_volume(result.labels)[:], expected)


@pytest.mark.parametrize("kind", ["uint8", "float32"])
@pytest.mark.parametrize("block_shape", BLOCK_SHAPES)
def test_outlines_across_blocks_are_those_of_the_whole_volume(tmp_path, probabilities, block_shape, kind):
    mask, boundary = probabilities(SHAPE, seed=4, sigma=(1, 1, 1))
    mask, boundary = as_bytes(mask, boundary) if kind == "uint8" else (mask, boundary)
    decoding = Decoding(mask_threshold=0.99, boundary_threshold=0.8, min_size=2, dilation=(1, 3, 3))
    expected = decode_instances(mask, boundary, replace(decoding, outline_threshold=0.99))
    every = decode_instances(mask, boundary, decoding)
    result = decode_blockwise(
        mask, boundary, tmp_path, replace(decoding, outline_threshold=0.99), block_shape=block_shape, progress=False
    )
    kept, found = (len(np.unique(labels)) - 1 for labels in (expected, every))
    assert 10 < kept < 0.9 * found
    assert (result.statistics["instances"], result.statistics["removed_without_outline"]) == (kept, found - kept)
    np.testing.assert_array_equal(open_chunked_volume(result.labels)[:], expected)


@pytest.mark.parametrize(
    ("halo", "expected", "cut"),
    [
        (5, [1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 2, 2], 0),
        # the second block sees neither the seed at 0 nor that there is one beyond 1
        (3, [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 2, 2], 1),
    ],
)
def test_foreground_whose_seed_lies_beyond_the_halo_is_background(tmp_path, halo, expected, cut):
    mask = np.array([[[255, 220, 220, 220, 220, 220, 0, 0, 0, 0, 255, 255]]], np.uint8)
    result = decode_blockwise(
        mask,
        np.zeros_like(mask),
        tmp_path,
        Decoding("watershed", min_size=1, halo=(0, 0, halo)),
        block_shape=(1, 1, 4),
        progress=False,
    )
    assert open_chunked_volume(result.labels)[:].tolist() == [[expected]]
    names = ("cut_pieces", "blocks_with_cut_pieces", "voxels_in_cut_pieces")
    assert [result.statistics[name] for name in names] == [cut, cut, 2 * cut]


@pytest.mark.parametrize("halo", [(0, 0, 0), (1, 2, 2), (4, 15, 15)])
def test_watershed_beyond_the_halo_is_counted_and_differs_in_cut_pieces_alone(tmp_path, caplog, probabilities, halo):
    mask, boundary = as_bytes(*probabilities(SHAPE, seed=2))
    options = {"mask_threshold": 0.9, "boundary_threshold": 0.8, "foreground_threshold": 0.7, "min_size": 1}
    expected = decode_instances(mask, boundary, Decoding("watershed", **options))
    block_shape = (5, 16, 16)
    with caplog.at_level(logging.WARNING, logger="volseg.blockwise.decoding"):
        result = decode_blockwise(
            mask,
            boundary,
            tmp_path,
            Decoding("watershed", halo=halo, **options),
            block_shape=block_shape,
            progress=False,
        )
    labels = open_chunked_volume(result.labels)[:]
    seeds = seed_map(mask, boundary, 0.9, 0.8)
    inside = (mask > int(255 * 0.7)) | seeds
    expected_cut = np.zeros(3, int)
    for first in np.ndindex(3, 3, 4):
        start = np.multiply(first, block_shape)
        core = tuple(slice(a, a + n) for a, n in zip(start, block_shape, strict=True))
        low, high = np.maximum(start - halo, 0), np.minimum(start + block_shape + halo, SHAPE)
        pieces, _ = ndimage.label(inside[tuple(map(slice, low, high))], np.ones((3, 3, 3)))
        on_face = [
            plane
            for axis, planes in enumerate(np.moveaxis(pieces, axis, 0) for axis in range(3))
            for plane, is_inner in ((planes[0], low[axis] > 0), (planes[-1], high[axis] < SHAPE[axis]))
            if is_inner
        ]
        cut_numbers = np.setdiff1d(np.concatenate([plane.ravel() for plane in on_face]), 0)
        in_core = pieces[tuple(slice(a - b, a - b + n) for a, b, n in zip(start, low, block_shape, strict=True))]
        cut = np.isin(in_core, cut_numbers)
        number = len(np.unique(in_core[cut]))
        expected_cut += (number, number > 0, cut.sum())
        np.testing.assert_array_equal(labels[core][~cut], expected[core][~cut])
    names = ("cut_pieces", "blocks_with_cut_pieces", "voxels_in_cut_pieces")
    assert [result.statistics[name] for name in names] == expected_cut.tolist()
    assert expected_cut[0] > 0
    assert any(halo) or not np.array_equal(labels, expected)
    assert f"in {expected_cut[1]} of 36 blocks" in caplog.text
    assert f"{expected_cut[0]} pieces, {expected_cut[2]} voxels" in caplog.text
    # wherever an object has its seeds, it has the whole volume's id (but where those are no foreground)
    seeds &= mask > int(255 * 0.7)
    np.testing.assert_array_equal(labels[seeds], expected[seeds])


def test_arrays_and_files_on_two_processes(tmp_path, client, probabilities):
    mask, boundary = as_bytes(*probabilities(SHAPE, seed=3))
    single = zarr.create_array(tmp_path / "mask.zarr", data=mask)
    other = zarr.create_array(tmp_path / "boundary.zarr", data=boundary, chunks=(5, 16, 16))
    expected = decode_instances(mask, boundary, Decoding(**SEEDS))
    for number, given in enumerate([tmp_path / "mask.zarr", single]):
        output = tmp_path / str(number)
        labels = blockwise(given, other, output, Decoding(**SEEDS), block_shape=(5, 16, 32), client=client)
        np.testing.assert_array_equal(labels, expected)


def test_urls_of_storages(tmp_path, probabilities):
    mask, boundary = as_bytes(*probabilities(SHAPE, seed=3))
    expected = decode_instances(mask, boundary, Decoding(**SEEDS))
    url = f"memory://{uuid.uuid4().hex}"
    zarr.create_array(f"{url}/mask", data=mask)
    for output in (f"{url}/out", (tmp_path / "a b").as_uri()):
        given = (f"{url}/mask", boundary, output)
        result, again = (
            decode_blockwise(*given, Decoding(**SEEDS), block_shape=(5, 16, 32), progress=False) for _ in range(2)
        )
        assert result.statistics["blocks_done_now"] > 0
        assert again.statistics["blocks_done_now"] == 0
        np.testing.assert_array_equal(zarr.open_array(f"{result.labels}/0", mode="r")[:], expected)
        with fsspec.open(result.csv, "rt") as file:
            assert len(file.readlines()) == 1 + len(np.unique(expected)) - 1
    assert (tmp_path / "a b" / "instances.ome.zarr" / "zarr.json").is_file()


@pytest.mark.parametrize("voxel_size_nm", [(30.0, 8.0, 8.0), None])
def test_tables_are_those_of_the_whole_volume(tmp_path, probabilities, voxel_size_nm):
    mask, boundary = as_bytes(*probabilities(SHAPE, seed=4))
    options = {"min_size": 40, **SEEDS}
    result = decode_blockwise(
        mask,
        boundary,
        tmp_path,
        Decoding(**options),
        block_shape=(5, 16, 16),
        voxel_size_nm=voxel_size_nm,
        progress=False,
    )
    expected = instance_table(decode_instances(mask, boundary, Decoding(**options)), voxel_size_nm)
    write_instance_table(tmp_path / "expected.csv", expected)
    assert (tmp_path / "instances.csv").read_bytes() == (tmp_path / "expected.csv").read_bytes()
    rows = pq.read_table(result.parquet).to_pylist()
    with (tmp_path / "instances.csv").open() as file:
        assert list(rows[0]) == next(csv.reader(file))
    assert len(rows) == result.statistics["instances"] == len(expected) > 3
    for row, instance in zip(rows, expected, strict=True):
        assert row == pytest.approx(instance.__dict__)
    assert json.loads((tmp_path / "statistics.json").read_text())["instances"] == len(rows)


def test_sizes_are_those_of_the_whole_object(tmp_path):
    mask = np.zeros((1, 4, 12), np.uint8)
    mask[0, 1, 1:10] = 255  # nine voxels in four blocks
    mask[0, 3, 11] = 255
    for min_size, ids in ((9, [0, 1]), (10, [0]), (1, [0, 1, 2])):
        output = tmp_path / str(min_size)
        decoding = Decoding(min_size=min_size, dilation=(1, 1, 1))
        labels = blockwise(mask, np.zeros_like(mask), output, decoding, block_shape=(1, 4, 3))
        assert np.unique(labels).tolist() == ids


@pytest.mark.parametrize("method", ["connected_components", "watershed"])
@pytest.mark.parametrize("value", [0, 255])
def test_nothing_found(tmp_path, method, value):
    mask = np.full((3, 5, 7), value, np.uint8)
    result = decode_blockwise(mask, mask, tmp_path, Decoding(method), block_shape=(2, 4, 4), progress=False)
    assert not open_chunked_volume(result.labels)[:].any()
    assert result.statistics["instances"] == pq.read_table(result.parquet).num_rows == 0
    assert (tmp_path / "instances.csv").read_text().startswith("id,voxels")


def test_a_finished_run_has_nothing_left_to_do(tmp_path, probabilities):
    mask, boundary = probabilities(SHAPE)
    first, second = (decode_blockwise(mask, boundary, tmp_path, Decoding(**SEEDS), progress=False) for _ in range(2))
    assert first.statistics["blocks_done_now"] > 0
    assert second.statistics == {**first.statistics, "blocks_done_now": 0}


def test_other_parameters_are_refused(tmp_path, probabilities):
    mask, boundary = probabilities(SHAPE)
    decode_blockwise(mask, boundary, tmp_path, progress=False)
    with pytest.raises(UserError, match=r"with min_size 128 is stored here, got 5; remove the folder"):
        decode_blockwise(mask, boundary, tmp_path, Decoding(min_size=5), progress=False)
    decode_blockwise(mask, boundary, tmp_path, Decoding(halo=(1, 1, 1)), progress=False)  # of no effect for components


@pytest.mark.parametrize(
    ("mask", "boundary", "options", "message"),
    [
        (np.zeros((2, 3, 4)), np.zeros((2, 3, 5)), {}, r"must have the shape of the mask, got \(2, 3, 5\)"),
        (np.zeros((3, 4)), np.zeros((3, 4)), {}, r"mask must be uint8 .*, got float64 of shape \(3, 4\)"),
        (np.zeros((2, 3, 4)), np.zeros((2, 3, 4), np.int32), {}, r"boundary must be uint8 .*, got int32"),
        (*NOTHING, {"block_shape": (1, 0, 6)}, r"^block_shape .*>= 1.*, got \(1, 0, 6\)"),
        (*NOTHING, {"block_shape": [16, 2.5, 64]}, r"^block_shape .*, got \[16, 2\.5, 64\]"),
        (*NOTHING, {"block_shape": [16, True, 64]}, r"^block_shape .*, got \[16, True, 64\]"),
        ("no/such/folder", np.zeros((2, 3, 4)), {}, "no such file or folder"),
        ("memory://nothing", np.zeros((2, 3, 4)), {}, "memory://nothing: cannot be read"),
    ],
)
def test_bad_input(tmp_path, mask, boundary, options, message):
    with pytest.raises(UserError, match=message):
        decode_blockwise(mask, boundary, tmp_path / "out", progress=False, **options)
    assert not (tmp_path / "out").exists()
