# SPDX-License-Identifier: Apache-2.0
"""Tests of the share of lobes' borders on which the CT shows a fissure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pdvnet_lung.lobes import from_cip_codes
from pdvnet_lung.visible_fissures import visible_fissure_shares

from volseg.data.volume_reader import load_volume

AFFINE = np.diag([0.8, 1.0, 1.25, 1.0])
REAL = Path(__file__).parents[4] / "shared" / "data" / "lung" / "cip"


def lungs() -> tuple[np.ndarray, np.ndarray]:
    """A left lung with a tilted fissure between two lobes, and no fissure in the CT."""
    x, y, z = np.ogrid[:40, :36, :44]
    lobes = np.where(z + 0.3 * y + 0 * x > 27, 1, 2).astype(np.uint8)
    return np.full(lobes.shape, -850, np.float32), lobes


def draw_plate(hu: np.ndarray, offset: float, slope: float = 0.3) -> np.ndarray:
    """A plate of one voxel, parallel to the fissure by default."""
    x, y, z = np.ogrid[:40, :36, :44]
    return np.where(np.abs(z + slope * y + 0 * x - 27 - offset) < 0.6, np.float32(-500), hu)


def test_a_fissure_on_the_border_is_seen():
    hu, lobes = lungs()
    shares = visible_fissure_shares(draw_plate(hu, 0.5), lobes, AFFINE)
    assert shares["at_border"] > 0.95
    assert shares["away"] == 0


@pytest.mark.parametrize(("offset", "slope"), [(-6.0, 0.3), (-13.0, -1.5)])
def test_plates_elsewhere_or_across_do_not_count(offset, slope):
    hu, lobes = lungs()
    assert visible_fissure_shares(draw_plate(hu, offset, slope), lobes, AFFINE)["at_border"] < 0.15


def test_without_a_plate_or_without_a_border():
    hu, lobes = lungs()
    assert visible_fissure_shares(hu, lobes, AFFINE) == {"at_border": 0, "away": 0}
    one = visible_fissure_shares(hu, np.ones_like(lobes), AFFINE)
    assert np.isnan(one["at_border"])


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real scans in {REAL}")
def test_reference_lobes_of_real_slices_lie_on_fissures():
    ct = load_volume(REAL / "crop_ct_2slices.nrrd")
    labels = load_volume(REAL / "crop_ct_interactiveLobeSegmentation.nrrd").numpy()[0, :, :, 60:62]
    slab, lobes = (np.repeat(array, 6, axis=2) for array in (ct.numpy()[0], from_cip_codes(labels)))
    shares = visible_fissure_shares(slab, lobes, np.asarray(ct.affine))
    assert shares["at_border"] > 0.4
    assert shares["away"] < 0.2
