# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import tracemalloc
from collections import Counter
from copy import deepcopy
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.transforms import Compose
from PIL import Image

from volseg.console.command_line import find_user_error
from volseg.data.ome_zarr import create_ome_zarr, create_ome_zarr_label
from volseg.errors import UserError
from volseg.transforms import load_em_crop
from volseg.transforms.load_em_crop import RandLoadImageCropd

SHAPE = (5, 6, 9)
NUMBERS = np.arange(270, dtype=np.uint16).reshape(SHAPE)  # of the voxels: one tells where a crop was taken
KEYS = ("image", "label")


@pytest.fixture
def case(tmp_path: Path) -> dict[str, str]:
    path = tmp_path / "a.ome.zarr"
    with create_ome_zarr(path, SHAPE, np.uint8, (30, 8, 10), chunks=(2, 4, 4)) as voxels:
        voxels[:] = NUMBERS % 251
    with create_ome_zarr_label(path, "mitochondria", np.uint16) as voxels:
        voxels[:] = NUMBERS
    return {"image": str(path), "label": str(path / "labels" / "mitochondria"), "site": "here"}


def write_h5(path: Path, voxels: np.ndarray) -> str:
    with h5py.File(path, "w") as file:
        file["main"] = voxels
    return str(path)


def starts(labels: torch.Tensor) -> list[int]:
    """First voxels of the crops of a batch."""
    return labels[:, 0, 0, 0, 0].tolist()


def test_volumes_are_brought_to_the_voxel_size_of_the_network(case: dict[str, str], tmp_path: Path):
    crop = RandLoadImageCropd(KEYS, (5, 3, 3), label_keys="label", network_voxel_size_nm=(30, 16, 30))
    data = crop.set_random_state(0)(case)  # the only place
    image = (NUMBERS % 251).astype(np.float64).reshape(5, 3, 2, 3, 3).mean((2, 4))
    np.testing.assert_allclose(data["image"][0].numpy(), image, rtol=1e-6)
    np.testing.assert_array_equal(data["label"][0].numpy(), NUMBERS[:, 1::2, 1::3])
    # a label whose file does not say its voxel size lies on its image
    other = crop({**case, "label": write_h5(tmp_path / "label.h5", NUMBERS)})
    np.testing.assert_array_equal(other["label"][0].numpy(), NUMBERS[:, 1::2, 1::3])
    assert data["image"].meta["network_shape"] == (5, 3, 3) and "network_shape" not in data["label"].meta


def test_keys_are_cropped_at_the_same_place(case: dict[str, str]):
    crop = RandLoadImageCropd(KEYS, (2, 3, 4), label_keys="label").set_random_state(0)
    given = dict(case)
    for _ in range(10):
        data = crop(case)
        z, y, x = crop.starts
        expected = NUMBERS[None, z : z + 2, y : y + 3, x : x + 4]
        assert (data["image"].dtype, data["label"].dtype) == (torch.uint8, torch.int32)
        np.testing.assert_array_equal(data["label"].numpy(), expected)
        np.testing.assert_array_equal(data["image"].numpy(), expected % 251)
        assert data["site"] == "here" and case == given


def test_every_place_is_equally_likely(case: dict[str, str]):
    crop = RandLoadImageCropd("label", (4, 4, 9), label_keys=["label"]).set_random_state(1)
    counts = Counter(int(crop(case)["label"][0, 0, 0, 0]) for _ in range(240))
    assert set(counts) == {NUMBERS[z, y, 0] for z in (0, 1) for y in (0, 1, 2)}
    assert all(15 < count < 65 for count in counts.values())  # 40 expected, standard deviation 6


def test_it_repeats_itself_through_set_random_state(case: dict[str, str]):
    crop = RandLoadImageCropd(KEYS, (1, 2, 2), label_keys="label")

    def draw(seed: int) -> list[int]:
        transform = Compose([crop]).set_random_state(seed)
        return [int(transform(case)["label"][0, 0, 0, 0]) for _ in range(8)]

    assert draw(3) == draw(3) != draw(4)
    assert len(set(draw(3))) > 3


@pytest.mark.parametrize("n_workers", [0, 2])
def test_loaders_repeat_themselves_and_workers_draw_for_themselves(case: dict[str, str], n_workers: int):
    def epoch(seed: int) -> list[int]:
        torch.manual_seed(seed)
        dataset = Dataset([case] * 12, RandLoadImageCropd(KEYS, (1, 1, 1), label_keys="label"))
        loader = DataLoader(dataset, batch_size=3, num_workers=n_workers)
        return [start for batch in loader for start in starts(batch["label"])]

    assert epoch(0) == epoch(0) != epoch(1)
    drawn = epoch(0)
    assert len(drawn) == 12 and drawn[:3] != drawn[3:6] and len(set(drawn)) > 6  # batches by turns of two workers


def test_it_is_copied_with_volumes_open(case: dict[str, str]):
    crop = RandLoadImageCropd(KEYS, (2, 3, 4), label_keys="label").set_random_state(0)
    crop(case)
    copy = deepcopy(crop)  # by what pickling takes along
    torch.testing.assert_close(copy(case)["label"], crop(case)["label"])


