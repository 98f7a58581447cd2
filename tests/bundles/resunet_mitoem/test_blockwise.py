# SPDX-License-Identifier: Apache-2.0
"""inference_blockwise.json from end to end, at a size for tests, and what is this bundle's own in it."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from resunet_mitoem.grey_range import find_grey_range
from resunet_mitoem.intensity import ScaleGreyValuesd
from resunet_mitoem.interpolation import SectionInterpolationNetwork
from resunet_mitoem.restore import restore_sections

from volseg.data.chunked_volume import open_chunked_volume
from volseg.data.ome_zarr import create_ome_zarr
from volseg.postprocessing import decode_instances
from volseg.sliding_window import BlendedSlidingWindow
from volseg.weights import save_weights

WINDOW = (8, 32, 48)
BLOCK_SHAPE = (5, 24, 32)


@pytest.fixture(scope="module")
def image(bundle) -> np.ndarray:
    return open_chunked_volume(bundle.phantom["image"])[:]


@pytest.fixture(scope="module")
def probabilities(bundle, image) -> np.ndarray:
    """Bytes of mask and boundary of the whole volume."""
    with torch.no_grad():
        predicted = BlendedSlidingWindow(WINDOW)(torch.from_numpy(image)[None, None] / 255, bundle.network())[0]
    return predicted.mul(255).to(torch.uint8).numpy()


@pytest.fixture(scope="module")
def thresholds(probabilities) -> dict[str, float]:
    """Between which an untrained network's probabilities have objects."""
    mask, boundary = (float(np.percentile(channel, 60)) for channel in probabilities)
    return {"mask_threshold": (mask + 0.5) / 255, "boundary_threshold": (boundary + 1.5) / 255, "min_size": 20}


@pytest.fixture
def segment(monai_bundle, bundle, thresholds, tmp_path):
    """Run inference_blockwise.json, in one process unless told otherwise; the completed process."""

    def run(*arguments: object, config: object = bundle.configs / "inference_blockwise.json", weights=bundle.weights):
        values = {
            "weights": weights, "output_dir": tmp_path / "out", "device": "cpu", "runtime": "eager", "workers": 0,
            "window": list(WINDOW), "block_shape": [6, 20, 30],
            "prediction_block_shape": list(BLOCK_SHAPE), "keep_probabilities": True, **thresholds,
        }  # fmt: skip
        given = [argument for key, value in values.items() for argument in (f"--{key}", value)]
        return monai_bundle("run", "--config_file", config, *given, *bundle.network_overrides, *arguments)

    return run


def results(folder):
    names = ("probabilities/mask", "probabilities/boundary", "instances")
    return (open_chunked_volume(folder / f"{name}.ome.zarr") for name in names)


def test_blocks_give_what_the_whole_volume_gives(segment, bundle, probabilities, thresholds, tmp_path):
    process = segment("--input", bundle.phantom["image"])
    assert process.returncode == 0, process.stderr
    mask, boundary, instances = results(tmp_path / "out" / "test_0")
    assert np.abs(np.stack([mask[:], boundary[:]]).astype(int) - probabilities).max() <= 1
    expected = decode_instances(mask[:], boundary[:], **thresholds)
    assert np.array_equal(instances[:], expected)
    assert instances.voxel_size_nm == open_chunked_volume(bundle.phantom["image"]).voxel_size_nm
    with (tmp_path / "out" / "test_0" / "instances.csv").open(encoding="utf-8") as file:
        assert {int(row["id"]) for row in csv.DictReader(file)} == set(np.unique(expected)) - {0}
    assert len(np.unique(expected)) > 2
    assert (tmp_path / "out" / "test_0" / "preview.png").read_bytes().startswith(b"\x89PNG")


def test_a_worker_of_dask_and_a_phantom_without_input(segment, tmp_path, bundle):
    process = segment(
        "--workers", 1, "--phantom_dir", tmp_path / "phantom", "--phantom_shape", list(bundle.small.phantom_shape)
    )
    assert process.returncode == 0, process.stderr
    assert "dashboard: http://127.0.0.1" in process.stdout + process.stderr
    (folder,) = (tmp_path / "out").iterdir()
    mask, boundary, instances = results(folder)
    assert mask.shape == boundary.shape == instances.shape == bundle.small.phantom_shape


