# SPDX-License-Identifier: Apache-2.0
"""Tests of one function for every block that is not finished."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from tests.volseg.blockwise.block_functions import die, divide, refuse, write_number
from volseg.blockwise.block_grid import BlockGrid
from volseg.blockwise.finished_blocks import FinishedBlocks
from volseg.blockwise.stages import run_stage
from volseg.blockwise.zarr_array import block_chunks, open_or_create_array
from volseg.errors import UserError

GRID = BlockGrid((5, 9, 10), (2, 4, 5))
EXPECTED = np.zeros(GRID.shape)
for _block in GRID:
    EXPECTED[_block.core] = _block.number


@pytest.fixture
def array(tmp_path):
    return open_or_create_array(tmp_path / "array.zarr", GRID.shape, np.uint32, block_chunks(GRID.block_shape))


@pytest.fixture
def log(tmp_path) -> Path:
    folder = tmp_path / "log"
    folder.mkdir()
    return folder


@pytest.fixture
def finished(tmp_path) -> FinishedBlocks:
    return FinishedBlocks(tmp_path / "finished")


@pytest.fixture(params=["here", "on workers"])
def anyone(request):
    """Without and with workers."""
    return None if request.param == "here" else request.getfixturevalue("client")


def test_every_block_is_done_once(anyone, array, log, finished):
    function = partial(write_number, array, log)
    assert run_stage(anyone, "fill", function, GRID, finished, progress=False) == len(GRID)
    assert run_stage(anyone, "fill", function, GRID, finished, progress=False) == 0
    np.testing.assert_array_equal(array[:], EXPECTED)
    assert {path.name: path.read_text() for path in log.iterdir()} == {str(n): "." for n in range(len(GRID))}
    assert [finished.read("fill", block, "number")[0] for block in GRID] == list(range(len(GRID)))


def test_only_what_is_missing_is_done(anyone, array, log, finished):
    for number in (0, 5, len(GRID) - 1):
        finished.write("fill", GRID[number], {})
    finished.write("another stage", GRID[1], {})
    assert run_stage(anyone, "fill", partial(write_number, array, log), GRID, finished, False) == len(GRID) - 3
    assert {int(path.name) for path in log.iterdir()} == set(range(len(GRID))) - {0, 5, len(GRID) - 1}


def test_the_bar_shows_blocks_rate_and_time_left(array, log, finished, capsys):
    finished.write("fill", GRID[0], {})
    run_stage(None, "fill", partial(write_number, array, log), GRID, finished)
    assert f"{len(GRID)}/{len(GRID)} [" in (shown := capsys.readouterr().err)
    assert "fill:" in shown and "block/s" in shown


def test_an_error_names_stage_and_block_and_keeps_what_is_finished(anyone, finished):
    with pytest.raises(UserError) as caught:
        run_stage(anyone, "read", partial(refuse, 7), GRID, finished, progress=False)
    message = "read, block 7 (z 2:4, y 0:4, x 5:10): a.tif: damaged; restore it"
    assert str(caught.value) == message
    kept = finished.numbers("read")
    assert 7 not in kept
    assert run_stage(anyone, "read", partial(refuse, -1), GRID, finished, progress=False) == len(GRID) - len(kept)


def test_an_error_of_the_program_is_no_users_mistake(anyone, finished):
    with pytest.raises(ZeroDivisionError) as caught:
        run_stage(anyone, "divide", partial(divide, 4), GRID, finished, progress=False)
    if anyone is not None:  # here the traceback ends in the function itself
        assert caught.value.__notes__ == ["divide, block 4 (z 0:2, y 8:9, x 0:5)"]


def test_the_block_of_a_worker_that_dies_is_done_again(client, array, log, finished):
    assert run_stage(client, "fill", partial(die, array, log, 3, 1), GRID, finished, False) == len(GRID)
    assert {path.name: path.read_text() for path in log.iterdir()} == {
        str(number): ".." if number == 3 else "." for number in range(len(GRID))
    }
    np.testing.assert_array_equal(array[:], EXPECTED)


def test_a_block_that_kills_every_worker_is_one_line(client, array, log, finished, monkeypatch):
    monkeypatch.setattr(client.cluster.scheduler, "allowed_failures", 0)
    with pytest.raises(UserError, match=r"^fill, block \d+ \(.*\): 1 workers died"):
        run_stage(client, "fill", partial(die, array, log, 3, 99), GRID, finished, False)
    client.wait_for_workers(2)
