# SPDX-License-Identifier: Apache-2.0
"""Tests of the Dice that the network expects, and of the warning of a low one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from vnet_prostate.expected_dice import ExpectedDiced, expected_dice

from volseg.weights import load_weights

PROSTATES = Path(__file__).parents[4] / "shared" / "data" / "prostate"
needs_scans = pytest.mark.skipif(not PROSTATES.is_dir(), reason=f"no scans in {PROSTATES}")


@pytest.mark.parametrize(
    ("probability", "expected"),
    [
        ([1, 1, 1, 0, 0, 0], 1.0),
        # twice the 1.4 inside, over 2 voxels and 1.5 in all
        ([0.8, 0.6, 0.1, 0, 0, 0], 2 * 1.4 / (2 + 1.5)),
        # the second piece counts as missed
        ([0.8, 0.8, 0, 0.8, 0, 0], 2 * 1.6 / (2 + 2.4)),
        ([0.4, 0.3, 0, 0, 0, 0], math.nan),
    ],
)
def test_expected_dice(probability, expected):
    volume = torch.tensor(probability, dtype=torch.float32).reshape(1, 1, 6, 1)
    assert expected_dice(volume, 0.5) == pytest.approx(expected, nan_ok=True)


def test_expectation_is_what_truths_drawn_from_the_probabilities_give():
    rng = np.random.default_rng(0)
    distance = np.linalg.norm(np.indices((14, 16, 12)).T - (7, 8, 6), axis=-1).T
    probability = 1 / (1 + np.exp(2 * (distance - 4)))
    mask = probability > 0.4
    scores = []
    for _ in range(200):
        truth = rng.random(probability.shape) < probability
        scores.append(2 * np.count_nonzero(mask & truth) / (mask.sum() + truth.sum()))
    assert expected_dice(torch.as_tensor(probability)[None], 0.4) == pytest.approx(np.mean(scores), abs=0.005)


@pytest.mark.parametrize(("inside", "unsure"), [(0.9, False), (0.5, True)])
def test_a_low_expectation_is_warned_of(caplog, inside, unsure):
    volume = torch.zeros(1, 4, 5, 6)
    volume[0, 1:3, 1:4, 2:5] = inside
    item = ExpectedDiced("pred", 0.4)({"pred": MetaTensor(volume, meta={"filename_or_obj": "scan.nii.gz"})})
    expected = 2 * inside / (1 + inside)
    assert item["pred"].meta["quality"] == {"expected_dice": round(expected, 3)}
    assert ("scan.nii.gz: the network is unsure of the gland: it expects a Dice of 0.67" in caplog.text) == unsure


def test_noise_is_no_prostate(monai_bundle, bundle, save, tmp_path):
    noise = np.random.default_rng(0).normal(300, 80, (96, 100, 20)).astype(np.float32)
    scan = save(tmp_path / "noise.nii.gz", noise, np.diag([1.8, 1.7, 3.5, 1]))
    options = ("--input", scan, "--output_dir", tmp_path / "out", "--preview", "False", "--runtime", "eager")
    process = monai_bundle("run", "--config_file", bundle.configs / "inference.json", *options)
    assert process.returncode == 0, process.stderr
    [statistics] = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert statistics["expected_dice"] < 0.7
    assert any("unsure of the gland" in warning for warning in statistics["warnings"])


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
        return finish(case, end=4)["pred"].meta["quality"]["expected_dice"]

    scans = [*PROSTATES.glob("promise12_pairs/more/*_image.nii.gz"), *PROSTATES.glob("prostatex_t2/*.nii.gz")]
    # the two whose Dice is the lowest
    assert {scan.name[:7] for scan in scans if expected(scan) < 0.7} == {"train12", "train17"}
    whole = nib.load(PROSTATES / "prostatex_t2" / "ProstateX-0000_t2.nii.gz")
    voxels = whole.get_fdata(dtype=np.float32)
    halves = [voxels[:192], voxels[192:], voxels[:, :192], voxels[:, 192:], voxels[..., :9], voxels[..., 10:]]
    for number, half in enumerate(halves):
        assert expected(save(tmp_path / f"{number}.nii.gz", half, whole.affine)) < 0.7