def test_the_overlay_of_res_unet_h_lies_over_it(segment, bundle, tmp_path):
    from resunet_mitoem.network import ResUNetH

    weights = tmp_path / "model_h.pt"
    save_weights(weights, ResUNetH(**bundle.small.arguments), bundle.small.record)
    configs = [str(bundle.configs / name) for name in ("inference_blockwise.json", "inference_h.json")]
    process = segment("--input", bundle.phantom["image"], config=configs, weights=weights)
    assert process.returncode == 0, process.stderr
    recorded = json.loads((tmp_path / "out" / "test_0" / "finished" / "run.json").read_text())
    assert recorded["network"] == "resunet_mitoem.network.ResUNetH"


def test_noisy_sections_are_replaced_first(segment, bundle, image, tmp_path):
    weights = tmp_path / "interpolation.pt"
    network = SectionInterpolationNetwork((4, 6))
    save_weights(weights, network, {})
    process = segment(
        "--input", bundle.phantom["image"], "--restore", True, "--sections", "[4]", "--restoration_weights", weights,
        "--restorer#network#widths", "[4,6]",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    restored = restore_sections(image, network, [4])
    with torch.no_grad():
        expected = BlendedSlidingWindow(WINDOW)(torch.from_numpy(restored)[None, None] / 255, bundle.network())[0, 0]
    mask, _, _ = results(tmp_path / "out" / "test_0")
    assert np.abs(mask[:].astype(int) - expected.mul(255).to(torch.uint8).numpy()).max() <= 1
    with (tmp_path / "out" / "test_0" / "restoration" / "sections.csv").open(encoding="utf-8") as file:
        assert [row["section"] for row in csv.DictReader(file) if row["noisy"] == "1"] == ["4"]


def test_other_parameters_in_the_same_folder_are_one_line(segment, bundle, refused_line):
    assert segment("--input", bundle.phantom["image"]).returncode == 0
    refused_line(segment("--input", bundle.phantom["image"], "--min_size", 21), "min_size", "21", "another")


def test_weights_of_another_network_are_one_line(segment, bundle, refused_line, tmp_path):
    weights = tmp_path / "other.pt"
    save_weights(weights, SectionInterpolationNetwork((4, 6)), bundle.small.record)
    refused_line(segment("--input", bundle.phantom["image"], weights=weights), "other.pt")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def refused_line():
    def check(process, *words: str) -> None:
        assert process.returncode == 1, process.stderr
        lines = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, process.stderr
        assert all(word in lines[0] for word in words), lines[0]
        assert "Traceback" not in process.stderr + process.stdout

    return check


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_grey_range_is_that_of_the_whole_volume(tmp_path, dtype):
    values = np.random.default_rng(0).gamma(2, 20, (6, 20, 30)).clip(0, 255).astype(dtype)
    if dtype == np.float32:
        values[0, 0, :3] = np.nan
    with create_ome_zarr(tmp_path / "a.ome.zarr", values.shape, dtype, None, chunks=(2, 8, 8)) as array:
        array[:] = values
    stored = torch.from_numpy(values.astype(np.int32) if dtype == np.uint16 else values)
    whole = ScaleGreyValuesd("image")({"image": stored[None]})["image"][0]
    scaled = find_grey_range(open_chunked_volume(tmp_path / "a.ome.zarr"))(values[2:4])
    np.testing.assert_allclose(scaled, whole[2:4], atol=1e-6)


def test_grey_range_of_a_large_volume_comes_from_some_of_its_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("resunet_mitoem.grey_range.SAMPLE", 2000)
    monkeypatch.setattr("resunet_mitoem.grey_range.SAMPLED_CHUNKS", 16)
    values = np.random.default_rng(0).integers(100, 60000, (8, 40, 40)).astype(np.uint16)
    with create_ome_zarr(tmp_path / "a.ome.zarr", values.shape, np.uint16, None, chunks=(2, 8, 8)) as array:
        array[:] = values
    volume = open_chunked_volume(tmp_path / "a.ome.zarr")
    found = find_grey_range(volume)
    assert found == find_grey_range(volume)
    low, high = np.percentile(values, (0.1, 99.9))
    assert abs(found.low - low) < 600
    assert abs(found.high - high) < 600


def test_grey_images_stored_in_colour_are_8_bit_images(tmp_path):
    values = np.arange(6 * 4 * 4, dtype=np.uint32).reshape(6, 4, 4) * 0x010101
    with create_ome_zarr(tmp_path / "a.ome.zarr", values.shape, np.uint32, None) as array:
        array[:] = values
    scaled = find_grey_range(open_chunked_volume(tmp_path / "a.ome.zarr"))(values)
    np.testing.assert_allclose(scaled.flatten(), np.arange(96) / 255, atol=1e-6)
