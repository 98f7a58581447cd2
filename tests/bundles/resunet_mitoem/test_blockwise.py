# SPDX-License-Identifier: Apache-2.0
"""inference_blockwise.json from end to end, at a size for tests, and what is this bundle's own in it."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from resunet_mitoem.blockwise import Restorer
from resunet_mitoem.intensity import ScaleGreyValuesd, find_grey_range
from resunet_mitoem.interpolation import SectionInterpolationNetwork
from resunet_mitoem.restoration import restore_sections

from volseg.blockwise.volume_opener import VolumeOpener
from volseg.blockwise.worker_network import WorkerNetwork
from volseg.data.ome_zarr import create_ome_zarr
from volseg.data.open_volume import open_chunked_volume
from volseg.inferers.sliding_window import BlendedSlidingWindow
from volseg.instances.decoding import Decoding, decode_instances
from volseg.transforms.decode_instances import DecodeInstancesd
from volseg.transforms.load_em_volume import LoadImageChunkedVolumed
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
        scaled = find_grey_range(open_chunked_volume(bundle.phantom["image"]))(image)
        predicted = BlendedSlidingWindow(WINDOW)(scaled[None, None], bundle.network())[0]
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
    expected = decode_instances(mask[:], boundary[:], Decoding(**thresholds))
    assert np.array_equal(instances[:], expected)
    assert instances.voxel_size_nm == open_chunked_volume(bundle.phantom["image"]).voxel_size_nm
    with (tmp_path / "out" / "test_0" / "instances.csv").open(encoding="utf-8") as file:
        assert {int(row["id"]) for row in csv.DictReader(file)} == set(np.unique(expected)) - {0}
    assert len(np.unique(expected)) > 2
    assert (tmp_path / "out" / "test_0" / "preview.png").read_bytes().startswith(b"\x89PNG")


def test_blank_parts_are_as_in_the_whole_volume(segment, bundle, image, thresholds, tmp_path):
    """A border, a section and whole blocks without tissue; nothing grows into them."""
    spoilt = image.copy()
    spoilt[:, :25] = spoilt[:, :, -10:] = spoilt[4] = 0
    with create_ome_zarr(tmp_path / "test_0.ome.zarr", spoilt.shape, np.uint8, None, chunks=(2, 8, 8)) as array:
        array[:] = spoilt
    scaled = ScaleGreyValuesd("image", float("nan"))({"image": spoilt[None]})["image"]
    with torch.no_grad():
        predicted = BlendedSlidingWindow(WINDOW)(scaled[None], bundle.network())[0]
    expected = decode_instances(*predicted.mul(255).to(torch.uint8).numpy(), Decoding(**thresholds))
    process = segment("--input", tmp_path / "test_0.ome.zarr")
    assert process.returncode == 0, process.stderr
    *_, instances = results(tmp_path / "out" / "test_0")
    assert np.array_equal(instances[:], expected)
    assert expected.any()
    assert not instances[:][spoilt == 0].any()
    assert "of the voxels are blank" in process.stderr
    statistics = json.loads((tmp_path / "out" / "test_0" / "statistics.json").read_text())
    assert "of the voxels are blank" in statistics["warnings"][0]


@pytest.mark.parametrize("decoding", ["connected_components", "watershed"])
def test_blocks_of_another_voxel_size_give_what_the_whole_volume_gives(
    segment, bundle, image, thresholds, decoding, tmp_path
):
    """Sections and columns that are thinner than the weights learnt, rows that are wider; and a blank corner."""
    spoilt, size_nm = image.copy(), (24, 40, 20)
    spoilt[2:5, :20, -20:] = 0
    with create_ome_zarr(tmp_path / "test_0.ome.zarr", spoilt.shape, np.uint8, size_nm, chunks=(2, 8, 8)) as array:
        array[:] = spoilt
    load = LoadImageChunkedVolumed("image", network_voxel_size_nm=bundle.small.record["voxel_size_nm"])
    seen = ScaleGreyValuesd("image", float("nan"))(load({"image": tmp_path / "test_0.ome.zarr"}))
    assert seen["image"].shape == (1, 10, 60, 40)
    with torch.no_grad():
        predicted = BlendedSlidingWindow(WINDOW)(seen["image"][None], bundle.network())[0]
    options = thresholds | {"method": decoding, "foreground_threshold": thresholds["mask_threshold"], "min_size": 5}
    bytes_of_all = predicted.mul(255).to(torch.uint8).numpy()
    given = ("--decoding", decoding, "--foreground_threshold", options["foreground_threshold"], "--min_size", 5)
    process = segment("--input", tmp_path / "test_0.ome.zarr", "--halo", [10, 60, 40], *given)
    assert process.returncode == 0, process.stderr
    assert "12x48x64 to 10x60x40 voxels" in process.stderr + process.stdout
    mask, boundary, instances = results(tmp_path / "out" / "test_0")
    assert np.abs(np.stack([mask[:], boundary[:]]).astype(int) - bytes_of_all).max() <= 1
    stored = torch.from_numpy(np.stack([mask[:], boundary[:]]))
    expected = DecodeInstancesd(decoding=Decoding(**options))(seen | {"pred": stored})["pred"][0].numpy()
    assert len(np.unique(expected)) > 3
    assert not expected[spoilt == 0].any()
    np.testing.assert_array_equal(instances[:], expected)
    assert instances.voxel_size_nm == size_nm
    assert mask.voxel_size_nm == pytest.approx((28.8, 32, 32))
    assert mask.origin_nm == pytest.approx((2.4, -4, 6))
    with (tmp_path / "out" / "test_0" / "instances.csv").open(encoding="utf-8") as file:
        voxels = {int(row["id"]): int(row["voxels"]) for row in csv.DictReader(file)}
    ids, counts = np.unique(expected[expected > 0], return_counts=True)
    assert voxels == dict(zip(ids.tolist(), counts.tolist(), strict=True))


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
        "--input", bundle.phantom["image"], "--sections", "[4]", "--restoration_weights", weights,
        "--interpolation_def#widths", "[4,6]",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    restored = restore_sections(image, network, [4])
    with torch.no_grad():
        scaled = find_grey_range(open_chunked_volume(bundle.phantom["image"]))(restored)
        expected = BlendedSlidingWindow(WINDOW)(scaled[None, None], bundle.network())[0, 0]
    mask, _, _ = results(tmp_path / "out" / "test_0")
    assert np.abs(mask[:].astype(int) - expected.mul(255).to(torch.uint8).numpy()).max() <= 1
    with (tmp_path / "out" / "test_0" / "restoration" / "sections.csv").open(encoding="utf-8") as file:
        assert [row["section"] for row in csv.DictReader(file) if row["noisy"] == "1"] == ["4"]


def test_another_prediction_in_the_same_folder_is_one_line(segment, bundle, refused_line):
    assert segment("--input", bundle.phantom["image"]).returncode == 0
    refused_line(segment("--input", bundle.phantom["image"], "--window", [8, 32, 32]), "window", "another run")


def test_another_decoding_takes_the_probabilities_that_were_kept(segment, bundle, refused_line, thresholds, tmp_path):
    arguments = ("--input", bundle.phantom["image"], "--min_size")
    assert segment(*arguments, 40).returncode == 0
    process = segment(*arguments, 21, "--keep_probabilities", False)
    assert process.returncode == 0, process.stderr
    assert "min_size 21 (was min_size 40); its probabilities are used again" in process.stdout + process.stderr
    with (tmp_path / "out" / "test_0" / "instances.csv").open(encoding="utf-8") as file:
        assert 21 <= min(int(row["voxels"]) for row in csv.DictReader(file)) < 40
    refused_line(segment(*arguments, 40), "not kept", "min_size 40", "min_size 21")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("decoding", "nonsense"),
        ("voxel_size_nm", [30, 8]),
        ("sections", 3),
        ("device", "tpu-9"),
    ],
)
def test_options_that_are_none_are_one_line_before_work(segment, bundle, refused_line, tmp_path, option, value):
    process = segment("--input", bundle.phantom["image"], "--restore", True, f"--{option}", value)
    refused_line(process, option, f"got {value!r}")
    assert not (tmp_path / "out").exists()


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
    values[:, :9] = 250  # a border
    if dtype == np.float32:
        values[0, 0, :3] = np.nan
    with create_ome_zarr(tmp_path / "a.ome.zarr", values.shape, dtype, None, chunks=(2, 8, 8)) as array:
        array[:] = values
    stored = torch.from_numpy(values.astype(np.int32) if dtype == np.uint16 else values)
    whole = ScaleGreyValuesd("image")({"image": stored[None]})["image"][0]
    scaled = find_grey_range(open_chunked_volume(tmp_path / "a.ome.zarr"))(values[2:4])
    np.testing.assert_allclose(scaled[:, 9:], whole[2:4, 9:], atol=1e-6)
    assert (whole[:, :9] == 0.5).all()


def test_grey_range_of_a_large_volume_comes_from_some_of_its_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("resunet_mitoem.intensity.SAMPLE", 2000)
    monkeypatch.setattr("resunet_mitoem.intensity.SAMPLED_CHUNKS", 16)
    values = np.random.default_rng(0).integers(100, 60000, (8, 40, 40)).astype(np.uint16)
    with create_ome_zarr(tmp_path / "a.ome.zarr", values.shape, np.uint16, None, chunks=(2, 8, 8)) as array:
        array[:] = values
    volume = open_chunked_volume(tmp_path / "a.ome.zarr")
    found = find_grey_range(volume)
    assert found == find_grey_range(volume)
    low, high = np.percentile(values, (0.1, 99.9))
    assert abs(found.low - low) < 600
    assert abs(found.high - high) < 600


def test_pieces_of_large_chunks_are_read(tmp_path, monkeypatch):
    """Chunks may be shards of gigabytes: of each a part from its middle is read, with all columns while that fits."""
    monkeypatch.setattr("resunet_mitoem.intensity.SAMPLE", 500)
    monkeypatch.setattr("resunet_mitoem.intensity.PIECE_BYTES", 2 * 320)
    values = np.zeros((8, 40, 48), np.uint16)
    values[:, 13:27] = np.random.default_rng(0).integers(100, 60000, (8, 14, 48))
    with create_ome_zarr(tmp_path / "a.ome.zarr", values.shape, np.uint16, None, chunks=(8, 40, 32)) as array:
        array[:] = values
    volume = open_chunked_volume(tmp_path / "a.ome.zarr")
    read = []
    monkeypatch.setattr(type(volume), "_read", lambda self, block: read.append(block) or values[block])
    found = find_grey_range(volume)
    # 320 voxels are 10 rows of 32; the last chunk along x has 16 columns
    assert read == [(slice(3, 4), slice(15, 25), slice(0, 32)), (slice(3, 4), slice(15, 25), slice(32, 48))]
    assert 100 <= found.low < found.high < 60000


def test_sections_are_searched_in_slabs_that_fit_into_memory(bundle, image, tmp_path, monkeypatch):
    """What is found is that of whole chunks."""
    spoilt = image.copy()
    spoilt[5] = 0
    with create_ome_zarr(tmp_path / "a.ome.zarr", spoilt.shape, np.uint8, None, chunks=spoilt.shape) as array:
        array[:] = spoilt
    weights = tmp_path / "interpolation.pt"
    save_weights(weights, SectionInterpolationNetwork((4, 6)), {})
    tables, untrained = [], SectionInterpolationNetwork((4, 6))
    for name, sections in (("whole", len(image)), ("slabs", 3), ("one", 0)):
        monkeypatch.setattr("resunet_mitoem.blockwise.SLAB_BYTES", sections * image[0].size + 1)
        restorer = Restorer(WorkerNetwork.of(untrained, weights, device="cpu", runtime="eager"))
        plan = restorer._plan(VolumeOpener.of(tmp_path / "a.ome.zarr"), str(tmp_path / name))
        assert (5, 4, 6) in plan
        tables.append((tmp_path / name / "sections.csv").read_bytes())
    assert tables[0] == tables[1] == tables[2]


def test_grey_images_stored_in_colour_are_8_bit_images(tmp_path):
    values = np.arange(6 * 4 * 4, dtype=np.uint32).reshape(6, 4, 4) * 0x010101
    with create_ome_zarr(tmp_path / "a.ome.zarr", values.shape, np.uint32, None) as array:
        array[:] = values
    scaled = find_grey_range(open_chunked_volume(tmp_path / "a.ome.zarr"))(values)
    expected = ScaleGreyValuesd("image")({"image": np.arange(96).reshape(1, 6, 4, 4)})["image"][0]
    np.testing.assert_allclose(scaled, expected, atol=1e-6)
