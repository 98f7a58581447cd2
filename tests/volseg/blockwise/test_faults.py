# SPDX-License-Identifier: Apache-2.0
"""Tests of decoding that is killed, runs out of space, or finds damaged files: with real processes and real kills."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import zarr

from tests.volseg.blockwise import decoding_driver
from volseg.blockwise.decoding import decode_blockwise
from volseg.errors import UserError
from volseg.instances.decoding import Decoding

SHAPE = (13, 45, 58)
ROOT = Path(__file__).resolve().parents[3]
TIMEOUT_S = 600  # only ends a hang


@pytest.fixture(scope="module")
def folder(tmp_path_factory, probabilities) -> Path:
    """A folder with the probabilities of both channels, chunk by chunk."""
    folder = tmp_path_factory.mktemp("probabilities")
    for name, channel in zip(("mask", "boundary"), probabilities(SHAPE, seed=5), strict=True):
        data = (255 * channel).astype(np.uint8)
        zarr.create_array(folder / f"{name}.zarr", data=data, chunks=(5, 16, 16))
    return folder


def decode(folder: Path, output: Path, method: str = "connected_components"):
    channels = (zarr.open_array(folder / f"{name}.zarr", mode="r") for name in ("mask", "boundary"))
    decoding = Decoding(method, **decoding_driver.DECODING)
    return decode_blockwise(*channels, output, decoding, decoding_driver.BLOCK_SHAPE, progress=False)


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory) -> dict[str, tuple[dict[str, bytes], int]]:
    """By method, the files of a run that nothing happened to, and its number of blocks of all stages."""
    runs = {}
    for method in ("connected_components", "watershed"):
        output = tmp_path_factory.mktemp(method)
        result = decode(folder, output, method)
        assert result.statistics["instances"] > 3
        runs[method] = results(output), result.statistics["blocks_done_now"]
    return runs


def results(output: Path) -> dict[str, bytes]:
    """All files by their names but those of the work in progress."""
    files = (path for path in output.rglob("*") if path.is_file())
    named = {str(path.relative_to(output)): path for path in files}
    return {name: path.read_bytes() for name, path in named.items() if not name.startswith("decoding/")}


def start(folder: Path, output: Path, method: str = "connected_components", **options) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, decoding_driver.__file__, str(folder), str(output), method]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, **options)


def count_finished(output: Path, *stages: str) -> int:
    finished = output / "decoding" / "finished"
    return sum(len(list((finished / stage).glob("*.npz"))) for stage in stages)


def wait_until(condition, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.0005)


@pytest.mark.parametrize(
    ("method", "stage", "count"),
    [
        ("connected_components", "components", 7),
        ("connected_components", "level_0", 1),
        ("watershed", "labels", 20),
    ],
)
def test_a_killed_run_goes_on_where_it_was(tmp_path, folder, method, undisturbed, stage, count):
    files, blocks = undisturbed[method]
    process = start(folder, tmp_path, method)
    wait_until(lambda: count_finished(tmp_path, stage) >= count, process)
    everyone = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(everyone, timeout=TIMEOUT_S)
    assert not alive  # workers leave with the run
    stages = ("components", "pairs", "labels", "level_0")
    done = count_finished(tmp_path, *stages)
    assert count <= done < blocks
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "decoding" / "finished" / stage).glob("*.npz")}
    assert decode(folder, tmp_path, method).statistics["blocks_done_now"] == blocks - done
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert results(tmp_path) == files
    assert not [path for kind in ("partial", "unfinished") for path in tmp_path.rglob(f"*.{kind}")]


def test_a_killed_worker_is_replaced(tmp_path, folder, undisturbed):
    files, _ = undisturbed["connected_components"]
    process = start(folder, tmp_path)
    wait_until(lambda: count_finished(tmp_path, "components") >= 3, process)
    workers = [p for p in psutil.Process(process.pid).children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]
    assert len(workers) == 2
    workers[0].kill()
    assert process.wait(TIMEOUT_S) == 0
    process.stderr.close()
    assert results(tmp_path) == files


def test_a_full_disk_is_one_line_that_names_the_block(tmp_path, folder):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))

    process = start(folder, tmp_path, preexec_fn=limit)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert "components, block " in line
    assert "cannot be written: File too large" in line
    # what is finished is whole, and the run goes on once there is space
    partial = [path for path in tmp_path.rglob("*.partial") if path.stat().st_size > 0]
    assert not partial
    assert not list(tmp_path.rglob("*.unfinished"))
    assert decode(folder, tmp_path).statistics["instances"] > 3


def test_a_truncated_chunk_of_the_input_names_array_and_block(tmp_path, folder):
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    chunk = damaged / "boundary.zarr" / "c" / "1" / "2" / "3"
    os.truncate(chunk, chunk.stat().st_size // 2)
    with pytest.raises(UserError) as caught:
        decode(damaged, tmp_path / "out")
    # the chunk's own block comes after its neighbour, which looks one voxel further
    assert str(caught.value).startswith("components, block 6 (z 0:5, y 16:32, x 32:48): ")
    assert "boundary.zarr: a chunk cannot be read (" in str(caught.value)
    assert "\n" not in str(caught.value)
    shutil.copy(folder / chunk.relative_to(damaged), chunk)
    assert decode(damaged, tmp_path / "out").statistics["instances"] > 3


@pytest.mark.parametrize("spoil", [lambda content: content[:-7], lambda content: b"", lambda content: b"{}" + content])
def test_a_damaged_chunk_of_the_run_names_the_file_that_mends_it(tmp_path, folder, undisturbed, spoil):
    decode(folder, tmp_path)
    work = tmp_path / "decoding"
    shutil.rmtree(work / "finished" / "labels")
    chunk = work / "components.zarr" / "c" / "1" / "1" / "1"
    chunk.write_bytes(spoil(chunk.read_bytes()))
    with pytest.raises(UserError, match=r"^labels, block .*components\.zarr: a chunk cannot be read \(\S") as e:
        decode(folder, tmp_path)
    # only what the line names is wrong, and is done again
    (named,) = re.findall(r"remove (\S+) and run again", str(e.value))
    assert named == str(work / "finished" / "components" / "00000017.npz")
    Path(named).unlink()
    decode(folder, tmp_path)
    assert results(tmp_path) == undisturbed["connected_components"][0]


def test_a_flipped_bit_of_a_chunk_does_not_pass(tmp_path, folder):
    decode(folder, tmp_path)
    work = tmp_path / "decoding"
    shutil.rmtree(work / "finished" / "labels")
    chunk = work / "components.zarr" / "c" / "1" / "1" / "1"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(UserError, match=r"^labels, block .*components\.zarr: a chunk cannot be read"):
        decode(folder, tmp_path)


@pytest.mark.parametrize(
    "spoil", [lambda content: content[:-9], lambda content: b"", lambda content: content[:70] + b"!" + content[71:]]
)
def test_a_damaged_manifest_names_its_block(tmp_path, folder, spoil):
    whole = decode(folder, tmp_path)
    expected = results(tmp_path)
    finished = tmp_path / "decoding" / "finished"
    for stage in ("pairs", "ids"):
        shutil.rmtree(finished / stage)
    file = finished / "components" / "00000005.npz"
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(
        UserError, match=r"components/00000005\.npz: damaged file of block 5 \(z 0:5, y 16:32, x 16:32\)"
    ):
        decode(folder, tmp_path)
    file.unlink()
    missing = 1 + whole.statistics["blocks"] - count_finished(tmp_path, "pairs")
    assert decode(folder, tmp_path).statistics["blocks_done_now"] == missing
    assert results(tmp_path) == expected


def test_damaged_parameters_are_one_line(tmp_path, folder):
    decode(folder, tmp_path)
    for content in ("{", "[]", ""):
        (tmp_path / "decoding" / "finished" / "run.json").write_text(content)
        with pytest.raises(UserError, match=r"run\.json: damaged \(.*remove the folder"):
            decode(folder, tmp_path)


@pytest.mark.parametrize("name", ["decoding/components.zarr", "decoding/labels.zarr", "instances.ome.zarr"])
def test_arrays_that_were_removed_are_missed(tmp_path, folder, name):
    decode(folder, tmp_path)
    shutil.rmtree(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}.*: is missing"):
        decode(folder, tmp_path)


def test_two_runs_on_one_folder_are_refused(tmp_path, folder):
    process = start(folder, tmp_path)
    wait_until(lambda: count_finished(tmp_path, "components") >= 1, process)
    process.send_signal(signal.SIGSTOP)  # SIGSTOP: it holds the folder for as long as this takes
    with pytest.raises(UserError, match=r"another run is using this folder"):
        decode(folder, tmp_path)
    process.send_signal(signal.SIGCONT)
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, errors
    assert decode(folder, tmp_path).statistics["blocks_done_now"] == 0
