# SPDX-License-Identifier: Apache-2.0
"""The papers' tables end to end: every method is trained and scored once, at a tiny size."""

from __future__ import annotations

import dataclasses
import json
import subprocess

import pytest

from tools import tables as tool
from tools.bundle_run import bundle_command

# of Res-UNet what no other table has, a second stage
METHODS = {
    "pdvnet_lung": ("PDV-Net", "2D U-Net"),
    "vnet_prostate": ("V-Net, Dice loss", "V-Net, weighted logistic loss"),
    "resunet_mitoem": ("Res-UNet-H", "Res-UNet-H, second stage"),
}


@pytest.fixture(scope="module", params=METHODS)
def bundle_name(request) -> str:
    return request.param


@pytest.fixture
def make_table(bundle, runner, tmp_path, monkeypatch, root):
    """Make the table of the tiny bundle; the commands that it ran, the results and the page."""
    table = tool.TABLES[bundle.name]
    chosen = tuple(method for method in table.methods if method.name in METHODS[bundle.name])
    monkeypatch.setitem(tool.TABLES, bundle.name, dataclasses.replace(table, methods=chosen))
    ran: list[list[str]] = []

    def run(folder, configs, overrides):
        ran.append(list(configs))
        command = bundle_command(folder, configs, overrides)
        process = runner.bundle(*command[3:], cwd=root)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command, process.stdout, process.stderr)

    monkeypatch.setattr(tool, "run_bundle", run)
    sizes = {key: value for key, value in bundle.small.record.items() if isinstance(value, list)}
    if bundle.name == "pdvnet_lung":
        sizes["spatial_size"] = [32, 48, 24]  # the 2D U-Net halves slices four times
    networks = {f"network_def#{key}": value for key, value in bundle.small.arguments.items()}
    overrides = {
        **sizes, **networks, **bundle.small.training, "max_epochs": 1, "val_interval": 1, "device": "cpu",
        "phantom_cases": {"training": 2, "validation": 1, "test": 2}, "phantom_shape": list(bundle.small.phantom_shape),
    }  # fmt: skip

    def make():
        ran.clear()
        tool.tables(bundle.name, overrides=overrides, output_dir=str(tmp_path / "out"), work_dir=str(tmp_path / "work"))
        read = json.loads((tmp_path / "out" / "table.json").read_text(encoding="utf-8"))
        return list(ran), read, (tmp_path / "out" / "table.md").read_text(encoding="utf-8")

    return make


def test_methods_are_trained_and_scored_once(bundle, make_table, tmp_path):
    ran, result, page = make_table()
    names, columns = METHODS[bundle.name], tool.TABLES[bundle.name].columns
    assert len(ran) == 2 * len(names)
    assert set(result["methods"]) == set(names)
    assert result["command"].startswith(f"python -m tools tables {bundle.name} --overrides \"{{'")
    assert len(result["tests"]) == (len(names) - 1) * len(columns)
    for how in result["methods"].values():
        assert how["training"]["command"].startswith("python -m monai.bundle run --config_file")
        assert str(tmp_path) not in json.dumps(how)
    cases = {(row["method"], row["case"]) for row in result["cases"] if row["method"] in names}
    assert cases == {(name, case) for name in names for case in ("test_0", "test_1")}
    assert ("floor" in page) == (bundle.name == "vnet_prostate")
    assert all(f"| {name} | 2 | 1 |" in page for name in names)
    # nothing is done again but what is missing
    [some_scores, *_] = (tmp_path / "work" / "scores").iterdir()
    (some_scores / "scoring.json").unlink()
    again, same_result, same_page = make_table()
    assert [configs[-1] for configs in again] == ["evaluate"]
    assert (same_result, same_page) == (result, page)
