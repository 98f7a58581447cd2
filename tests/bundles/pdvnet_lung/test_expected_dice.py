# SPDX-License-Identifier: Apache-2.0
"""Which chests the network says that it is unsure of."""

from __future__ import annotations

import json
from pathlib import Path

import itk
import numpy as np
import pytest

from volseg.transforms.expected_dice import LOWEST_SURE

CT = Path(__file__).parents[4] / "shared" / "data" / "lung" / "cip" / "ct-64.nrrd"
needs_ct = pytest.mark.skipif(not CT.is_file(), reason=f"no CT in {CT}")


@needs_ct
def test_chests_on_their_heads_or_cut_in_half_are_warned_of(monai_bundle, bundle, save, tmp_path):
    image = itk.imread(CT)
    hu = itk.array_from_image(image).T  # (X, Y, Z) along L, P, S
    affine = np.diag([*(-1, -1, 1) * np.array(image.GetSpacing()), 1])
    (tmp_path / "in").mkdir()
    cases = {
        "whole": hu,
        "small": hu,
        "upside_down": hu[:, :, ::-1],
        "face_down": hu[:, ::-1],
        "mirrored": hu[::-1],
        "left_half": hu[32:],
        "lower_half": hu[:, :, :40],
        "back_half": hu[:, 26:],
    }
    for name, voxels in cases.items():
        scale = np.diag([0.45, 0.45, 0.45, 1]) if name == "small" else np.eye(4)
        save(tmp_path / "in" / f"{name}.nii.gz", np.ascontiguousarray(voxels), affine @ scale)
    options = ("--input", tmp_path / "in", "--output_dir", tmp_path / "out", "--preview", "False", "--runtime", "eager")
    process = monai_bundle("run", "--config_file", bundle.configs / "inference.json", *options)
    assert process.returncode == 0, process.stderr
    unsure = {}
    for case in json.loads((tmp_path / "out" / "statistics.json").read_text()):
        name = Path(case["image"]).name.removesuffix(".nii.gz")
        unsure[name] = any(value < LOWEST_SURE for value in case["expected_dice"].values())
        assert any("the network is unsure" in warning for warning in case["warnings"]) == unsure[name]
    assert unsure == {name: name not in ("whole", "small") for name in cases}
