# SPDX-License-Identifier: Apache-2.0
"""Prediction and decoding of volumes on disk, by blocks and in workers."""

from __future__ import annotations

import dataclasses
import functools
import http.server
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed import LocalCluster
from torch import nn

from volseg.blockwise.cluster import connect
from volseg.blockwise.grey_range import GreyRange
from volseg.blockwise.segmentation import segment_blockwise
from volseg.blockwise.volume_opener import VolumeOpener, replace_sections
from volseg.blockwise.volume_prediction import VolumePrediction, predict_blockwise
from volseg.blockwise.worker_network import WorkerNetwork
from volseg.data.ome_zarr import create_ome_zarr
from volseg.data.open_volume import open_chunked_volume
from volseg.errors import UserError
from volseg.inferers.sliding_window import BlendedSlidingWindow
from volseg.instances.decoding import Decoding, decode_instances
from volseg.weights import save_weights

SHAPE = (10, 40, 56)
VOXEL_SIZE_NM = (30, 8, 8)
BLOCK_SHAPE = (4, 16, 24)
WINDOWS = BlendedSlidingWindow((6, 32, 32))
DECODING = Decoding(mask_threshold=0.6, boundary_threshold=0.9, min_size=4)


def image() -> np.ndarray:
    """Smooth bright and dark places."""
    noise = torch.rand(1, 1, 4, 8, 10, generator=torch.Generator().manual_seed(0))
    smooth = nn.functional.interpolate(noise, SHAPE, mode="trilinear")[0, 0]
    return (255 * smooth).to(torch.uint8).numpy()


@pytest.fixture
def volume(tmp_path):
    path = tmp_path / "cells.ome.zarr"
    with create_ome_zarr(path, SHAPE, np.uint8, VOXEL_SIZE_NM, chunks=(4, 16, 16)) as voxels:
        voxels[:] = image()
    return VolumeOpener.of(path)


@pytest.fixture
def network(tmp_path):
    """A convolution whose first output is high where the image is bright, and second where it is dark."""
    convolution = nn.Conv3d(1, 2, 3, padding=1)
    with torch.no_grad():
        convolution.weight[0], convolution.weight[1] = 0.4, -0.4
        convolution.bias[:] = torch.tensor([-5.0, 3.0])
    save_weights(tmp_path / "model.pt", convolution, {})
    return WorkerNetwork.of(convolution, tmp_path / "model.pt", device="cpu", runtime="eager")


def whole_volume(network: WorkerNetwork, voxels: np.ndarray) -> np.ndarray:
    """Bytes of both channels."""
    built, _ = network.build()
    with torch.no_grad():
        return WINDOWS(torch.from_numpy(voxels)[None, None] / 255, built)[0].mul(255).to(torch.uint8).numpy()


def read(path) -> np.ndarray:
    return open_chunked_volume(path)[:]


def files_of(folder) -> dict:
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("block_shape", [(100, 100, 100), BLOCK_SHAPE, (3, 17, 40)])
def test_predicted_bytes_are_those_of_the_whole_volume(volume, network, tmp_path, block_shape):
    prediction = VolumePrediction(volume, network, WINDOWS, block_shape, voxel_size_nm=VOXEL_SIZE_NM)
    images = predict_blockwise(prediction, tmp_path / "out")
    stored = open_chunked_volume(images["boundary"])
    assert (stored.dtype, stored.voxel_size_nm) == (np.uint8, VOXEL_SIZE_NM)
    found = np.stack([read(images[name]) for name in ("mask", "boundary")]).astype(int)
    # a sum that differs in its last bit may fall on the other side of a whole number
    assert np.abs(found - whole_volume(network, image())).max() <= 1
    assert (found != whole_volume(network, image())).mean() < 1e-3


@pytest.mark.parametrize("block_shape", [(100, 100, 100), BLOCK_SHAPE, (3, 17, 40)])
def test_instances_are_those_of_the_whole_volume(volume, network, tmp_path, block_shape):
    prediction = VolumePrediction(volume, network, WINDOWS, block_shape)
    statistics = segment_blockwise(
        prediction, tmp_path / "out", DECODING, block_shape, workers=0, keep_probabilities=True
    )
    mask, boundary = (read(tmp_path / "out" / "probabilities" / f"{name}.ome.zarr") for name in ("mask", "boundary"))
    expected = decode_instances(mask, boundary, DECODING)
    assert np.array_equal(read(tmp_path / "out" / "instances.ome.zarr"), expected)
    assert statistics["instances"] == np.unique(expected[expected > 0]).size > 3


