# SPDX-License-Identifier: Apache-2.0
"""Files that hospitals export, for the two bundles that share a reader: right, a warning, or one clear line."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.bundles.users_files import Files, Situation, check, rows


def gzip_under_nii(files: Files) -> Path:
    path = files.folder / "ct.nii"
    path.write_bytes(files.image.read_bytes())
    return path


def nii_under_gzip(files: Files) -> Path:
    path = files.folder / "ct.nii.gz"
    path.write_bytes(gzip.decompress(files.image.read_bytes()))
    return path


SITUATIONS = [
    Situation("plain", lambda files: files.image, "right"),
    Situation("gzip content under .nii", gzip_under_nii, "right"),
    Situation("no gzip content under .nii.gz", nii_under_gzip, "right"),
    Situation("no such file", lambda files: files.folder / "a.nii.gz", "refused", ("a.nii.gz", "no such file")),
]


@pytest.fixture(scope="module")
def segment(monai_bundle, bundle):
    """``segment(source, out, *options)`` runs inference on a small grid; the completed process."""

    def run(source: Path | str, out: Path, *options: str):
        return monai_bundle(
            "run", "--config_file", bundle.configs / "inference.json", "--input", source, "--weights", bundle.weights,
            "--output_dir", out, "--device", "cpu", "--runtime", "eager", "--preview", "False",
            *bundle.network_overrides, *options,
        )  # fmt: skip

    return run


@pytest.fixture(scope="module")
def expected(segment, bundle, tmp_path_factory) -> Path:
    """Results of the phantom."""
    out = tmp_path_factory.mktemp(bundle.name) / "expected"
    process = segment(bundle.phantom["image"], out)
    assert process.returncode == 0, process.stderr
    return out


@rows(SITUATIONS)
def test_users_file(situation, segment, bundle, expected, tmp_path):
    (tmp_path / "in").mkdir()
    image = nib.load(bundle.phantom["image"])
    files = Files(tmp_path / "in", bundle.phantom["image"], np.asarray(image.dataobj), image.affine)
    process = segment(situation.make(files), tmp_path / "out", *situation.options)
    check(situation, process, tmp_path / "out", expected)
