# SPDX-License-Identifier: Apache-2.0
"""MONAI Label in its environment, the three packed bundles, small phantoms as studies, and a client."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from tests.label.label_client import TIMEOUT_S, save_nifti
from tools import REPOSITORY
from tools.label.command import ENVIRONMENT, prepare_application
from tools.label.environment import LABEL
from tools.pack import bundle_names
from volseg.phantoms.chest_ct import chest_ct
from volseg.phantoms.electron_microscopy import electron_microscopy
from volseg.phantoms.prostate_mri import prostate_mri

EM_AFFINE = np.array([[-0.024, 0, 0, 5], [0, -0.024, 0, 7], [0, 0, 0.03, -2], [0, 0, 0, 1]])
EM_SEEDS = (10, 14)  # of phantoms that the included weights segment well
ITK_AFFINE = np.diag([-1.0, -1, 1, 1])  # of a TIFF without a geometry, as viewers have it

START = """
import sys
from tools.label.command import label
from volseg.console.fire_commands import run
run({"label": label}, "python -m tools")
"""


@pytest.fixture(scope="session")
def label_python() -> Path:
    """Python with MONAI Label; ``VOLSEG_LABEL_ENV`` may name an environment that somebody built."""
    given = os.environ.get("VOLSEG_LABEL_ENV")
    return Path(given) / "bin" / "python" if given else LABEL.ensure(REPOSITORY / ENVIRONMENT)


@pytest.fixture(scope="module")
def truth(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("truth")


@pytest.fixture(scope="module")
def studies(tmp_path_factory, truth) -> Path:
    """Two phantoms of each kind; of electron microscopy one as NIfTI and one as TIFF."""
    folder = tmp_path_factory.mktemp("studies")
    for number in range(2):
        for kind, make, shape in (("ct", chest_ct, (96, 96, 64)), ("mri", prostate_mri, (96, 96, 20))):
            case = make(number, shape)
            save_nifti(folder / f"{kind}_{number}.nii.gz", case.image.astype(np.int16), case.affine)
            save_nifti(truth / f"{kind}_{number}.nii.gz", case.label.astype(np.uint8), case.affine)
        em = electron_microscopy(EM_SEEDS[number], (16, 96, 112), binning=3, varied=True)
        affine = ITK_AFFINE if number else EM_AFFINE
        save_nifti(truth / f"em_{number}.nii.gz", em.label.T.astype(np.uint8), affine)
        if number:
            tifffile.imwrite(folder / f"em_{number}.tif", em.image, photometric="minisblack")
        else:
            save_nifti(folder / f"em_{number}.nii.gz", em.image.T, affine)
    return folder


@pytest.fixture(scope="module")
def app(tmp_path_factory) -> Path:
    """The app with the bundles as packed, V-Net without its weights."""
    folder = tmp_path_factory.mktemp("app")
    prepare_application(folder, bundle_names())
    for path in (folder / "model" / "vnet_prostate" / "models").glob("model.*"):
        path.unlink()
    config = folder / "model" / "resunet_mitoem" / "configs" / "train.json"
    content = json.loads(config.read_text())
    content["epoch_iterations"] = 2  # of 100: whether it learns is tested elsewhere
    config.write_text(json.dumps(content))
    return folder


@pytest.fixture
def vnet_weights(app) -> Iterator[Path]:
    """Where V-Net's weights are: random ones, of phantoms' grid, unless a training wrote others."""
    from vnet_prostate.network import VNet

    from volseg.weights import save_weights

    path = app / "model" / "vnet_prostate" / "models" / "model.pt"
    if not path.is_file():
        torch.manual_seed(0)
        record = {
            "spacing_mm": [2.67, 2.67, 3.0], "spatial_size": [48, 48, 32], "channels": [16, 32, 64, 128, 256],
            "norm": None, "bias_correction": False, "local_contrast_mm": None, "mirror": False, "mask_threshold": 0.5,
        }  # fmt: skip
        save_weights(path, VNet(), record)
    return path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def free_port() -> int:
    return _free_port()


@pytest.fixture
def second_free_port(free_port) -> int:
    """Looked for when it is needed: a port beside the first one may be anyone's."""
    while (port := _free_port()) == free_port:
        pass
    return port


@pytest.fixture
def start_command(tmp_path):
    """Starts ``python -m tools label`` with arguments; stopped at the end whatever happens."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: object) -> tuple[subprocess.Popen[str], Path]:
        log = tmp_path / "log.txt"
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", START, "label", *map(str, arguments)],
                cwd=REPOSITORY, stdout=output, stderr=output, text=True,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            )  # fmt: skip
        started.append(process)
        return process, log

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(TIMEOUT_S)
