# SPDX-License-Identifier: Apache-2.0
"""Tests of writing what inference found in electron microscopy."""

from __future__ import annotations

import csv
import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from matplotlib.image import imread
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import CastToTyped, Compose, Lambdad
from PIL import Image

from volseg.data.ome_zarr import create_ome_zarr
from volseg.data.open_volume import open_chunked_volume
from volseg.errors import UserError
from volseg.handlers.instance_results import SaveImageInstances, case_name, free_case_name
from volseg.transforms.load_em_volume import LoadImageChunkedVolumed

SHAPE = (3, 16, 20)
VOXEL_SIZE_NM = (30.0, 8.0, 7.0)


def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, SHAPE, dtype=np.uint8)


def labels(first: int = 3, second: int = 70_000) -> np.ndarray:
    """A plate of 3 x 4 x 5 and a rod of 2 x 1 x 10 voxels."""
    ids = np.zeros(SHAPE, np.int32)
    ids[:, 2:6, 1:6] = first
    ids[1:, 10, 5:15] = second
    return ids


def save_zarr(path: Path, voxel_size_nm: tuple[float, float, float] | None = VOXEL_SIZE_NM) -> str:
    with create_ome_zarr(path, SHAPE, np.uint8, voxel_size_nm) as voxels:
        voxels[:] = image()
    return str(path)


def save_sections(folder: Path) -> str:
    folder.mkdir(parents=True)
    for z, section in enumerate(image()):
        Image.fromarray(section).save(folder / f"im{z:04d}.png")
    return str(folder)


def save_hdf5(path: Path, dataset: str = "main") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "a") as file:
        file[dataset] = image()
    return f"{path}:{dataset}"


def run(folder: Path, cases: list[tuple[str, np.ndarray]], **options) -> SaveImageInstances:
    """A run as MONAI's evaluators make it: paths in the batch, volumes by themselves in the output."""

    def predict(engine: Engine, batch: dict) -> list[dict]:
        (path,), ids = batch["image"].meta["filename_or_obj"], batch["ids"]
        volume = MetaTensor(torch.zeros(1, *SHAPE), meta={"filename_or_obj": path})
        return [{"image": volume, "pred": MetaTensor(torch.from_numpy(ids)[None])}]

    handler = SaveImageInstances(str(folder), **options)
    engine = Engine(predict)
    handler.attach(engine)
    engine.run([{"image": SimpleNamespace(meta={"filename_or_obj": [p]}), "ids": ids} for p, ids in cases])
    return handler


def statistics(folder: Path) -> list[dict]:
    return json.loads((folder / "statistics.json").read_text())


def test_files_of_a_case(tmp_path, caplog):
    path, out = save_zarr(tmp_path / "a.ome.zarr"), tmp_path / "out"
    with caplog.at_level(logging.INFO):
        run(out, [(path, labels())])
    names = ["a_instances.csv", "a_instances.ome.zarr", "a_preview.png", "statistics.json"]
    assert sorted(p.name for p in out.iterdir()) == names
    written = open_chunked_volume(out / "a_instances.ome.zarr")
    np.testing.assert_array_equal(written[:], labels())
    assert written.voxel_size_nm == VOXEL_SIZE_NM
    with (out / "a_instances.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], row["voxels"], row["volume_um3"]) for row in rows] == [
        ("3", "60", "0.0001008"),
        ("70000", "20", "3.36e-05"),
    ]
    assert imread(out / "a_preview.png").ndim == 3
    assert statistics(out) == [
        {
            "image": path,
            "instances": "a_instances.ome.zarr",
            "count": 2,
            "median_voxels": 40.0,
            "foreground_fraction": round(80 / 960, 5),
            "voxel_size_nm": list(VOXEL_SIZE_NM),
            "warnings": [],
        }
    ]
    assert re.search(rf"{path}: 2 instances \(\d+\.\d s\)", caplog.text)
    assert f"1 case(s) segmented, results in {out}" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_folder_of_sections_without_voxel_size(tmp_path, caplog):
    path = save_sections(tmp_path / "rat.v2")
    run(tmp_path / "out", [(path, labels())], preview=False)
    assert sorted(p.name for p in (tmp_path / "out" / "rat.v2_instances").iterdir()) == [
        f"im{z:04d}.tif" for z in range(3)
    ]
    np.testing.assert_array_equal(open_chunked_volume(tmp_path / "out" / "rat.v2_instances")[:], labels())
    (case,) = statistics(tmp_path / "out")
    assert case["voxel_size_nm"] is None
    assert case["warnings"] == ["the voxel size is not known, and volumes in µm³ are left out; give --voxel_size_nm."]
    assert f"{path}: the voxel size is not known" in caplog.text
    assert ",60,,0,2,1," in (tmp_path / "out" / "rat.v2_instances.csv").read_text()