def test_only_results_stay_and_a_second_run_changes_nothing(volume, network, tmp_path):
    def run():
        prediction = VolumePrediction(volume, network, WINDOWS, BLOCK_SHAPE)
        return segment_blockwise(prediction, tmp_path / "out", DECODING, BLOCK_SHAPE, workers=0)

    first = run()
    names = {"instances.ome.zarr", "instances.csv", "instances.parquet", "statistics.json", "finished"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.name != ".lock"}
    assert run() == first
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_a_run_that_was_stopped_does_what_is_missing(volume, network, tmp_path):
    predict_blockwise(VolumePrediction(volume, network, WINDOWS, BLOCK_SHAPE), tmp_path / "whole")
    expected = files_of(tmp_path / "whole")
    finished = sorted((tmp_path / "whole" / "finished" / "prediction").iterdir())
    for file in finished[5:9]:
        file.unlink()
    chunk = tmp_path / "whole" / "mask.ome.zarr" / "0" / "c" / "0" / "0" / "0"
    untouched = chunk.stat().st_mtime_ns
    predict_blockwise(VolumePrediction(volume, network, WINDOWS, BLOCK_SHAPE), tmp_path / "whole")
    found = files_of(tmp_path / "whole")
    assert found.keys() == expected.keys()
    # archives hold the time of writing
    assert all(found[name] == expected[name] for name in expected if name.suffix != ".npz")
    assert chunk.stat().st_mtime_ns == untouched


def test_other_weights_in_the_same_folder_are_refused(volume, network, tmp_path):
    predict_blockwise(VolumePrediction(volume, network, WINDOWS, BLOCK_SHAPE), tmp_path / "out")
    save_weights(network.weights, nn.Conv3d(1, 2, 3, padding=1), {})
    with pytest.raises(UserError, match="weights_sha256"):
        predict_blockwise(VolumePrediction(volume, network, WINDOWS, BLOCK_SHAPE), tmp_path / "out")


def test_workers_build_the_network_from_its_configuration(volume, network, tmp_path):
    """One process of Dask does what this one does."""
    predict_blockwise(VolumePrediction(volume, network, WINDOWS, BLOCK_SHAPE), tmp_path / "here")
    with connect(workers=1) as client:
        predict_blockwise(VolumePrediction(volume, network, WINDOWS, BLOCK_SHAPE), tmp_path / "there", client)
    for name in ("mask.ome.zarr", "boundary.ome.zarr"):
        assert files_of(tmp_path / "here" / name) == files_of(tmp_path / "there" / name)


def test_every_worker_on_this_machine_gets_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr("volseg.blockwise.cluster.visible_gpus", lambda: ["3", "5"])
    with connect(gpus=True) as client:
        client.wait_for_workers(2)
        seen = client.run(os.getenv, "CUDA_VISIBLE_DEVICES")
        assert sorted(seen.values()) == ["3", "5"]
    with pytest.raises(UserError, match="number of GPUs, 2, got 3"), connect(workers=3, gpus=True):
        pass


def test_softmax_networks_and_channels_that_are_left_out(volume, network, tmp_path):
    images = predict_blockwise(
        VolumePrediction(volume, network, WINDOWS, BLOCK_SHAPE, (None, "lobe"), GreyRange(0, 255), "softmax"), tmp_path
    )
    assert list(images) == ["lobe"]
    built, _ = network.build()
    with torch.no_grad():
        sigmoids = WINDOWS(torch.from_numpy(image())[None, None] / 255, built)[0]
    expected = torch.softmax(torch.logit(sigmoids.double()), 0)[1]
    assert np.abs(read(images["lobe"]) - 255 * expected.numpy()).max() < 1 + 255e-3


def test_a_network_with_another_number_of_outputs_is_one_line(volume, network, tmp_path):
    with pytest.raises(UserError, match=r"block 0 .*each of the 2 outputs, got 3"):
        predict_blockwise(VolumePrediction(volume, network, WINDOWS, BLOCK_SHAPE, ("a", "b", "c")), tmp_path)


