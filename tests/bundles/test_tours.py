# SPDX-License-Identifier: Apache-2.0
"""The tours run as they are written, at a tiny size, and are notebooks cell by cell."""

from __future__ import annotations

import re
from ast import literal_eval
from pathlib import Path

import pytest
from matplotlib.image import imread

from volseg.console.command_line import unknown_overrides

TOURS = Path(__file__).parents[2] / "docs" / "tours"
SIZE = re.compile(r"^SIZE = (\{.*?^\})", re.MULTILINE | re.DOTALL)
PICTURES = ["1_phantom.png", "2_training.png", "3_segmented.png", "4_scores.png", "5_failure.png"]
CASES = {"max_epochs": 2, "val_interval": 1, "phantom_cases": {"training": 2, "validation": 1, "test": 2}}
TINY = {
    "pdvnet_lung": {"spatial_size": [32, 40, 24], "phantom_shape": [40, 48, 32]},
    "vnet_prostate": {
        "spatial_size": [32, 48, 16],
        "spacing_mm": [4.0, 3.0, 6.0],
        "channels": [2, 4, 4, 8, 8],
        "phantom_shape": [48, 40, 16],
    },
    "resunet_mitoem": {
        "spatial_size": [8, 32, 48],
        "margin_pixels": 8,
        "epoch_iterations": 2,
        "network_def#channels": [4, 4, 4, 4, 4],
        "phantom_shape": [12, 48, 64],
    },
}


def tour(name: str) -> str:
    return (TOURS / f"{name}.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", TINY)
def test_a_tour_runs(name, runner, tmp_path):
    text, count = SIZE.subn(f"SIZE = {CASES | TINY[name]}", tour(name))
    assert count == 1
    process = runner.python(text, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    folder = tmp_path / f"tour_{name}"
    assert sorted(path.name for path in folder.glob("*.png")) == PICTURES
    assert all(imread(folder / picture).std() > 0.05 for picture in PICTURES)  # something is drawn
    said, _, difference = process.stdout.splitlines()[-1].rpartition(": ")
    assert said == "largest difference between TorchScript and the network"
    assert float(difference) <= 1e-4


@pytest.mark.parametrize("name", TINY)
def test_sizes_of_a_tour_are_options_of_the_training(name, root):
    (size,) = SIZE.findall(tour(name))
    overrides = [part for key, value in literal_eval(size).items() for part in (f"--{key}", str(value))]
    unknown_overrides(["--config_file", str(root / "bundles" / name / "configs" / "train.json"), *overrides])


@pytest.mark.parametrize("name", TINY)
def test_a_tour_is_a_notebook(name):
    header, *cells = re.split(r"^# %%", tour(name), flags=re.MULTILINE)
    assert "format_name: percent" in header
    assert header.splitlines()[0] == "# ---"
    for cell in cells:
        kind, _, lines = cell.partition("\n")
        if kind == " [markdown]":
            assert all(line.startswith("#") for line in lines.splitlines() if line)
        else:
            assert kind == ""
            compile(lines, name, "exec")
