# SPDX-License-Identifier: Apache-2.0
"""Probabilities that were kept, decoded again with other options."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from volseg.blockwise.grey_range import GreyRange
from volseg.blockwise.segmentation import segment_blockwise
from volseg.blockwise.volume_opener import VolumeOpener
from volseg.blockwise.volume_prediction import VolumePrediction
from volseg.blockwise.worker_network import WorkerNetwork
from volseg.data.ome_zarr import create_ome_zarr
from volseg.data.open_volume import open_chunked_volume
from volseg.errors import UserError
from volseg.inferers.sliding_window import BlendedSlidingWindow
from volseg.instances.decoding import Decoding, decode_instances
from volseg.weights import save_weights

ROOT = Path(__file__).resolve().parents[3]
SHAPE, BLOCK_SHAPE = (10, 40, 56), (4, 16, 24)
WINDOWS = BlendedSlidingWindow((6, 32, 32))
FIRST = Decoding(mask_threshold=0.6, boundary_threshold=0.9, min_size=4)
SECOND = replace(FIRST, mask_threshold=0.8, min_size=2)
THIRD = replace(FIRST, method="watershed", mask_threshold=0.8, foreground_threshold=0.5, halo=(2, 8, 8))


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A volume and a network whose mask is high where it is bright."""
    folder = tmp_path_factory.mktemp("given")
    noise = torch.rand(1, 1, 4, 8, 10, generator=torch.Generator().manual_seed(0))
    smooth = nn.functional.interpolate(noise, SHAPE, mode="trilinear")[0, 0]
    with create_ome_zarr(folder / "cells.ome.zarr", SHAPE, np.uint8, (30, 8, 8), chunks=(4, 16, 16)) as voxels:
        voxels[:] = (255 * smooth).to(torch.uint8).numpy()
    convolution = nn.Conv3d(1, 2, 3, padding=1)
    with torch.no_grad():
        convolution.weight[0], convolution.weight[1] = 0.4, -0.4
        convolution.bias[:] = torch.tensor([-5.0, 3.0])
    save_weights(folder / "model.pt", convolution, {})
    network = WorkerNetwork.of(convolution, folder / "model.pt", device="cpu", runtime="eager")
    return VolumeOpener.of(folder / "cells.ome.zarr"), network


