# SPDX-License-Identifier: Apache-2.0
"""train_interpolation.json and restore.json from end to end, at a size for tests."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from resunet_mitoem.interpolation import SectionInterpolationNetwork

from volseg.data.ome_zarr import create_ome_zarr
from volseg.data.open_volume import open_chunked_volume
from volseg.phantoms.electron_microscopy import electron_microscopy
from volseg.weights import save_weights

CONFIGS = Path(__file__).parents[3] / "bundles" / "resunet_mitoem" / "configs"
SHAPE = (12, 64, 80)
SMALL = ["--network_def#widths", "[4,6]", "--device", "cpu"]


@pytest.fixture(scope="module")
def spoilt():
    """A phantom with a missing and a noisy section."""
    return electron_microscopy(5, SHAPE, missing=1, noisy=1)


@pytest.fixture
def volume(tmp_path, spoilt) -> Path:
    path = tmp_path / "cells.ome.zarr"
    with create_ome_zarr(path, SHAPE, np.uint8, spoilt.voxel_size_nm, chunks=(4, 32, 48)) as voxels:
        voxels[:] = spoilt.image
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Of an untrained network: the average of the neighbours, slightly smoothed."""
    path = tmp_path_factory.mktemp("weights") / "interpolation.pt"
    save_weights(path, SectionInterpolationNetwork((4, 6)), {})
    return path


@pytest.fixture
def restore(monai_bundle, weights, tmp_path):
    def run(*arguments: object, weights: Path = weights):
        given = ["--weights", weights, "--output_dir", tmp_path / "out", "--tile_size", 32, *SMALL, *arguments]
        return monai_bundle("run", "--config_file", CONFIGS / "restore.json", *given)

    return run


@pytest.fixture
def train(monai_bundle, tmp_path):
    def run(*arguments: object):
        sizes = ["--patch_size", "[32,32]", "--batch_size", 2, "--epoch_iterations", 2, "--max_epochs", 2]
        sizes += ["--val_interval", 1, "--validation_patches", 3, "--num_workers", 0]
        folders = ["--output_dir", tmp_path / "out", "--ckpt_dir", tmp_path / "models"]
        config = CONFIGS / "train_interpolation.json"
        return monai_bundle("run", "--config_file", config, *sizes, *folders, *SMALL, *arguments)

    return run


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_restore_finds_and_replaces(restore, volume, spoilt, tmp_path):
    process = restore("--input", volume)
    assert process.returncode == 0, process.stderr
    out = tmp_path / "out"
    names = {"cells_restored.ome.zarr", "cells_sections.csv", "cells_restored.png"}
    assert {path.name for path in out.iterdir()} == names
    restored = open_chunked_volume(out / "cells_restored.ome.zarr")
    assert (restored.dtype, restored.voxel_size_nm) == (np.uint8, spoilt.voxel_size_nm)
    noisy = sorted((*spoilt.missing_sections, *spoilt.noisy_sections))
    assert np.array_equal(np.delete(restored[:], noisy, 0), np.delete(spoilt.image, noisy, 0))
    rows = table(out / "cells_sections.csv")
    assert [int(row["section"]) for row in rows] == list(range(SHAPE[0]))
    assert [int(row["section"]) for row in rows if row["noisy"] == "1"] == noisy
    for section in noisy:
        row = rows[section]
        assert row["reason"]
        before, after = (int(row[f"restored_from_{side}"]) for side in ("before", "after"))
        assert before < section < after
        assert f"Section {section} replaced: interpolated from sections {before} and {after}" in process.stderr
        # untrained, the network averages: the noise around the average is small, the spoilt section is far from it
        mean = (spoilt.image[before].astype(float) + spoilt.image[after]) / 2
        assert np.abs(restored[section : section + 1][0] - mean).mean() < 5
    assert "2 of 12 sections replaced, 0 noisy ones stay" in process.stderr


