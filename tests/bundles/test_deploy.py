# SPDX-License-Identifier: Apache-2.0
"""What the bundle operator of MONAI Deploy App SDK asks of a bundle's folder, and that its labels are those of a run.

The operator takes items of ``inference.json`` by name and leaves out what reads or writes files, told by class names.
Its volumes are arrays without a channel axis, with an affine beside them.
"""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose


@pytest.fixture(scope="module", params=["pdvnet_lung", "vnet_prostate"])
def bundle_name(request) -> str:
    return request.param


def without_files(compose: Compose) -> Compose:
    kept = [t for t in compose.transforms if not any(word in type(t).__name__ for word in ("LoadImage", "SaveImage"))]
    return Compose(kept)


def test_operator_finds_the_labels_of_a_run(bundle, infer, phantom):
    parser = ConfigParser()
    parser.read_meta(bundle.configs / "metadata.json")
    parser.read_config(bundle.configs / "inference.json")
    # the test's small network; the operator takes the bundle as it is
    parser["weights"], parser["runtime"] = str(bundle.weights), "eager"
    for key, value in bundle.small.arguments.items():
        parser[f"network_def#{key}"] = value
    preprocessing = without_files(parser.get_parsed_content("preprocessing"))
    postprocessing = without_files(parser.get_parsed_content("postprocessing"))
    network = parser.get_parsed_content("network")
    network.load_state_dict(torch.load(bundle.weights, weights_only=True), strict=True)
    (name,) = parser["_meta_"]["network_data_format"]["inputs"]

    file = nib.load(phantom["image"])
    voxels = np.asarray(file.dataobj).astype(np.int16)
    meta = {"affine": file.affine, "original_affine": file.affine, "original_channel_dim": "no_channel"}
    data = preprocessing({name: MetaTensor.ensure_torch_and_prune_meta(voxels, meta)})
    with torch.no_grad():
        logits = parser.get_parsed_content("inferer")(
            inputs=data[name][None].to(parser.get_parsed_content("device")), network=network.eval()
        )
    (output,) = parser["_meta_"]["network_data_format"]["outputs"]
    labels = np.asarray(postprocessing({output: logits[0], **data})[output])[0]

    out, _ = infer(phantom["image"], "--runtime", "eager")
    expected = np.asarray(nib.load(out / bundle.segmentation()).dataobj)
    assert labels.shape == expected.shape == voxels.shape
    np.testing.assert_array_equal(labels, expected)
    assert len(np.unique(expected)) > 1