def test_voxel_size_given_replaces_what_files_say(tmp_path, caplog):
    cases = [save_zarr(tmp_path / "a.ome.zarr"), save_hdf5(tmp_path / "b.h5")]
    run(tmp_path / "out", [(path, labels()) for path in cases], voxel_size_nm=[50, 5, 5], preview=False)
    assert [case["voxel_size_nm"] for case in statistics(tmp_path / "out")] == [[50, 5, 5]] * 2
    assert "voxel_size_nm 50x5x5 replaces the 30x8x7 nm that the file says" in caplog.text
    assert open_chunked_volume(tmp_path / "out" / "b_instances.h5").voxel_size_nm == (50, 5, 5)


@pytest.mark.parametrize("wrong", [30, [8, 8], [30, 8, 0], [30, 8, float("nan")], "30,8,8", [30, "8", 8]])
def test_wrong_voxel_size_is_found_at_once(tmp_path, wrong):
    with pytest.raises(UserError, match=r"voxel_size_nm.*\[30,8,8\], got "):
        SaveImageInstances(str(tmp_path), voxel_size_nm=wrong)


def test_pixels_that_are_not_square_are_warned_of(tmp_path):
    path = save_zarr(tmp_path / "a.ome.zarr")
    run(tmp_path / "out", [(path, labels())], voxel_size_nm=[8, 8, 30], trained_voxel_size_nm=[30, 8, 8], preview=False)
    [case] = statistics(tmp_path / "out")
    assert case["warnings"][0].startswith("pixels of 8x30 nm are not square, as those of microscopes are; give")


def test_nothing_found(tmp_path):
    path = save_zarr(tmp_path / "a.ome.zarr")
    run(tmp_path / "out", [(path, np.zeros(SHAPE, np.int32))])
    (case,) = statistics(tmp_path / "out")
    assert (case["count"], case["median_voxels"], case["foreground_fraction"]) == (0, None, 0)
    assert case["warnings"] == ["no instance found."]
    assert (tmp_path / "out" / "a_preview.png").is_file()


@pytest.mark.parametrize(("share", "warned"), [(8, False), (9, True)])
def test_much_foreground_is_a_warning(tmp_path, share, warned):
    ids = np.zeros(SHAPE, np.int32)
    ids[..., :share] = 1  # of 20 columns
    run(tmp_path / "out", [(save_zarr(tmp_path / "a.ome.zarr"), ids)], preview=False)
    (case,) = statistics(tmp_path / "out")
    assert [w.startswith("45% of the volume is foreground") for w in case["warnings"]] == [True] * warned


def test_inputs_of_one_name_do_not_overwrite_each_other(tmp_path):
    cases = [
        save_sections(tmp_path / "rat" / "im"),
        save_sections(tmp_path / "human" / "im"),
        save_hdf5(tmp_path / "im_2.h5"),
        save_hdf5(tmp_path / "two.h5", "raw"),
        save_hdf5(tmp_path / "two.h5", "volumes/raw"),
    ]
    run(tmp_path / "out", [(path, labels(1 + i, 20 + i)) for i, path in enumerate(cases)], preview=False)
    names = ["im_instances", "im_2_instances", "im_2_2_instances.h5", "two_instances.h5", "two_2_instances.h5"]
    found = {case["image"]: case["instances"] for case in statistics(tmp_path / "out")}
    assert found == dict(zip(cases, names, strict=True))
    assert list(found) == sorted(cases)
    for i, name in enumerate(names):
        np.testing.assert_array_equal(open_chunked_volume(tmp_path / "out" / name)[:], labels(1 + i, 20 + i))
    assert len(list((tmp_path / "out").glob("*.csv"))) == 5


def test_a_second_run_replaces_what_can_be_replaced(tmp_path):
    path = save_hdf5(tmp_path / "a.h5")
    for ids in (labels(1, 2), labels(8, 9)):
        run(tmp_path / "out", [(path, ids)], preview=False)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "a_instances.csv",
        "a_instances.h5",
        "statistics.json",
    ]
    np.testing.assert_array_equal(open_chunked_volume(tmp_path / "out" / "a_instances.h5")[:], labels(8, 9))


