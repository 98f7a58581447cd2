# SPDX-License-Identifier: Apache-2.0
"""What the results file of the decoding by blocks promises, and how it is made."""

from __future__ import annotations

import json
from math import prod

import numpy as np
import pytest

from tools import REPOSITORY
from tools.bench.decoding import decode_by_blocks, decode_whole, write_probabilities
from tools.bench.measure import times
from tools.bench.tables import ESTIMATES as TEXT
from tools.bench.tables import VOLUMES, estimate_table, replace_tables
from volseg.blockwise.block_grid import DEFAULT_BLOCK_SHAPE
from volseg.blockwise.zarr_array import block_chunks, open_array

RESULT = REPOSITORY / "docs" / "benchmarks" / "blockwise_decoding.json"


@pytest.fixture(scope="module")
def rows():
    if not RESULT.is_file():
        pytest.skip("docs/benchmarks/blockwise_decoding.json does not exist: make bench-scale writes it")
    return {row["mode"]: row for row in json.loads(RESULT.read_text(encoding="utf-8"))["rows"]}


def test_sections_of_4096_pixels_are_decoded_below_4_gb(rows):
    peaks = [rows[f"blocks, 2 workers, {depth}x4096x4096"]["peak_mb"] for depth in (100, 400)]
    assert max(peaks) < 4000
    # a block of 64 sections and its halo reach over 128 sections, of which a volume of 100 has no more than 96
    assert peaks[1] < 1.2 * peaks[0]


def test_two_workers_are_faster_than_one(rows):
    one, two = (rows[f"blocks, {workers}, 100x4096x4096"]["median_s"] for workers in ("1 worker", "2 workers"))
    assert one / two >= 1.7


def test_time_is_linear_in_the_number_of_blocks(rows):
    names = ("100x2048x2048", "100x4096x4096", "400x4096x4096")
    rates = [rows[f"blocks, 2 workers, {name}"]["megavoxels_per_s"] for name in names]
    assert max(rates) < 1.3 * min(rates)


@pytest.fixture
def probabilities(tmp_path):
    """A box that lies at two sides of its tile, so that mirrored copies join to one."""
    tile = np.zeros((2, 8, 16, 16), np.uint8)
    tile[0, :, 8:, 4:] = 255
    write_probabilities(str(tmp_path / "in"), tile, (8, 40, 64))
    return tmp_path / "in"


def test_the_volume_is_filled_with_mirrored_copies(probabilities):
    mask = open_array(probabilities / "mask.zarr")[:]
    assert mask.shape == (8, 40, 64)
    rows, columns = (np.flatnonzero(mask.any(axis=axes)) for axes in ((0, 2), (0, 1)))
    assert rows.tolist() == list(range(8, 24))
    assert columns.tolist() == [*range(4, 28), *range(36, 60)]


def test_both_ways_find_the_same_instances(probabilities, tmp_path):
    decode_whole(str(tmp_path / "whole.json"), str(probabilities))
    decode_by_blocks(
        str(tmp_path / "blocks.json"), str(probabilities), str(tmp_path / "out"), 0, (8, 16, 16), (8, 32, 32)
    )
    found = [json.loads((tmp_path / name).read_text()) for name in ("whole.json", "blocks.json")]
    assert [report["instances"] for report in found] == [2, 2]
    assert all(report["seconds"] > 0 for report in found)


SMALL_ROW = {"voxels": 1e6, "megavoxels_per_s": 99, "peak_mb": 1}
LARGE_ROW = {"voxels": 1e9, "megavoxels_per_s": 10, "peak_mb": 2000}
STORED = {"probability_bytes": 5e8, "work_bytes": 4e8, "result_bytes": 1e8}
DECODING = {"rows": [SMALL_ROW | STORED, LARGE_ROW | STORED]}
PREDICTION = {"rows": [{"window_megavoxels_per_s": 2, "peak_mb": 3000}]}


def test_estimates_follow_from_the_rates_of_the_largest_volume():
    *_, row = estimate_table(DECODING, PREDICTION, {"a row of windows": (100, 256, 4096)}).split("\n")
    _, _, _, prediction, decoding, memory, stored, results, _ = (cell.strip() for cell in row.split("|"))
    # 8 blocks of 512 take 5 windows of 100x256x256 each: 262 million voxels at 2 million a second
    assert prediction == "0.036"
    # 105 million voxels at 10 million a second, and at a byte each, of which a tenth stays
    assert (decoding, memory, stored, results) == ("0.0029", "3.0 GB", "0.1 GB", "0.01 GB")


def test_only_the_table_of_the_text_is_replaced():
    text = TEXT.read_text(encoding="utf-8")
    replaced = replace_tables(text, {"estimate": "TABLE"})
    assert replace_tables(replaced, {"estimate": "OTHER"}).count("OTHER") == 1
    assert replaced.startswith(text.partition("<!--")[0])
    assert replaced.endswith(text.rpartition("-->")[2])


def test_the_table_is_that_of_the_results_files(rows):
    prediction = RESULT.with_name("blockwise_prediction.json")
    if not prediction.is_file():
        pytest.skip("docs/benchmarks/blockwise_prediction.json does not exist: make bench-scale writes it")
    results = (json.loads(path.read_text(encoding="utf-8")) for path in (RESULT, prediction))
    assert estimate_table(*results) in TEXT.read_text(encoding="utf-8")


def test_the_text_says_how_much_the_halo_cuts(rows):
    row = rows["blocks, 2 workers, 100x4096x4096"]
    voxels, cut_voxels = (round(row[key] / 1e6) for key in ("voxels", "voxels_in_cut_pieces"))
    said = (
        f"they are in {row['blocks_with_cut_pieces']} of {row['blocks']} blocks, {row['cut_pieces']} pieces with "
        f"{cut_voxels} of {voxels:,} million voxels"
    )
    assert said in " ".join(TEXT.read_text(encoding="utf-8").split())


def test_the_text_says_how_many_files_the_largest_volume_takes():
    chunks = block_chunks(DEFAULT_BLOCK_SHAPE)
    files = prod(-(-n // chunk) for n, chunk in zip(VOLUMES["1 TB"], chunks, strict=True))
    said = f"chunks have {times(chunks)} voxels, so that an array of 1 TB is about {files / 1e6:.0f} million files"
    assert said in " ".join(TEXT.read_text(encoding="utf-8").split())
