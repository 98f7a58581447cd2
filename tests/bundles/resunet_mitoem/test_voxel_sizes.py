# SPDX-License-Identifier: Apache-2.0
"""Tests of the voxel size of a dataset folder."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from resunet_mitoem.data import dataset_voxel_size

from volseg.data.datalist import write_datalist
from volseg.data.ome_zarr import create_ome_zarr, create_ome_zarr_label
from volseg.errors import UserError


def dataset(folder: Path, **sizes_nm: tuple[float, ...] | None) -> Path:
    """One image and its label for each split."""
    entries = {}
    for split, size_nm in sizes_nm.items():
        path = folder / f"{split}.ome.zarr"
        with create_ome_zarr(path, (2, 3, 4), np.uint8, size_nm) as voxels:
            voxels[:] = 1
        with create_ome_zarr_label(path, "mitochondria", np.uint8) as voxels:
            voxels[:] = 1
        entries[split] = [{"image": str(path), "label": str(path / "labels" / "mitochondria")}]
    write_datalist(folder, entries)
    return folder


def test_of_phantoms_nothing_is_said():
    assert dataset_voxel_size("") is None


def test_the_size_of_training_is_recorded(tmp_path):
    folder = dataset(tmp_path, training=(50, 4, 5), validation=(50, 4.5, 5), test=None)
    assert dataset_voxel_size(folder) == [50, 4, 5]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_splits_of_other_voxels_are_refused(split, tmp_path):
    sizes = {"training": (30, 8, 8), "validation": (30, 8, 8), "test": (30, 8, 8)}
    with pytest.raises(UserError, match=rf"{split}.ome.zarr: .*30x16x8 nm, and 30x8x8 nm in .*training.ome.zarr"):
        dataset_voxel_size(dataset(tmp_path, **{**sizes, split: (30, 16, 8)}))


def test_unknown_sizes_are_warned_of(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert dataset_voxel_size(dataset(tmp_path, training=None, validation=None, test=None)) is None
    assert "no image says its voxel size" in caplog.text