def test_an_evaluator_may_run_again(tmp_path):
    path = save_hdf5(tmp_path / "a.h5")
    handler = run(tmp_path / "out", [(path, labels())], preview=False)
    handler._start(Engine(lambda engine, batch: batch))
    handler.write(path, labels())
    assert [case["instances"] for case in statistics(tmp_path / "out")] == ["a_instances.h5"]


def test_results_that_stay_are_found_before_the_prediction(tmp_path):
    path = save_sections(tmp_path / "sections")
    handler = run(tmp_path / "out", [(path, labels())], preview=False)
    with pytest.raises(UserError, match="sections_instances: exists and will not be replaced"):
        handler.begin(path, "0")


def test_unknown_voxels_are_warned_of_before_the_prediction(tmp_path, caplog):
    path = save_sections(tmp_path / "sections")
    handler = SaveImageInstances(str(tmp_path / "out"), trained_voxel_size_nm=[30, 8, 8], preview=False)
    handler.begin(path, "0")
    warning = "the voxel size is not known, may differ from the 30x8x8 nm that the weights learnt at"
    assert [warning in message for message in caplog.messages] == [True]
    handler.write(path, labels())
    assert len(caplog.messages) == 1
    assert [warning in said for said in statistics(tmp_path / "out")[0]["warnings"]] == [True]


def test_entries_and_names_of_earlier_runs_stay(tmp_path):
    first, second = save_hdf5(tmp_path / "x" / "a.h5"), save_hdf5(tmp_path / "y" / "a.h5")
    for path in (first, second, first):
        run(tmp_path / "out", [(path, labels())], preview=False)
    entries = {entry["image"]: entry["instances"] for entry in statistics(tmp_path / "out")}
    assert entries == {first: "a_instances.h5", second: "a_2_instances.h5"}


def test_cases_before_a_failure_are_reported(tmp_path):
    good, bad = save_hdf5(tmp_path / "a.h5"), save_hdf5(tmp_path / "b.h5")
    with pytest.raises(UserError, match=r"b_instances.h5: labels must have the shape.*, got \(2, 16, 20\)"):
        run(tmp_path / "out", [(good, labels()), (bad, labels()[1:])], preview=False)
    assert [case["image"] for case in statistics(tmp_path / "out")] == [good]
    assert not list((tmp_path / "out").glob("*b_*"))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/x/a.ome.zarr", "a"),
        ("/x/a.zarr", "a"),
        ("/x/a.zarr/raw", "raw"),
        ("/x/a.h5:main", "a"),
        ("/x/a.HDF5:volumes/raw", "a"),
        ("a.h5", "a"),
        ("/x/sections", "sections"),
        ("/x/sections/", "sections"),
        ("/x/rat.v2", "rat.v2"),
        ("/x/2:30/sections", "sections"),
        ("scan.nii.gz", "scan"),
        ("scan.1.nii", "scan.1"),
        ("a.ome.tif", "a"),
        ("a.TIFF", "a"),
        ("im_val.json", "im_val"),
        ("/", "volume"),
    ],
)
def test_case_name(path, name):
    assert case_name(path) == name


def test_case_name_of_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "sections").mkdir()
    monkeypatch.chdir(tmp_path / "sections")
    assert case_name(".") == "sections"


def test_free_case_name():
    assert free_case_name("/x/a.h5", set()) == "a"
    assert free_case_name("/x/a.h5", {"a", "a_3"}) == "a_2"
    assert free_case_name("/x/a.h5", {"a", "a_2", "a_3"}) == "a_4"


def test_in_an_evaluator_of_monai(tmp_path):
    cases = [{"image": save_zarr(tmp_path / f"{name}.ome.zarr")} for name in "ab"]
    dataset = Dataset(cases, Compose([LoadImageChunkedVolumed("image"), CastToTyped("image", torch.float32)]))
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(dataset, batch_size=1),
        network=torch.nn.Identity(),
        postprocessing=Lambdad("pred", lambda volume: (volume > 127).int()),
        val_handlers=[SaveImageInstances(str(tmp_path / "out"), preview=False)],
    )
    evaluator.run()
    assert [case["count"] for case in statistics(tmp_path / "out")] == [1, 1]
    np.testing.assert_array_equal(open_chunked_volume(tmp_path / "out" / "b_instances.ome.zarr")[:], image() > 127)
