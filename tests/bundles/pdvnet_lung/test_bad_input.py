# SPDX-License-Identifier: Apache-2.0
"""What only users of PDV-Net can get wrong: labels of lobes, Hounsfield units, CTs without lungs."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import torch


def test_window_that_is_upside_down(train, case, refused):
    refused(train(case, "--intensity_window_hu", "[-400,-1100]"), "intensity_window_hu must be two numbers", "lower")


def test_labels_out_of_range(train, case, image, refused, save):
    label = np.zeros(image[0].shape, np.uint8)
    label[:8] = 9
    save(case / "label.nii.gz", label, image[1])
    refused(train(case), "label.nii.gz", "0 to 5", "9", "prepare_data")


def test_labels_out_of_range_in_a_worker_process(train, case, image, refused, save):
    save(case / "label.nii.gz", np.full(image[0].shape, 9, np.uint8), image[1])
    refused(train(case, "--num_workers", 1), "label.nii.gz", "0 to 5", "9")


def test_float_labels_are_rounded(train, case, save, tmp_path):
    label = nib.load(case / "label.nii.gz")
    voxels = np.asarray(label.dataobj).astype(np.float32) * np.float32(1.00000004)
    voxels[voxels == 5] = 5.0000005
    assert (voxels % 1).any()
    save(case / "label.nii.gz", voxels, label.affine)
    process = train(case)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "models" / "model.pt").is_file()


def test_ct_not_in_hounsfield_units(try_to_infer, image, refused, save, tmp_path):
    voxels, affine = image
    source = save(tmp_path / "grey.nii.gz", ((voxels + 1024) // 8).clip(0, 255).astype(np.uint8), affine)
    refused(try_to_infer(source), "grey.nii.gz", "Hounsfield", "0 to")


def test_no_lungs_in_view(try_to_infer, image, weights, handled, save, tmp_path):
    voxels, affine = image
    state = torch.load(weights, weights_only=True)
    state["output3.bias"] = torch.tensor([100.0, 0, 0, 0, 0, 0])  # weights that find nothing but background
    torch.save(state, tmp_path / "nothing.pt")
    record = json.loads(weights.with_suffix(".json").read_text())
    (tmp_path / "nothing.json").write_text(json.dumps({k: v for k, v in record.items() if k != "sha256"}))
    head = np.full_like(voxels, -1000)
    head[10:30, 12:36] = np.linspace(20, 60, voxels.shape[2])
    (case,) = handled(try_to_infer(save(tmp_path / "head.nii.gz", head, affine), model=tmp_path / "nothing.pt"))
    assert [w for w in case["warnings"] if w.startswith("no lungs found")]
    assert not np.asarray(nib.load(tmp_path / "out" / "head_lobes.nii.gz").dataobj).any()


def test_preparing_data_without_a_source(monai_bundle, configs, refused, tmp_path):
    process = monai_bundle(
        "run", "--config_file", configs / "prepare_data.json", "--source", "luna16",
        "--input_dir", tmp_path / "nowhere", "--dataset_dir", tmp_path / "out",
    )  # fmt: skip
    refused(process, "nowhere")
