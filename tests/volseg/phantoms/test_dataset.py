# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import multiprocessing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from volseg.data.open_volume import open_chunked_volume
from volseg.errors import UserError
from volseg.phantoms.dataset import NiftiPairs, OmeZarrVolumes, case_seeds, write_dataset

SPLITS = {"training": 2, "validation": 1, "test": 1}
AFFINE = np.array([[0, -0.5, 0, 7.0], [0.75, 0, 0, -3.0], [0, 0, -2.5, 11.0], [0, 0, 0, 1]])


@dataclass
class Tiny:
    image: np.ndarray
    label: np.ndarray
    affine: np.ndarray


@dataclass
class TinyMicroscopy:
    image: np.ndarray
    label: np.ndarray
    voxel_size_nm: tuple[float, float, float]


def tiny(seed: int, pixel: int = 1) -> Tiny:
    image = np.full((3, 4, 5), seed % 1000 - 1024, np.int16)
    return Tiny(image, np.full(image.shape, pixel, np.int16), AFFINE)


def microscopy(seed: int, dtype: type[np.generic] = np.uint32) -> TinyMicroscopy:
    image = np.random.default_rng(seed).integers(0, 255, (3, 40, 50), dtype=np.uint8)
    label = np.zeros(image.shape, dtype)
    label[1:, 7:9, 20:31] = 3
    label[0, 39, 49] = 70_000 + seed
    return TinyMicroscopy(image, label, (30.0, 8.0, 4.5))


def race(folder: Path, barrier, _: int) -> None:
    barrier.wait()
    write_dataset(folder, tiny, SPLITS, seed=2)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_writes_pairs_and_a_datalist(tmp_path):
    folder = write_dataset(tmp_path / "new" / "lung", tiny, SPLITS, seed=3, name="demo", parameters={"size": (3, 4, 5)})
    assert folder == tmp_path / "new" / "lung"
    listing = json.loads((folder / "dataset.json").read_text())
    assert listing == {
        "name": "demo",
        "source": "phantom",
        "seed": 3,
        "parameters": {"size": [3, 4, 5]},
        "training": [
            {"image": "images/training_0.nii.gz", "label": "labels/training_0.nii.gz"},
            {"image": "images/training_1.nii.gz", "label": "labels/training_1.nii.gz"},
        ],
        "validation": [{"image": "images/validation_0.nii.gz", "label": "labels/validation_0.nii.gz"}],
        "test": [{"image": "images/test_0.nii.gz", "label": "labels/test_0.nii.gz"}],
    }
    assert len(snapshot(folder)) == 9
    assert [p.name for p in folder.parent.iterdir()] == ["lung"]


def test_files_keep_type_and_geometry(tmp_path):
    folder = write_dataset(tmp_path / "lung", tiny, {"training": 1, "test": 1}, seed=0)
    for kind, dtype in (("images", np.int16), ("labels", np.uint8)):
        loaded = nib.load(folder / kind / "test_0.nii.gz")
        assert loaded.get_data_dtype() == dtype
        assert loaded.shape == (3, 4, 5)
        assert int(loaded.header["sform_code"]) == int(loaded.header["qform_code"]) == 1
        np.testing.assert_allclose(loaded.affine, AFFINE)
        np.testing.assert_allclose(loaded.get_qform(), AFFINE, atol=1e-6)
    assert np.unique(np.asarray(nib.load(folder / "images" / "test_0.nii.gz").dataobj)) == [1 - 1024]


def test_cases_never_share_a_seed():
    seeds = [s for seed in (0, 1, 2) for split in case_seeds(SPLITS, seed).values() for s in split]
    assert len(seeds) == len(set(seeds)) == 12


def test_same_parameters_are_left_alone_and_others_replace(tmp_path):
    made = []

    def counted(seed: int) -> Tiny:
        made.append(seed)
        return tiny(seed)

    folder = write_dataset(tmp_path / "lung", counted, SPLITS)
    before = snapshot(folder)
    write_dataset(folder, counted, SPLITS)
    assert len(made) == 4
    assert snapshot(folder) == before
    for change in ({"seed": 1}, {"name": "other"}, {"parameters": {"spacing": 2}}):
        made.clear()
        write_dataset(folder, counted, SPLITS, **change)
        assert len(made) == 4
    write_dataset(folder, counted, {"training": 1})
    assert len(snapshot(folder)) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["lung"]


def test_a_failure_leaves_nothing_and_keeps_the_old(tmp_path):
    def broken(seed: int) -> Tiny:
        if seed % 2:
            raise RuntimeError("no more")
        return tiny(seed)

    with pytest.raises(RuntimeError, match="no more"):
        write_dataset(tmp_path / "lung", broken, SPLITS)
    assert list(tmp_path.iterdir()) == []
    folder = write_dataset(tmp_path / "lung", tiny, SPLITS)
    before = snapshot(folder)
    with pytest.raises(RuntimeError, match="no more"):
        write_dataset(folder, broken, SPLITS, seed=5)
    assert snapshot(folder) == before


