# SPDX-License-Identifier: Apache-2.0
"""The same scan has the same mask, whatever offset, scale and type its grey values have in the file."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose
from vnet_prostate.network import VNet

from volseg.phantoms.prostate_mri import prostate_mri

CONFIGS = Path(__file__).resolve().parents[3] / "bundles" / "vnet_prostate" / "configs"
# offset, factor and type in the file, of a scan of 0 to 1000
FILES = {
    "minus_1024": (-1024, 1, np.int16),
    "unsigned": (20000, 20, np.uint16),
    "thousandth": (0, 0.001, np.float32),
    "z_scored": (-1.3, 0.004, np.float32),
    "negative": (-3000, 2, np.float64),
}


@pytest.fixture(scope="module")
def scan() -> tuple[np.ndarray, np.ndarray]:
    """Longer along two axes and shorter along the third than what the network sees: cropped and padded."""
    mri = prostate_mri(3, (72, 64, 16))
    return np.minimum(mri.image.astype(float) * 1000 / np.percentile(mri.image, 99.9), 1000).round(), mri.affine


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "bias_correction"])
def preprocessing(request) -> Compose:
    """That of inference."""
    parser = ConfigParser()
    parser.read_config(CONFIGS / "inference.json")
    given = {"spacing_mm": [3.0, 3.0, 3.0], "spatial_size": [32, 32, 48], "bias_correction": request.param}
    parser.update({**given, "input": "", "imports": ["$import os", "$import vnet_prostate"]})
    return parser.get_parsed_content("preprocessing")


@pytest.fixture(scope="module")
def network() -> VNet:
    torch.manual_seed(0)
    return VNet(channels=(4, 8), encoder_convs=(1, 1), decoder_convs=(1,), norm="instance").eval()


def mask(preprocessing: Compose, network: VNet, path: Path) -> torch.Tensor:
    with torch.inference_mode():
        logits = network(preprocessing({"image": str(path)})["image"].as_tensor()[None])
    return logits[0, 1] - logits[0, 0] > logits[0, 1].median() - logits[0, 0].median()


@pytest.mark.parametrize("name", FILES)
def test_offset_scale_and_type_do_not_change_the_mask(name, scan, preprocessing, network, tmp_path):
    image, affine = scan
    offset, factor, dtype = FILES[name]
    for file, values in (("as_is", image.astype(np.int16)), (name, (image * factor + offset).astype(dtype))):
        nib.save(nib.Nifti1Image(values, affine), tmp_path / f"{file}.nii.gz")
    first, second = (mask(preprocessing, network, tmp_path / f"{file}.nii.gz") for file in ("as_is", name))
    assert 0.1 < first.float().mean() < 0.9
    assert 2 * (first & second).sum() / (first.sum() + second.sum()) >= 0.999


@pytest.mark.parametrize("value", [0, -3, 70000])
def test_blank_planes_around_the_scan_change_nothing(scan, preprocessing, network, tmp_path, value):
    image, affine = scan
    nib.save(nib.Nifti1Image(image, affine), tmp_path / "scan.nii.gz")
    padding = ((2, 2), (5, 5), (3, 3))
    start = affine @ np.array([-2, -5, -3, 1])
    padded = np.pad(image, padding, constant_values=value)
    nib.save(nib.Nifti1Image(padded, np.column_stack([affine[:, :3], start])), tmp_path / "padded.nii.gz")
    first, second = (mask(preprocessing, network, tmp_path / f"{name}.nii.gz") for name in ("scan", "padded"))
    assert 0.1 < first.float().mean() < 0.9
    assert torch.equal(first, second)


def test_padding_does_not_count(scan, preprocessing, tmp_path):
    image, affine = scan
    nib.save(nib.Nifti1Image(image + 500, affine), tmp_path / "scan.nii.gz")
    scaled = preprocessing({"image": str(tmp_path / "scan.nii.gz")})["image"]
    padding = scaled[0, 0, 0] == 0  # slices beyond the scan
    assert padding[:3].all() and padding[-3:].all()
    inside = scaled[scaled != 0]
    inside = inside[inside > inside.min()]
    assert abs(float(inside.mean())) < 1e-3 and abs(float(inside.std(correction=0)) - 1) < 1e-3