@pytest.mark.parametrize("size", [(8, 6, 9), (5, 11, 9), (5, 6, 30), (9, 13, 14), (8, 3, 4)])
def test_volumes_smaller_than_the_crop_are_continued_by_reflection(case: dict[str, str], size: tuple[int, int, int]):
    crop = RandLoadImageCropd(KEYS, size, label_keys="label").set_random_state(2)
    data = crop(case)
    assert data["image"].shape == data["label"].shape == (1, *size)
    indices = []
    for start, n, length in zip(crop.starts, SHAPE, size, strict=True):
        before = max(0, length - n) // 2
        assert start == 0 or length < n
        period = 2 * (n - 1)
        places = (np.arange(length) + start - before) % period
        indices.append(np.minimum(places, period - places))
    np.testing.assert_array_equal(data["label"][0].numpy(), NUMBERS[np.ix_(*indices)])
    np.testing.assert_array_equal(data["image"][0].numpy(), NUMBERS[np.ix_(*indices)] % 251)


def test_a_single_section_is_repeated(tmp_path: Path):
    Image.fromarray(NUMBERS[0].astype(np.uint8)).save(tmp_path / "section.png")
    image = RandLoadImageCropd("image", (3, 6, 9))({"image": tmp_path / "section.png"})["image"]
    np.testing.assert_array_equal(image[0].numpy(), np.repeat(NUMBERS[:1], 3, axis=0))


def test_memory_is_that_of_the_chunks_that_are_touched(tmp_path: Path):
    """64 MiB stored, crops of 256 KiB at ten places."""
    path = tmp_path / "large.ome.zarr"
    with create_ome_zarr(path, (64, 1024, 1024), np.uint8, (30, 8, 8), chunks=(16, 128, 128)) as voxels:
        for z in range(0, 64, 16):
            voxels[z : z + 16] = np.full((16, 1024, 1024), z + 1, np.uint8)
    crop = RandLoadImageCropd("image", (16, 128, 128)).set_random_state(0)
    tracemalloc.start()
    try:
        for _ in range(10):
            image = crop({"image": path})["image"]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    z = crop.starts[0]
    assert image[0, :, 0, 0].tolist() == [1 + section // 16 * 16 for section in range(z, z + 16)]
    assert 2**18 < peak < 2**23  # eight chunks of 256 KiB at most are touched


def test_volumes_stay_open_up_to_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(load_em_crop, "OPEN_VOLUMES", 2)
    opened, original = [], load_em_crop.open_chunked_volume

    def open_and_count(path: str):
        opened.append(Path(path).stem)
        return original(path)

    monkeypatch.setattr(load_em_crop, "open_chunked_volume", open_and_count)
    paths = {name: write_h5(tmp_path / f"{name}.h5", NUMBERS) for name in "abc"}
    crop = RandLoadImageCropd("image", (1, 1, 1))
    for name in "ababcac":
        crop({"image": paths[name]})
    assert opened == ["a", "b", "c", "a"]  # b was used after a when c came
    crop({"image": paths["b"]})
    assert opened[-1] == "b"


def test_missing_keys(case: dict[str, str]):
    crop = RandLoadImageCropd(KEYS, (2, 3, 4), label_keys="label", allow_missing_keys=True)
    del case["label"]
    assert crop(case)["image"].shape == (1, 2, 3, 4)
    assert crop({"site": "here"}) == {"site": "here"}
    with pytest.raises(KeyError, match="label"):
        RandLoadImageCropd(KEYS, (2, 3, 4))(case)


def test_volumes_that_do_not_fit_are_named(case: dict[str, str], tmp_path: Path):
    crop = RandLoadImageCropd(KEYS, (2, 3, 4), label_keys="label")
    other = write_h5(tmp_path / "other.h5", NUMBERS[:4])
    floats = write_h5(tmp_path / "floats.h5", NUMBERS.astype(np.float32))
    for label, received in (
        (other, f"got (4, 6, 9), and (5, 6, 9) in {case['image']}"),
        (floats, "got float32 from"),
        (str(tmp_path / "absent.h5"), "no such file"),
    ):
        with pytest.raises(UserError) as error:
            crop({**case, "label": label})
        text = str(error.value)
        assert text.startswith(label) and received in text and "\n" not in text


def test_the_line_of_an_error_arrives_from_a_worker(tmp_path: Path):
    broken = write_h5(tmp_path / "broken.h5", NUMBERS)
    Path(broken).write_bytes(Path(broken).read_bytes()[:600])
    dataset = Dataset([{"image": broken}], RandLoadImageCropd("image", (1, 1, 1)))
    with pytest.raises(Exception, match=r"broken\.h5") as error:
        list(DataLoader(dataset, batch_size=1, num_workers=1))
    text = find_user_error(error.value)
    assert text is not None and text.startswith(broken) and "; copy the file again" in text
