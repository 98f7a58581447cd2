# SPDX-License-Identifier: Apache-2.0
"""Tests of the manifest of a run by blocks."""

from __future__ import annotations

import pickle
import uuid

import numpy as np
import pytest

from volseg.blockwise.block_grid import BlockGrid
from volseg.blockwise.finished_blocks import FinishedBlocks
from volseg.errors import UserError

GRID = BlockGrid((4, 6, 6), (2, 3, 3))


@pytest.fixture(params=["path", "file URL", "memory URL"])
def folder(request, tmp_path):
    path = tmp_path / "a b"
    return {"path": path, "file URL": path.as_uri(), "memory URL": f"memory://{uuid.uuid4().hex}/a"}[request.param]


def test_what_is_written_is_read_by_everyone(folder):
    first = FinishedBlocks(folder)
    second = pickle.loads(pickle.dumps(first))  # noqa: S301 as Dask does
    arrays = {"plane": np.arange(6, dtype=np.uint32).reshape(2, 3), "count": np.array(7), "none": np.zeros((0, 3))}
    assert first.numbers("label") == set()
    first.write("label", GRID[5], arrays)
    first.write("label", GRID[2], {})
    assert second.numbers("label") == {2, 5}
    assert second.numbers("merge") == set()
    assert second.has("label", GRID[5])
    assert not second.has("label", GRID[4])
    for array, expected in zip(second.read("label", GRID[5], *arrays), arrays.values(), strict=True):
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)


def test_a_run_with_other_parameters_is_refused(folder):
    finished = FinishedBlocks(folder)
    parameters = {"shape": (1, 2), "threshold": 0.5, "sections": None}
    for _ in range(2):
        with finished.lock(parameters):
            pass
    for other in ({**parameters, "threshold": 0.25}, {"shape": (1, 2), "threshold": 0.5, "sections": [1]}):
        with (
            pytest.raises(UserError, match=r"run\.json: another run with .* is stored here, got "),
            finished.lock(other),
        ):
            raise AssertionError
    with (
        pytest.raises(UserError, match=r"another run with window None is stored here, got 3;"),
        finished.lock({**parameters, "window": 3}),
    ):
        raise AssertionError


def test_one_run_at_a_time(tmp_path):
    first, second = FinishedBlocks(tmp_path), FinishedBlocks(tmp_path)
    with first.lock({}), pytest.raises(UserError, match="another run is using this folder"), second.lock({}):
        raise AssertionError
    with FinishedBlocks(tmp_path).lock({}):
        pass


def test_json_beside_the_blocks(folder):
    finished = FinishedBlocks(folder)
    assert finished.read_json("plan.json") is None
    finished.write_json("plan.json", {"sections": [3, 7], "done": False})
    assert finished.read_json("plan.json") == {"sections": [3, 7], "done": False}
    assert finished.numbers("plan.json") == set()


@pytest.mark.parametrize("damaged", ['{"sections": [3', "[3]"])
def test_damaged_json_is_one_line(tmp_path, damaged):
    (tmp_path / "plan.json").write_text(damaged)
    with pytest.raises(UserError, match=r"plan\.json: damaged \(.*\); remove the folder"):
        FinishedBlocks(tmp_path).read_json("plan.json")


def test_errors_of_what_is_done_within_a_run_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError, match="of the run"), FinishedBlocks(tmp_path).lock({}):
        raise FileNotFoundError("of the run")


def test_what_a_killed_process_left_is_removed_and_counts_for_nothing(tmp_path):
    finished = FinishedBlocks(tmp_path)
    finished.write("label", GRID[1], {})
    left = tmp_path / "label" / ".00000002.npz.0123456789ab.unfinished"
    left.mkdir()
    (left / "00000002.npz").write_bytes(b"PK")
    assert finished.numbers("label") == {1}
    with finished.lock({}):
        assert not left.exists()
    assert finished.numbers("label") == {1}


def test_no_such_block(tmp_path):
    with pytest.raises(UserError, match=r"00000003\.npz: damaged file of block 3 \(z 0:2, .*\(no such file\)"):
        FinishedBlocks(tmp_path).read("label", GRID[3], "plane")


def test_no_such_array(tmp_path):
    finished = FinishedBlocks(tmp_path)
    finished.write("label", GRID[3], {"plane": np.zeros(3)})
    with pytest.raises(UserError, match=r"of block 3 .*\(.*count"):
        finished.read("label", GRID[3], "count")


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"), FinishedBlocks(tmp_path / "file" / "a").lock({}):
        raise AssertionError
    with pytest.raises(UserError, match=r"file/a/label/00000000\.npz: cannot be written"):
        FinishedBlocks(tmp_path / "file" / "a").write("label", GRID[0], {})


def test_a_storage_that_nothing_opens_is_one_line():
    with pytest.raises(UserError, match="nonsense://a: cannot be opened"):
        FinishedBlocks("nonsense://a")
