# SPDX-License-Identifier: Apache-2.0
"""What installed weights were trained with counts in MONAI Label, and nowhere else."""

from __future__ import annotations

import sys

from volseg.console.monai_label import MULTI_GPU_CONFIG, installed_values

PAPER = {"norm": None, "max_epochs": 1300}


def test_installed_values_in_monai_label_alone(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    assert installed_values(path, PAPER, ["norm"]) == {}
    monkeypatch.setattr(sys, "argv", ["run", f"--config_file=['x/{MULTI_GPU_CONFIG}']"])
    assert installed_values(path, PAPER, ["norm"]) == {"norm": None, "trained_on": "labels of MONAI Label"}
    path.with_suffix(".json").write_text('{"norm": "instance", "max_epochs": 16}')
    assert installed_values(path, PAPER, ["norm"]) == {"norm": "instance", "trained_on": "labels of MONAI Label"}
