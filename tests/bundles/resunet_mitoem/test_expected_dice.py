# SPDX-License-Identifier: Apache-2.0
"""Of which tissue the network says that it is unsure."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from volseg.data.ome_zarr import create_ome_zarr
from volseg.data.open_volume import open_chunked_volume
from volseg.transforms.expected_dice import LOWEST_SURE

REAL = Path(__file__).parents[4] / "shared" / "data" / "mito" / "sbem_cdeep3m"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"no sections in {REAL}")


@needs_real
def test_wrong_voxel_sizes_and_inverted_tissue_are_warned_of(monai_bundle, bundle, tmp_path):
    tissue = open_chunked_volume(REAL / "images")[:8, :320, :320]
    for name, voxels, size_nm in (
        ("right", tissue, (24, 10, 10)),
        ("too_large", tissue, (24, 24, 24)),
        ("xyz", tissue, (10, 10, 24)),
        ("inverted", 255 - tissue, (24, 10, 10)),
        ("noise", np.random.default_rng(0).integers(0, 255, tissue.shape).astype(np.uint8), (24, 10, 10)),
    ):
        with create_ome_zarr(tmp_path / "in" / f"{name}.ome.zarr", voxels.shape, np.uint8, size_nm) as array:
            array[:] = voxels
    options = ("--input", tmp_path / "in", "--output_dir", tmp_path / "out", "--preview", "False", "--runtime", "eager")
    process = monai_bundle("run", "--config_file", bundle.configs / "inference.json", *options)
    assert process.returncode == 0, process.stderr
    cases = {Path(c["image"]).name: c for c in json.loads((tmp_path / "out" / "statistics.json").read_text())}
    for name, warning in (
        ("right", None),
        ("too_large", "the network is unsure: it expects a Dice"),
        ("xyz", "pixels of 10x24 nm are not square"),
        ("inverted", "the network is unsure: it expects a Dice"),
        ("noise", "no instance found"),
    ):
        found = cases[f"{name}.ome.zarr"]["warnings"]
        assert any(w.startswith(warning) for w in found) if warning else not found, (name, found)
    assert cases["right.ome.zarr"]["expected_dice"]["mitochondria"] > LOWEST_SURE