def test_sections_given_are_those_replaced(restore, volume, spoilt, tmp_path):
    process = restore("--input", volume, "--sections", "[0,4]", "--preview", "False")
    assert process.returncode == 0, process.stderr
    assert "Section 0 is noisy and stays" in process.stderr
    restored = open_chunked_volume(tmp_path / "out" / "cells_restored.ome.zarr")[:]
    changed = [z for z in range(SHAPE[0]) if not np.array_equal(restored[z], spoilt.image[z])]
    assert changed == [4]
    rows = table(tmp_path / "out" / "cells_sections.csv")
    assert [row["section"] for row in rows if row["reason"] == "given"] == ["0", "4"]
    assert [rows[4][f"restored_from_{side}"] for side in ("before", "after")] == ["3", "5"]
    assert not list((tmp_path / "out").glob("*.png"))


def test_restore_without_input_takes_a_spoilt_phantom(restore, tmp_path):
    phantom_dir = tmp_path / "phantom"
    process = restore("--phantom_dir", phantom_dir, "--phantom_shape", "[24,64,72]")
    assert process.returncode == 0, process.stderr
    rows = table(tmp_path / "out" / "test_0_sections.csv")
    assert sum(row["noisy"] == "1" for row in rows) >= 3


def test_restore_folder_of_volumes(restore, volume, tmp_path):
    volume.rename(volume.with_name("a.ome.zarr"))
    with create_ome_zarr(tmp_path / "b.ome.zarr", SHAPE, np.uint8, None) as voxels:
        voxels[:] = np.random.RandomState(0).randint(0, 255, SHAPE)
    process = restore("--input", tmp_path)
    assert process.returncode == 0, process.stderr
    restored = {path.name for path in (tmp_path / "out").glob("*.zarr")}
    assert restored == {"a_restored.ome.zarr", "b_restored.ome.zarr"}


def test_restore_errors(restore, volume, refused, tmp_path):
    refused(restore("--input", volume, weights=tmp_path / "none.pt"), "none.pt", "train_interpolation.json")
    refused(restore("--input", volume, "--sections", "[3,12]"), "sections", "got 12", "0 to 11")
    refused(restore("--input", volume, "--sections", "[0,1]"), "cells.ome.zarr", "none of the sections", "0, 1 of 12")
    refused(restore("--input", tmp_path / "absent.h5"), "absent.h5", "no such file")
    refused(restore("--input", volume, "--network_def#widths", "[4,8]"), "interpolation.pt", "as configured")


def test_train_on_phantoms_then_restore(train, restore, volume, tmp_path):
    process = train(
        "--phantom_dir", tmp_path / "phantom", "--phantom_cases", {"training": 2, "validation": 1, "test": 0},
        "--phantom_shape", "[8,64,72]",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "Epoch[2] Metrics -- val_psnr" in process.stdout
    assert "val_psnr_of_average" in process.stdout
    weights = tmp_path / "models" / "interpolation.pt"
    record = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
    assert record["trained_on"] == "phantom"
    assert record["val_psnr"] > 10
    assert restore("--input", volume, weights=weights).returncode == 0


def test_train_on_a_volume_without_labels(train, volume):
    process = train("--input", volume)
    assert process.returncode == 0, process.stderr
    assert "noisy sections: [" in process.stderr


def test_train_resumes(train, volume, tmp_path):
    assert train("--input", volume).returncode == 0
    out = tmp_path / "out"
    # as if it had been killed after its first epoch
    checkpoint = torch.load(out / "checkpoint_completed.pt", weights_only=True)
    torch.save({**checkpoint, "epoch": 1}, out / "checkpoint.pt")
    process = train("--input", volume)
    assert "continuing after epoch 1" in process.stderr
    assert "Epoch[1] Metrics" not in process.stdout
    assert "Epoch[2] Metrics" in process.stdout


def test_train_errors(train, volume, refused):
    refused(train("--input", volume, "--patch_size", "[72,72]"), "cells.ome.zarr", "smaller than a patch")
    refused(train("--input", volume, "--patch_size", "[32,48]"), "patch_size", "must be square", "[32, 48]")
    refused(train("--input", volume, "--sections", "[12]"), "sections", "got 12")
    refused(
        train("--input", volume, "--sections", "[2,4,6,8,10]"), "cells.ome.zarr", "no three consecutive clean sections"
    )
    refused(train("--dataset_dir", volume.parent), "dataset.json")
