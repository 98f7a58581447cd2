# SPDX-License-Identifier: Apache-2.0
"""Invalid options are reported in one line."""

from __future__ import annotations

import sys

import pytest
import torch

from volseg.console.option_checks import check_options, check_training
from volseg.errors import UserError

TRAINING = {"max_epochs": 3, "val_interval": 1, "batch_size": 2, "num_workers": 0}


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("max_epochs", -1, r"^max_epochs must be an integer >= 1, got -1$"),
        ("max_epochs", "abc", r"^max_epochs .*, got 'abc'$"),
        ("max_epochs", 1.5, r"^max_epochs .*, got 1\.5$"),
        ("val_interval", 0, r"^val_interval .*, got 0$"),
        ("batch_size", None, r"^batch_size .*, got None$"),
        ("num_workers", -1, r"^num_workers must be an integer >= 0, got -1$"),
    ],
)
def test_training(option, value, message):
    check_training(**TRAINING)
    with pytest.raises(UserError, match=message) as caught:
        check_training(**TRAINING | {option: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("device", "cuda:77", "device must be one of cpu.*, got 'cuda:77'"),
        ("device", "gpu", "device must be one of cpu.*, got 'gpu'"),
        ("bias_correction", "yes", "bias_correction must be True or False, got 'yes'"),
        ("mirror", 1, "mirror must be True or False, got 1"),
        ("channels", 16, "channels must be a list of integers >= 1 such as .*, got 16"),
        ("channels", [16, 0], r"channels must be a list of integers >= 1 such as .*, got \[16, 0\]"),
        ("local_contrast_mm", 0, "local_contrast_mm must be a number above 0, up to 1000, got 0"),
        ("mask_threshold", 1.5, "mask_threshold must be a number from 0 to 1, got 1.5"),
        ("dropout", 1, "dropout must be a number from 0 to below 1, got 1"),
        ("learning_rate", 0, "learning_rate must be a number above 0, up to 100, got 0"),
        (
            "output_format",
            "dicom",
            r"output_format must be nifti, dicom_seg, seg_nrrd or several such as \[dicom_seg,seg_nrrd\], got 'dicom'",
        ),
        ("seed", -1, "seed must be an integer >= 0, got -1"),
        (
            "spacing_mm",
            [1, 0, 1],
            r"spacing_mm must be three numbers from 0\.1 to 20 along x, y, z .*\[1, 0, 1\]",
        ),
        ("spatial_size", [8, 8], r"spatial_size must be three integers >= 1 along x, y, z .*, got \[8, 8\]"),
        ("spatial_size", [9999, 9999, 9999], "spatial_size of 9999x9999x9999 needs 63... GB or more"),
        ("weight_decay", "low", "weight_decay must be a number from 0 to 100, got 'low'"),
        ("adam_betas", [0.9, 1], r"adam_betas must be two numbers from 0 to below 1 such as .*, got \[0\.9, 1\]"),
        ("adam_betas", 0.9, "adam_betas must be two numbers"),
        (
            "voxel_size_nm",
            [30, 8],
            r"voxel_size_nm must be three lengths in nm along z, y, x such as .*, got \[30, 8\]",
        ),
        ("counts", {"steps": 0}, "steps must be an integer >= 1, got 0"),
        ("counts_or_none", {"margin": -1}, "margin must be an integer >= 0, got -1"),
        ("numbers", {"power": "high"}, "power must be a number from 0 to .*, got 'high'"),
        ("probabilities", {"blur": 0.5, "noise": 2}, "noise must be a number from 0 to 1, got 2"),
        ("sizes_zyx", {"window": [8, 64]}, r"window must be three integers >= 1 along z, y, x .*, got \[8, 64\]"),
        ("blocks_zyx", {"size": [9999, 9999, 9999]}, "size of 9999x9999x9999 needs 63... GB or more"),
        ("switches", {"amp": "yes"}, "amp must be True or False, got 'yes'"),
        ("output_dir", "/dev/null/out", "/dev/null/out: not a folder for results"),
    ],
)
def test_options_that_are_none(name, value, message):
    with pytest.raises(UserError, match=message):
        check_options(**{name: value})


def test_a_format_whose_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    check_options(output_format=["nifti", "seg_nrrd"])
    with pytest.raises(UserError, match=r"highdicom: not installed, .*; run pip install highdicom"):
        check_options(output_format=("nifti", "dicom_seg"))


def test_options_that_pass(tmp_path):
    check_options(device="cpu", dropout=0, learning_rate=1e-5, seed=0, spacing_mm=[1, 1, 1.5], spatial_size=None)
    check_options(bias_correction=False, mirror=True, channels=[8, 16], local_contrast_mm=20.0, mask_threshold=0.4)
    check_options(
        adam_betas=[0.9, 0.999], voxel_size_nm=[30, 8, 8], sizes_zyx={"window": [8, 9999, 9999], "size": None}
    )
    check_options(device=torch.device("cpu"), spatial_size=(128, 128, 64), output_dir=tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
