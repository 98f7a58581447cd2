# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from volseg.errors import UserError
from volseg.label_maps.label_file import round_labels

REAL = Path(__file__).parents[4] / "shared" / "data" / "lung"
TOTALSEGMENTATOR = sorted((REAL / "ts_lobe_labels_1p5mm").glob("*.nii.gz"))
needs_totalsegmentator = pytest.mark.skipif(not TOTALSEGMENTATOR, reason=f"no TotalSegmentator labels under {REAL}")


def test_scale_slope_is_rounded_and_interpolation_is_an_error():
    label = np.array([0.0, 1.00000004, 2.99999, 5.00000018])
    assert round_labels(label).tolist() == [0, 1, 3, 5]
    integers = np.array([3], np.uint16)
    assert round_labels(integers) is integers
    for bad in (4.5, 3.002, np.nan, np.inf):
        with pytest.raises(UserError, match=r"x\.nii\.gz: label codes are not whole numbers, got .*; give a label map"):
            round_labels(np.array([1.0, bad]), "x.nii.gz")


@needs_totalsegmentator
@pytest.mark.parametrize("path", TOTALSEGMENTATOR, ids=lambda path: path.name[:5])
def test_real_maps_with_a_scale_slope_round_to_the_codes(path: Path):
    label = np.asanyarray(nib.load(path).dataobj)
    assert label.dtype.kind == "f"
    assert np.unique(round_labels(label, path.name)).tolist() == [0, 1, 2, 3, 4, 5]
