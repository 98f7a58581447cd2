# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from PIL import Image

from volseg.data.ome_zarr import create_ome_zarr, create_ome_zarr_label
from volseg.errors import UserError
from volseg.transforms.load_em_volume import LoadImageChunkedVolumed, check_one_shape, to_ids, to_tensor

SHAPE = (5, 6, 9)
SIZE_NM = (30.0, 8.0, 10.0)
IMAGE = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
LABEL = np.arange(270, dtype=np.uint16).reshape(SHAPE) * 240  # beyond int16


@pytest.fixture
def case(tmp_path: Path) -> dict[str, str]:
    path = tmp_path / "a.ome.zarr"
    with create_ome_zarr(path, SHAPE, np.uint8, SIZE_NM, chunks=(2, 4, 4)) as voxels:
        voxels[:] = IMAGE
    with create_ome_zarr_label(path, "mitochondria", np.uint16) as voxels:
        voxels[:] = LABEL
    return {"image": str(path), "label": str(path / "labels" / "mitochondria"), "site": "here"}


def write_h5(path: Path, voxels: np.ndarray) -> str:
    with h5py.File(path, "w") as file:
        file["main"] = voxels
    return str(path)


def test_image_and_label_with_their_meta_data(case: dict[str, str]):
    data = LoadImageChunkedVolumed(["image", "label"], label_keys="label")(case)
    image, label = data["image"], data["label"]
    assert isinstance(image, MetaTensor) and isinstance(label, MetaTensor)
    assert (image.dtype, label.dtype) == (torch.uint8, torch.int32)
    np.testing.assert_array_equal(image.numpy(), IMAGE[None])
    np.testing.assert_array_equal(label.numpy(), LABEL[None])
    assert image.meta["filename_or_obj"] == case["image"] and label.meta["filename_or_obj"] == case["label"]
    assert image.meta["voxel_size_nm"] == label.meta["voxel_size_nm"] == SIZE_NM
    assert data["site"] == "here" and case["image"].endswith("a.ome.zarr")  # what was given stays


@pytest.mark.parametrize(
    ("largest", "block"),
    [
        ((5, 6, 9), (slice(0, 5), slice(0, 6), slice(0, 9))),
        ((2, 3, 4), (slice(1, 3), slice(1, 4), slice(2, 6))),
        ((100, 5, 100), (slice(0, 5), slice(0, 5), slice(0, 9))),
        ([1, 1, 1], (slice(2, 3), slice(2, 3), slice(4, 5))),
    ],
)
def test_the_middle_of_a_volume(case: dict[str, str], largest: tuple[int, ...], block: tuple[slice, ...]):
    data = LoadImageChunkedVolumed(("image", "label"), "label", largest_size=largest)(case)
    np.testing.assert_array_equal(data["image"][0].numpy(), IMAGE[block])
    np.testing.assert_array_equal(data["label"][0].numpy(), LABEL[block])


@pytest.mark.parametrize(
    ("network_nm", "image_shape", "label_shape"),
    [(SIZE_NM, (2, 3, 4), (2, 3, 4)), ((30, 16, 30), (5, 3, 3), (5, 6, 9))],
)
def test_the_middle_is_of_volumes_that_are_not_resampled(case, network_nm, image_shape, label_shape):
    load = LoadImageChunkedVolumed(
        ("image", "label"), "label", largest_size=(2, 3, 4), network_voxel_size_nm=network_nm
    )
    data = load(case)
    assert (data["image"].shape, data["label"].shape) == ((1, *image_shape), (1, *label_shape))
    assert data["image"].meta["is_resampled"] == (image_shape != label_shape)


def test_a_batch_of_a_volume_that_does_not_say_its_voxel_size(case: dict[str, str], tmp_path: Path):
    Image.fromarray(IMAGE[0]).save(tmp_path / "section.png")
    for path, shape in ((str(tmp_path / "section.png"), (1, 1, 1, 6, 9)), (case["image"], (1, 1, 5, 6, 9))):
        (batch,) = DataLoader(Dataset([{"image": path}], LoadImageChunkedVolumed("image")), batch_size=1)
        assert batch["image"].shape == shape and batch["image"].meta["filename_or_obj"] == [path]
        assert ("voxel_size_nm" in batch["image"].meta) == (path == case["image"])


