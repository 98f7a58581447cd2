# SPDX-License-Identifier: Apache-2.0
"""What only users of Res-UNet can get wrong: sections, stacks and stores, ids, weights of the other network."""

from __future__ import annotations

import json
import shutil

import h5py
import nibabel as nib
import numpy as np
import pytest
import tifffile
from PIL import Image
from resunet_mitoem.network import ResUNetH

from volseg.data.open_volume import open_chunked_volume
from volseg.weights import save_weights


@pytest.fixture
def voxels(phantom) -> np.ndarray:
    """The phantom's image (D, H, W)."""
    return open_chunked_volume(phantom["image"])[:]


@pytest.fixture
def sections(voxels, tmp_path):
    """A folder of sections, to be spoilt."""
    folder = tmp_path / "im"
    folder.mkdir()
    for z, section in enumerate(voxels):
        Image.fromarray(section).save(folder / f"im{z:04d}.png")
    return folder


def relabel(case, voxels: np.ndarray) -> None:
    """Give a dataset another label, as HDF5."""
    with h5py.File(case / "label.h5", "w") as file:
        file["main"] = voxels
    pair = {"image": "test_0.ome.zarr", "label": "label.h5"}
    (case / "dataset.json").write_text(json.dumps({"training": [pair], "validation": [pair], "test": [pair]}))


def test_labels_that_are_fractions(train, case, voxels, refused):
    relabel(case, voxels / np.float32(255))
    refused(train(case), "label.h5", "instance ids must be integers", "float32")


def test_label_of_another_shape(train, case, voxels, refused):
    relabel(case, voxels[:, :-1])
    refused(train(case), "label.h5", "test_0.ome.zarr", "must have one shape", "(12, 47, 64)", "(12, 48, 64)")


def test_label_that_is_listed_but_missing(train, case, refused):
    shutil.rmtree(case / "test_0.ome.zarr" / "labels")
    refused(train(case), "no such file", "labels/mitochondria")


def test_colours_with_transparency(try_to_infer, voxels, refused, tmp_path):
    tifffile.imwrite(tmp_path / "rgba.tif", np.stack([voxels] * 4, axis=-1), photometric="rgb")
    refused(try_to_infer(tmp_path / "rgba.tif"), "rgba.tif", "one value per voxel", "4 channels")


def test_folder_without_volumes(try_to_infer, refused, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("no volume")
    refused(try_to_infer(tmp_path / "notes"), "notes", "no sections found")


def test_sections_of_unequal_size(try_to_infer, sections, voxels, refused):
    Image.fromarray(voxels[5][:-1]).save(sections / "im0005.png")
    refused(try_to_infer(sections), "im0005.png", "47", "48")


def test_a_section_that_is_missing(try_to_infer, sections, refused):
    (sections / "im0005.png").unlink()
    refused(try_to_infer(sections), "im", "11 of the 12", "5")


def test_a_section_that_is_damaged(try_to_infer, sections, refused):
    content = (sections / "im0005.png").read_bytes()
    (sections / "im0005.png").write_bytes(content[: len(content) // 2])
    refused(try_to_infer(sections), "im0005.png", "truncated")


def test_truncated_stack(try_to_infer, voxels, refused, tmp_path):
    source = tmp_path / "cut.tif"
    tifffile.imwrite(source, voxels, compression="zlib")
    content = source.read_bytes()
    source.write_bytes(content[: len(content) // 2])
    refused(try_to_infer(source), "cut.tif", "truncated")


def test_one_of_several_data_sets_must_be_named(try_to_infer, voxels, refused, tmp_path):
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["raw"] = file["membranes"] = voxels
    refused(try_to_infer(tmp_path / "two.h5"), "two.h5", "2 3-D data sets", "two.h5:NAME")
    refused(try_to_infer(f"{tmp_path / 'two.h5'}:row"), "two.h5", "no data set 'row'", "raw")


def test_four_dimensional_file(try_to_infer, voxels, refused, save, tmp_path):
    source = save(tmp_path / "gated.nii.gz", np.stack([voxels.T] * 2, axis=-1), np.eye(4))
    refused(try_to_infer(source), "gated.nii.gz", "3-D", "x2")


def test_later_volume_damaged_keeps_the_earlier_results_whole(try_to_infer, bundle, voxels, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b"):
        nib.save(nib.Nifti1Image(voxels.T, np.eye(4)), folder / f"{name}.nii.gz")
    content = (folder / "b.nii.gz").read_bytes()
    (folder / "b.nii.gz").write_bytes(content[: len(content) // 2])
    process = try_to_infer(folder)
    assert process.returncode == 1
    assert "b.nii.gz" in process.stderr.splitlines()[-1]
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert written == {"a_instances.nii.gz", "a_instances.csv", "a_preview.png", "statistics.json", "report.html"}
    assert open_chunked_volume(tmp_path / "out" / "a_instances.nii.gz")[:].shape == voxels.shape


def test_weights_of_the_other_network(try_to_infer, bundle, phantom, refused, tmp_path):
    save_weights(tmp_path / "model_h.pt", ResUNetH(**bundle.small.arguments), bundle.small.record)
    refused(try_to_infer(phantom["image"], model=tmp_path / "model_h.pt"), "model_h.pt", "no weights of ResUNetR")


def test_number_of_predictions(try_to_infer, phantom, refused):
    refused(try_to_infer(phantom["image"], "--test_time_augmentation", 3), "must be 0, 4 or 16", "got '3'")


def test_results_in_the_way(try_to_infer, sections, refused, tmp_path):
    (tmp_path / "out" / "im_instances" / "mine").mkdir(parents=True)
    refused(try_to_infer(sections), "im_instances", "will not be replaced")
