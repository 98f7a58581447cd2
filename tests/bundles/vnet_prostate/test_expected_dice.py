# SPDX-License-Identifier: Apache-2.0
"""Which scans of prostates the network says that it is unsure of."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from volseg.transforms.expected_dice import LOWEST_SURE
from volseg.weights import load_weights

PROSTATES = Path(__file__).parents[4] / "shared" / "data" / "prostate"
needs_scans = pytest.mark.skipif(not PROSTATES.is_dir(), reason=f"no scans in {PROSTATES}")


def test_noise_is_no_prostate(monai_bundle, bundle, save, tmp_path):
    noise = np.random.default_rng(0).normal(300, 80, (96, 100, 20)).astype(np.float32)
    scan = save(tmp_path / "noise.nii.gz", noise, np.diag([1.8, 1.7, 3.5, 1]))
    options = ("--input", scan, "--output_dir", tmp_path / "out", "--preview", "False", "--runtime", "eager")
    process = monai_bundle("run", "--config_file", bundle.configs / "inference.json", *options)
    assert process.returncode == 0, process.stderr
    [statistics] = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert statistics["expected_dice"]["prostate"] < LOWEST_SURE
    assert any("the network is unsure" in warning for warning in statistics["warnings"])


@needs_scans
def test_few_patients_are_warned_of_and_no_half_of_a_scan_is_missed(bundle, save, tmp_path):
    config = ConfigParser(ConfigParser.load_config_file(str(bundle.configs / "inference.json")))
    config["runtime"] = "channels_last"
    network = config.get_parsed_content("network")
    load_weights(bundle.dir / "models" / "model.pt", network.eval())
    read, infer = config.get_parsed_content("preprocessing"), config.get_parsed_content("inferer")
    finish = config.get_parsed_content("postprocessing")

    def expected(scan: Path) -> float:
        case = read({"image": scan})
        with torch.inference_mode():
            case["pred"] = infer(case["image"][None], network)[0]
        return finish(case, end=1)["image"].meta["quality"]["expected_dice"]["prostate"]

    scans = [*PROSTATES.glob("promise12_pairs/more/*_image.nii.gz"), *PROSTATES.glob("prostatex_t2/*.nii.gz")]
    # the two whose Dice is the lowest
    assert {scan.name[:7] for scan in scans if expected(scan) < LOWEST_SURE} == {"train12", "train17"}
    whole = nib.load(PROSTATES / "prostatex_t2" / "ProstateX-0000_t2.nii.gz")
    voxels = whole.get_fdata(dtype=np.float32)
    halves = [voxels[:192], voxels[192:], voxels[:, :192], voxels[:, 192:], voxels[..., :9], voxels[..., 10:]]
    for number, half in enumerate(halves):
        assert expected(save(tmp_path / f"{number}.nii.gz", half, whole.affine)) < LOWEST_SURE