def test_other_peoples_folders_are_not_touched(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "scan.nii.gz").write_bytes(b"precious")
    with pytest.raises(UserError, match=r"mine: exists and will not be replaced; move it away"):
        write_dataset(tmp_path / "mine", tiny, SPLITS)
    assert (tmp_path / "mine" / "scan.nii.gz").read_bytes() == b"precious"
    (tmp_path / "empty").mkdir()
    assert len(snapshot(write_dataset(tmp_path / "empty", tiny, SPLITS))) == 9


def test_two_processes_at_once_end_with_one_whole_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    workers = [context.Process(target=partial(race, tmp_path / "lung", barrier, i)) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [w.exitcode for w in workers] == [0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["lung"]
    write_dataset(tmp_path / "alone", tiny, SPLITS, seed=2)
    assert (tmp_path / "lung" / "dataset.json").read_bytes() == (tmp_path / "alone" / "dataset.json").read_bytes()
    assert snapshot(tmp_path / "lung").keys() == snapshot(tmp_path / "alone").keys()


def test_errors_name_what_was_received(tmp_path):
    with pytest.raises(UserError, match="'seed'"):
        write_dataset(tmp_path / "lung", tiny, {"seed": 1})
    with pytest.raises(UserError, match="-1"):
        write_dataset(tmp_path / "lung", tiny, {"training": -1})
    with pytest.raises(ValueError, match="test_0"):
        write_dataset(tmp_path / "lung", partial(tiny, pixel=-3), {"test": 1})
    assert list(tmp_path.iterdir()) == []


def test_pairs_are_the_default_storage(tmp_path):
    folders = [write_dataset(tmp_path / str(i), tiny, SPLITS, storage=s) for i, s in enumerate((None, NiftiPairs()))]
    assert snapshot(folders[0]).keys() == snapshot(folders[1]).keys()
    assert (folders[0] / "dataset.json").read_bytes() == (folders[1] / "dataset.json").read_bytes()


def test_ome_zarr_volumes(tmp_path):
    storage = OmeZarrVolumes("mitochondria")
    folder = write_dataset(tmp_path / "em", microscopy, {"training": 2, "test": 1}, seed=4, storage=storage)
    listing = json.loads((folder / "dataset.json").read_text())
    names = [case["image"] for split in ("training", "test") for case in listing[split]]
    assert names == ["training_0.ome.zarr", "training_1.ome.zarr", "test_0.ome.zarr"]
    assert sorted(p.name for p in folder.iterdir()) == sorted([*names, "dataset.json"])
    for number, case in enumerate([*listing["training"], *listing["test"]]):
        assert case["label"] == f"{case['image']}/labels/mitochondria"
        expected = microscopy(4_000_000 + number)
        for kind in ("image", "label"):
            volume = open_chunked_volume(folder / case[kind])
            np.testing.assert_array_equal(volume[:], getattr(expected, kind))
            assert volume.dtype == getattr(expected, kind).dtype
            assert volume.voxel_size_nm == (30.0, 8.0, 4.5)


def test_ome_zarr_volumes_are_chunked(tmp_path):
    def large(seed: int) -> TinyMicroscopy:
        return TinyMicroscopy(np.zeros((20, 8, 300), np.uint8), np.zeros((20, 8, 300), np.uint16), (30.0, 8.0, 8.0))

    folder = write_dataset(tmp_path / "em", large, {"test": 1}, storage=OmeZarrVolumes("mitochondria"))
    for name in ("test_0.ome.zarr", "test_0.ome.zarr/labels/mitochondria"):
        assert open_chunked_volume(folder / name).chunks == (16, 8, 256)


def test_storage_of_another_kind_replaces(tmp_path):
    folder = write_dataset(tmp_path / "em", tiny, {"test": 1})
    write_dataset(folder, microscopy, {"test": 1}, storage=OmeZarrVolumes("mitochondria"))
    assert sorted(p.name for p in folder.iterdir()) == ["dataset.json", "test_0.ome.zarr"]


def test_ome_zarr_volumes_are_written_whole_or_not_at_all(tmp_path):
    with pytest.raises(ValueError, match="integer type"):
        write_dataset(tmp_path / "em", partial(microscopy, dtype=np.float32), {"test": 1}, storage=OmeZarrVolumes("m"))
    with pytest.raises(UserError, match="label names consist of"):
        write_dataset(tmp_path / "em", microscopy, {"test": 1}, storage=OmeZarrVolumes("../m"))
    assert list(tmp_path.iterdir()) == []