def test_missing_keys(case: dict[str, str]):
    load = LoadImageChunkedVolumed(["image", "label"], "label", allow_missing_keys=True)
    del case["label"]
    assert set(load(case)) == {"image", "site"}
    assert load({"site": "here"}) == {"site": "here"}
    with pytest.raises(KeyError, match="label"):
        LoadImageChunkedVolumed(["image", "label"], "label")(case)


def test_memory_is_that_of_what_is_loaded(tmp_path: Path):
    """64 MiB stored, of which the middle 256 KiB are loaded."""
    path = tmp_path / "large.ome.zarr"
    with create_ome_zarr(path, (64, 1024, 1024), np.uint8, SIZE_NM, chunks=(16, 128, 128)) as voxels:
        for z in range(0, 64, 16):
            voxels[z : z + 16] = np.full((16, 1024, 1024), z + 1, np.uint8)
    load = LoadImageChunkedVolumed("image", largest_size=(16, 128, 128))
    tracemalloc.start()
    try:
        image = load({"image": path})["image"]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert image.shape == (1, 16, 128, 128) and (image[0, :8] == 17).all() and (image[0, 8:] == 33).all()
    assert 2**18 < peak < 2**23  # eight chunks of 256 KiB are touched


def test_types_that_pytorch_computes_with():
    for given, expected in (
        (np.uint8, torch.uint8),
        (np.int16, torch.int16),
        (np.uint16, torch.int32),
        (np.uint32, torch.int64),
        (np.float16, torch.float32),
        (np.float32, torch.float32),
        (np.float64, torch.float64),
    ):
        voxels = np.array([[[0, 1, 120]]], given)
        tensor = to_tensor(voxels)
        assert tensor.dtype == expected and tensor.tolist() == [[[0, 1, 120]]]


def test_ids_are_int32_or_int64_where_they_need_it():
    for given, values, expected in (
        (np.bool_, [0, 1], torch.int32),
        (np.uint8, [0, 255], torch.int32),
        (np.uint16, [0, 65535], torch.int32),
        (np.int64, [0, 2**31 - 1], torch.int32),
        (np.uint32, [0, 2**31], torch.int64),
        (np.uint64, [0, 2**63 - 1], torch.int64),
        (np.uint32, [], torch.int32),
    ):
        tensor = to_ids(np.array([[values]], given), "a.h5")
        assert tensor.dtype == expected and tensor.tolist() == [[values]]


@pytest.mark.parametrize(
    ("voxels", "received"),
    [
        (np.zeros(SHAPE, np.float32), "got float32 from 0.0 to 0.0"),
        (np.full(SHAPE, -7, np.int16), "got int16 from -7 to -7"),
        (np.full(SHAPE, 2**63, np.uint64), "got uint64 from 9223372036854775808 to 9223372036854775808"),
    ],
)
def test_labels_that_are_no_ids_are_named(case: dict[str, str], tmp_path: Path, voxels: np.ndarray, received: str):
    case["label"] = write_h5(tmp_path / "label.h5", voxels)
    with pytest.raises(UserError) as error:
        LoadImageChunkedVolumed(["image", "label"], "label")(case)
    text = str(error.value)
    assert text.startswith(case["label"]) and received in text and "\n" not in text


def test_shapes_that_differ_are_named(case: dict[str, str], tmp_path: Path):
    case["label"] = write_h5(tmp_path / "label.h5", LABEL[:4])
    with pytest.raises(UserError) as error:
        LoadImageChunkedVolumed(["image", "label"], "label")(case)
    text = str(error.value)
    assert text.startswith(case["label"]) and f"got (4, 6, 9), and (5, 6, 9) in {case['image']}" in text
    check_one_shape({"a": [1, 2, 3], "b": (1, 2, 3)})
    check_one_shape({})


def test_files_that_cannot_be_read_are_named(tmp_path: Path):
    with pytest.raises(UserError, match=r"absent.h5: no such file"):
        LoadImageChunkedVolumed("image")({"image": tmp_path / "absent.h5"})
