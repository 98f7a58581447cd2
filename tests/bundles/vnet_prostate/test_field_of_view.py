# SPDX-License-Identifier: Apache-2.0
"""The card says that the network's field of view, 128x128x96 mm around the middle, holds the glands of patients."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

GLANDS = Path(__file__).resolve().parents[4] / "shared" / "data" / "prostate" / "msd_task05_labels"
FIELD_OF_VIEW_MM = np.array([128, 128, 96])


@pytest.mark.skipif(not GLANDS.is_dir(), reason="needs the masks of MSD Task05")
def test_no_gland_of_24_patients_is_clipped():
    paths = sorted(GLANDS.glob("prostate_*.nii.gz"))
    assert len(paths) == 24
    for path in paths:
        image = nib.load(path)
        gland = np.argwhere(np.asarray(image.dataobj) > 0)
        middle = (np.array(image.shape) - 1) / 2
        # the farthest gland voxel's outer face from the middle of the scan
        reach_mm = (np.abs(gland - middle).max(axis=0) + 0.5) * image.header.get_zooms()[:3]
        assert (reach_mm <= FIELD_OF_VIEW_MM / 2).all(), (path.name, reach_mm)
