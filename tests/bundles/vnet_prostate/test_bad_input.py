# SPDX-License-Identifier: Apache-2.0
"""What only users of V-Net can get wrong: labels of zones, images without contrast, scans without a prostate."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import torch


def test_labels_of_zones_are_joined_on_request_alone(train, case, image, refused, save):
    label = np.zeros(image[0].shape, np.uint8)
    label[8:16, 4:10, 4:10] = 2
    save(case / "label.nii.gz", label, image[1])
    refused(train(case), "label.nii.gz", "0 to 1", "2", "--join_labels True")
    assert train(case, "--join_labels", "True").returncode == 0


def test_an_image_without_contrast(try_to_infer, image, refused, save, tmp_path):
    source = save(tmp_path / "grey.nii.gz", np.full_like(image[0], 7), image[1])
    refused(try_to_infer(source), "grey.nii.gz", "image is constant", "7")


def test_no_prostate_in_view(try_to_infer, bundle, phantom, handled, tmp_path):
    state = torch.load(bundle.weights, weights_only=True)
    state["head.bias"] = torch.tensor([100.0, 0])  # weights that find nothing but background
    torch.save(state, tmp_path / "nothing.pt")
    record = json.loads(bundle.weights.with_suffix(".json").read_text())
    (tmp_path / "nothing.json").write_text(json.dumps({k: v for k, v in record.items() if k != "sha256"}))
    (case,) = handled(try_to_infer(phantom["image"], model=tmp_path / "nothing.pt"))
    assert case["warnings"] == ["no prostate found."]
    assert not np.asarray(nib.load(tmp_path / "out" / "test_0_prostate.nii.gz").dataobj).any()


def test_network_of_another_norm_than_the_weights(try_to_infer, phantom, refused):
    refused(try_to_infer(phantom["image"], "--norm", "batch"), "model.pt", "no weights of VNet as configured")


def test_unknown_norm(train, case, refused):
    process = train(case, "--norm", "group")
    assert process.returncode == 1
    assert "norm must be None, 'batch' or 'instance', got 'group'" in process.stderr