@pytest.fixture
def segment(given, tmp_path):
    """``segment(decoding, block_shape)`` into ``tmp_path / "out"``."""

    def run(decoding, block_shape=BLOCK_SHAPE, output=tmp_path / "out", keep_probabilities=True, **options):
        return segment_blockwise(
            VolumePrediction(*given, WINDOWS, BLOCK_SHAPE, **options), output, decoding, block_shape, workers=0,
            progress=False, keep_probabilities=keep_probabilities,
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def probabilities(given, tmp_path_factory) -> Path:
    """A folder of results of the first decoding, with its probabilities."""
    output = tmp_path_factory.mktemp("first") / "out"
    segment_blockwise(
        VolumePrediction(*given, WINDOWS, BLOCK_SHAPE), output, FIRST, BLOCK_SHAPE, workers=0, progress=False,
        keep_probabilities=True,
    )  # fmt: skip
    return output


@pytest.fixture
def out(probabilities, tmp_path) -> Path:
    return shutil.copytree(probabilities, tmp_path / "out")


def contents(folder: Path) -> dict[str, bytes]:
    """Files of the results by their names, without the manifests, whose archives hold the time of writing."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if "finished/" not in name}


def written(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name[0] != "."}


def expected_ids(out: Path, decoding) -> np.ndarray:
    mask, boundary = (open_chunked_volume(out / f"probabilities/{name}.ome.zarr")[:] for name in ("mask", "boundary"))
    return decode_instances(mask, boundary, decoding)


@pytest.mark.parametrize(("decoding", "block_shape"), [(SECOND, BLOCK_SHAPE), (SECOND, (10, 20, 17)), (THIRD, SHAPE)])
def test_other_options_decode_the_kept_probabilities_anew(segment, out, tmp_path, caplog, decoding, block_shape):
    predicted = written(out / "probabilities" / "mask.ome.zarr" / "0")
    first = json.loads((out / "statistics.json").read_text())
    with caplog.at_level(logging.INFO, "volseg.blockwise.segmentation"):
        second = segment(decoding, block_shape)
    assert "its probabilities are used again" in caplog.text
    assert "mask_threshold 0.8" in caplog.text
    assert written(out / "probabilities" / "mask.ome.zarr" / "0") == predicted
    assert np.array_equal(open_chunked_volume(out / "instances.ome.zarr")[:], expected_ids(out, decoding))
    assert second["instances"] != first["instances"]
    segment(decoding, block_shape, tmp_path / "fresh")
    assert contents(out) == contents(tmp_path / "fresh")


def test_options_without_effect_decode_nothing_anew(segment, out):
    before = written(out)
    segment(replace(FIRST, foreground_threshold=0.3, halo=(1, 1, 1)))
    assert written(out) == before


def test_probabilities_that_were_not_kept_are_one_line(segment, out, caplog):
    segment(FIRST, keep_probabilities=False)
    assert not (out / "probabilities").exists()
    before = written(out)
    with pytest.raises(UserError, match=r"with min_size 4, got min_size 5, .*not kept; .*--keep_prob") as e:
        segment(replace(FIRST, min_size=5))
    assert "\n" not in str(e.value)
    segment(FIRST)
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        f"{out}: the run is complete, and its probabilities were not kept"
    ]
    assert written(out) == before


def test_what_a_removal_left_does_not_pass_for_probabilities(segment, out):
    """Probabilities are removed after their manifest, so that without all of it they are none."""
    next((out / "probabilities" / "finished" / "prediction").iterdir()).unlink()
    with pytest.raises(UserError, match="were not kept"):
        segment(SECOND)


def test_another_prediction_is_still_refused(segment, out):
    with pytest.raises(UserError, match="grey_range"):
        segment(FIRST, grey_range=GreyRange(0, 128))


RUN = """
import json, sys
from torch import nn
from volseg.blockwise.segmentation import segment_blockwise
from volseg.blockwise.volume_opener import VolumeOpener
from volseg.blockwise.volume_prediction import VolumePrediction
from volseg.blockwise.worker_network import WorkerNetwork
from volseg.inferers.sliding_window import BlendedSlidingWindow
from volseg.instances.decoding import Decoding

volume, weights, output, decoding = sys.argv[1:]
network = WorkerNetwork.of(nn.Conv3d(1, 2, 3, padding=1), weights, device="cpu", runtime="eager")
prediction = VolumePrediction(VolumeOpener(volume), network, BlendedSlidingWindow((6, 32, 32)), (4, 16, 24))
segment_blockwise(prediction, output, Decoding(**json.loads(decoding)), (4, 16, 24), workers=0, progress=False,
                  keep_probabilities=True)
"""


@pytest.fixture(scope="module")
def killed(given, probabilities, tmp_path_factory) -> Path:
    """The same, and what a second decoding left when it was killed."""
    out = shutil.copytree(probabilities, tmp_path_factory.mktemp("killed") / "out")
    volume, network = given
    command = [sys.executable, "-c", RUN, volume.location, network.weights, str(out), json.dumps(asdict(SECOND))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    finished = out / "decoding" / "finished"
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 600
        while len(list((finished / "components").glob("*.npz"))) < 5:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.0005)
        process.kill()
    return out.rename(out.with_name("killed"))


@pytest.mark.parametrize("afterwards", [SECOND, FIRST, THIRD], ids=["the same", "the first", "a third"])
def test_a_second_decoding_that_was_killed(segment, killed, tmp_path, afterwards):
    """It is gone on with; with options that are not its own it is started over."""
    out = killed.with_name("out")  # a run is known by the paths of its arrays
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(killed, out)
    assert (out / "decoding").is_dir()
    assert not (out / "statistics.json").exists()  # of the first decoding
    segment(afterwards, output=out)
    fresh = tmp_path / "fresh"
    segment(afterwards, output=fresh)
    assert contents(out) == contents(fresh)
    assert not (out / "decoding").exists()
