# SPDX-License-Identifier: Apache-2.0
"""Mistakes of ``python -m tools label``, before anything is installed or packed."""

from __future__ import annotations

import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from tools.label.command import label
from tools.label.environment import LABEL
from volseg.errors import UserError


def test_missing_studies_are_named(tmp_path):
    with pytest.raises(UserError, match=r"studies: .*nowhere is not a folder"):
        label(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("names", ["unet", ("pdvnet_lung", "unet")])
def test_unknown_model_is_named(tmp_path, names):
    with pytest.raises(UserError, match=r"models: no bundle named unet; choose from pdvnet_lung, "):
        label(str(tmp_path), models=names)


def test_scores_need_a_model_that_is_served(tmp_path):
    with pytest.raises(UserError, match=r"epistemic_model: vnet_prostate is not served"):
        label(str(tmp_path), models="pdvnet_lung", epistemic_model="vnet_prostate")


def test_port_in_use_is_named(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"cannot listen at 127\.0\.0\.1:{port}: Address already in use"):
            label(str(tmp_path), port=port)


def test_folder_with_other_files_becomes_no_environment(tmp_path):
    (tmp_path / "thesis.txt").write_text("text")
    with pytest.raises(UserError, match=r"holds other files, not an environment"):
        LABEL.ensure(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "text"


def test_other_pythons_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"needs Python 2\.7, got 3\."):
        replace(LABEL, pythons=((2, 7),)).ensure(tmp_path / "environment")
    assert not (tmp_path / "environment").exists()


def test_constraints_pin_every_package():
    lines = [line for line in LABEL.constraints.read_text().splitlines() if not line.startswith("#")]
    names = {line.partition("==")[0].lower() for line in lines}
    assert all("==" in line and "+" not in line for line in lines)
    assert {"monai", "monailabel", "numpy", "pydicom", "pynetdicom", "torch", "torchvision"} <= names


def test_operators_of_torchvision_are_declared_when_it_is_looked_for(tmp_path):
    code = (
        "import sys, importlib.util\n"
        "from tools.label.torchvision_operators import install\n"
        "install(); early = 'torch' in sys.modules\n"
        "importlib.util.find_spec('torchvision')\n"
        "import torch\n"
        "print(early, hasattr(torch.ops.torchvision, 'nms'))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["False", "True"]
