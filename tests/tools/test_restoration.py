# SPDX-License-Identifier: Apache-2.0
"""Tests of what is measured on restored phantoms."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tools import restoration
from volseg.data.ome_zarr import create_ome_zarr
from volseg.phantoms.electron_microscopy import electron_microscopy

SHAPE = (8, 64, 72)


def write(path, voxels):
    with create_ome_zarr(path, voxels.shape, voxels.dtype, (30, 8, 8)) as array:
        array[:] = voxels


def test_sections_are_compared_with_the_truth(tmp_path):
    pair = electron_microscopy(3, SHAPE), electron_microscopy(3, SHAPE, missing=1, noisy=1)
    clean, spoilt = pair
    [missing], [noisy] = spoilt.missing_sections, spoilt.noisy_sections
    # restored: off by 2 grey levels in the missing section; noisy not found, a clean one taken for noisy
    restored = spoilt.image.copy()
    restored[missing] = np.where(clean.image[missing] > 100, clean.image[missing] - 2, clean.image[missing] + 2)
    write(tmp_path / "00_restored.ome.zarr", restored)
    false_alarm = next(z for z in range(SHAPE[0]) if z not in (missing, noisy))
    rows = [f"{z},{int(z in (missing, false_alarm))}" for z in range(SHAPE[0])]
    (tmp_path / "00_sections.csv").write_text("\n".join(["section,noisy", *rows]))
    found = restoration._compare_sections([pair], tmp_path)
    assert found["search"] == {"spoilt": 2, "found": 1, "false_alarms": 1}
    by_kind = {section["kind"]: section["psnr_db"] for section in found["sections"]}
    assert by_kind["missing"]["network"] == pytest.approx(20 * np.log10(255 / 2), abs=1e-3)
    assert by_kind["noisy"]["network"] == by_kind["noisy"]["spoilt"]
    assert found["psnr_db"]["linear"]["n"] == 2


def test_linear_interpolation_goes_by_distance():
    image = np.zeros((6, 2, 3), np.uint8)
    image[1], image[4] = 30, 90
    assert (restoration._interpolate_linearly(image, 2, {2, 3}) == 50).all()
    assert (restoration._interpolate_linearly(image, 3, {2, 3}) == 70).all()


def test_instances_are_scored(tmp_path, monkeypatch):
    truth = np.zeros((4, 20, 24), np.uint16)
    truth[:, 2:8, 3:10], truth[1:3, 12:18, 12:22] = 1, 2
    half_missed = np.where(truth == 1, truth, 0).astype(np.uint16)

    def infer(bundle, configs, overrides):
        assert configs == ["inference"]
        output_dir = overrides["output_dir"]
        for name, labels in (("a", truth), ("b", half_missed)):
            write(output_dir / f"{name}_instances.ome.zarr", labels)
        cases = [{"instances": f"{name}_instances.ome.zarr"} for name in "ab"]
        (output_dir / "statistics.json").write_text(json.dumps(cases))

    monkeypatch.setattr(restoration, "run_bundle", infer)
    scores = restoration._score_instances(tmp_path, tmp_path / "out", [truth, truth])
    voxels = [np.sum(truth == index) for index in (1, 2)]
    dice = 2 * voxels[0] / (2 * voxels[0] + voxels[1])
    assert scores["foreground_dice"] == {"n": 2, "mean": round((1 + dice) / 2, 4), "std": round((1 - dice) / 2, 4)}
    # of the 101 recalls, the 51 up to a half are reached
    assert scores["ap75"]["mean"] == round((1 + 51 / 101) / 2, 4)