def test_weights_that_are_missing_are_told_before_work(volume, network, tmp_path):
    lost = dataclasses.replace(network, weights=str(tmp_path / "lost.pt"))
    with pytest.raises(UserError, match=r"lost\.pt: no weights there"):
        predict_blockwise(VolumePrediction(volume, lost, WINDOWS, BLOCK_SHAPE), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_options_that_are_none_are_told_before_work(volume, network, tmp_path):
    def refused(message, block_shape, predicted_shape=BLOCK_SHAPE):
        with pytest.raises(UserError, match=message):
            segment_blockwise(
                VolumePrediction(volume, network, WINDOWS, predicted_shape), tmp_path / "out", DECODING, block_shape,
                workers=0,
            )  # fmt: skip
        assert not (tmp_path / "out").exists()

    refused(r"^block_shape .*, got \(4, 0, 24\)$", (4, 0, 24))
    refused(r"^block_shape .*, got \(4, 24\)$", BLOCK_SHAPE, (4, 24))


def test_a_damaged_chunk_of_probabilities_is_mended_by_the_file_that_the_line_names(volume, network, tmp_path):
    def run(name, method="connected_components"):
        decoding = dataclasses.replace(DECODING, method=method)
        segment_blockwise(
            VolumePrediction(volume, network, WINDOWS, BLOCK_SHAPE), tmp_path / name, decoding, BLOCK_SHAPE, workers=0,
            keep_probabilities=True, progress=False,
        )  # fmt: skip

    run("out")
    chunk = max((tmp_path / "out" / "probabilities" / "mask.ome.zarr" / "0" / "c").rglob("*"))
    expected = chunk.read_bytes()
    chunk.write_bytes(expected[:-3])
    with pytest.raises(
        UserError, match=r"mask\.ome\.zarr/0: a chunk cannot be read.*do not remove only the chunk"
    ) as caught:
        run("out", "watershed")
    (named,) = re.findall(r"remove (\S*/probabilities/finished/prediction/\d+\.npz) and run again", str(caught.value))
    Path(named).unlink()
    run("out", "watershed")
    run("whole", "watershed")
    assert chunk.read_bytes() == expected
    for name in ("instances.ome.zarr", "probabilities/mask.ome.zarr"):
        assert files_of(tmp_path / "out" / name) == files_of(tmp_path / "whole" / name)


def test_a_scheduler_file_that_nobody_writes_is_one_line(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr("volseg.blockwise.cluster.CONNECT_TIMEOUT_S", 0.3)
    missing = str(tmp_path / "typo.json")
    with (
        caplog.at_level(logging.INFO, "volseg.blockwise.cluster"),
        pytest.raises(UserError, match=r"nothing wrote \S*typo\.json within 0\.3 s"),
        connect(missing),
    ):
        pass
    assert f"waiting up to 0.3 s for a scheduler to write {missing}" in caplog.text


def test_a_scheduler_that_is_just_starting_is_waited_for(tmp_path):
    with connect(workers=1) as client:
        file = tmp_path / "scheduler.json"
        identity = json.dumps({"address": client.scheduler.address})
        threading.Timer(0.5, file.write_text, [identity]).start()
        with connect(str(file)) as second:
            assert second.scheduler.address == client.scheduler.address


def test_a_cluster_without_the_package_is_one_line(monkeypatch):
    monkeypatch.setattr("volseg.blockwise.cluster.PACKAGE", "no_such_package")
    with connect(workers=1) as client:
        scheduler, (worker,) = client.scheduler.address, client.scheduler_info()["workers"]
        with (
            pytest.raises(UserError, match="must find the package no_such_package") as caught,
            connect(scheduler),
        ):
            pass
    assert f"missing at {scheduler}, {worker}; install it there" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_cluster_whose_workers_are_still_to_come(caplog):
    with (
        LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0") as cluster,
        caplog.at_level(logging.INFO, "volseg.blockwise.cluster"),
        connect(cluster.scheduler_address),
    ):
        pass
    assert "waiting for the first worker" in caplog.text


def test_a_scheduler_that_is_none_is_one_line(monkeypatch):
    monkeypatch.setattr("volseg.blockwise.cluster.CONNECT_TIMEOUT_S", 1)
    with pytest.raises(UserError, match="no Dask scheduler at tcp://127"), connect("tcp://127.0.0.1:1"):
        pass


def test_volumes_are_read_from_a_web_server(volume, network, tmp_path):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        remote = VolumeOpener.of(f"http://127.0.0.1:{server.server_port}/cells.ome.zarr")
        assert remote.source().voxel_size_nm == VOXEL_SIZE_NM
        there = predict_blockwise(VolumePrediction(remote, network, WINDOWS, SHAPE), tmp_path / "there")
        server.shutdown()
    here = predict_blockwise(VolumePrediction(volume, network, WINDOWS, SHAPE), tmp_path / "here")
    assert np.array_equal(read(there["mask"]), read(here["mask"]))


def test_results_are_written_to_other_storages(volume, network, tmp_path):
    import fsspec

    prediction = VolumePrediction(volume, network, WINDOWS, BLOCK_SHAPE)
    segment_blockwise(prediction, "memory://results/cells", DECODING, BLOCK_SHAPE, workers=0)
    storage = fsspec.filesystem("memory")
    assert json.loads(storage.cat_file("/results/cells/statistics.json"))["instances"] > 3
    assert not storage.exists("/results/cells/probabilities")


def middle(network, before, after, weight):
    """Stands in for what makes a section."""
    return (before * (1 - weight) + after * weight).astype(before.dtype)


def test_replaced_sections_are_read_in_place_of_the_volumes_own(volume, network, tmp_path):
    function = f"{middle.__module__}.middle"
    plan = [(3, 2, 5), (4, 2, 5)]
    replaced = replace_sections(volume, plan, tmp_path / "restored", network, function, {"weight": 0.5})
    expected = image()
    expected[3] = expected[4] = middle(None, expected[2], expected[5], 0.5)
    assert np.array_equal(replaced()[0:10, 0:40, 0:56], expected)
    assert np.array_equal(replaced()[4:7, 10:20, 5:9], expected[4:7, 10:20, 5:9])
    images = predict_blockwise(VolumePrediction(replaced, network, WINDOWS, BLOCK_SHAPE), tmp_path / "out")
    assert np.abs(read(images["mask"]).astype(int) - whole_volume(network, expected)[0]).max() <= 1


RUN = """
import sys, time
from torch import nn
from volseg.blockwise.volume_opener import VolumeOpener
from volseg.blockwise.volume_prediction import VolumePrediction, predict_blockwise
from volseg.blockwise.worker_network import WorkerNetwork
from volseg.inferers.sliding_window import BlendedSlidingWindow

class Slow(BlendedSlidingWindow):
    def axes(self, shape):
        time.sleep(0.05)
        return super().axes(shape)

network = WorkerNetwork.of(nn.Conv3d(1, 2, 3, padding=1), sys.argv[2], device="cpu", runtime="eager")
predict_blockwise(VolumePrediction(VolumeOpener(sys.argv[1]), network, Slow((6, 32, 32)), (4, 16, 24)), sys.argv[3])
"""


def test_a_run_that_was_killed_goes_on_and_gives_the_same_bytes(volume, network, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(RUN)
    command = [sys.executable, script, volume.location, network.weights, tmp_path / "out"]
    finished = tmp_path / "out" / "finished" / "prediction"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment) as process:
        deadline = time.monotonic() + 600
        while not finished.is_dir() or len(list(finished.glob("*.npz"))) < 6:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
    before = {file: file.stat().st_mtime_ns for file in finished.glob("*.npz")}
    assert 6 <= len(before) < 27
    predict_blockwise(VolumePrediction(volume, network, WINDOWS, BLOCK_SHAPE), tmp_path / "out")
    assert before == {file: file.stat().st_mtime_ns for file in before}
    predict_blockwise(VolumePrediction(volume, network, WINDOWS, BLOCK_SHAPE), tmp_path / "whole")
    for name in ("mask.ome.zarr", "boundary.ome.zarr"):
        assert files_of(tmp_path / "out" / name) == files_of(tmp_path / "whole" / name)
