# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import itk
import numpy as np
import pytest
from pdvnet_lung.lobes import (
    CIP_REGIONS,
    LOBE_NAMES,
    LOBES,
    LOLA11_CODES,
    TOTALSEGMENTATOR_IDS,
    TOTALSEGMENTATOR_MASKS,
    from_cip_codes,
    from_lola11_codes,
    from_totalsegmentator_ids,
    merge_lobe_masks,
    present_lobes,
)

from volseg.errors import UserError

REAL = Path(__file__).parents[4] / "shared" / "data" / "lung"
TANG = sorted((REAL / "tang_luna16_lobes").glob("*.nrrd"))
needs_tang = pytest.mark.skipif(not TANG, reason=f"no lobe maps of LUNA16 cases under {REAL}")


def test_every_table_reaches_every_lobe():
    assert LOBES == {1: "LUL", 2: "LLL", 3: "RUL", 4: "RML", 5: "RLL"}
    for table in (LOBE_NAMES, {v: k for k, v in TOTALSEGMENTATOR_MASKS.items()}):
        assert set(table) == set(LOBES)
    for table in (CIP_REGIONS, TOTALSEGMENTATOR_IDS, LOLA11_CODES):
        assert sorted(table.values()) == sorted(LOBES)
    for code, short in LOBES.items():
        assert "".join(word[0] for word in LOBE_NAMES[code].split()).upper() == short
        mask = next(name for name, value in TOTALSEGMENTATOR_MASKS.items() if value == code)
        assert sorted(LOBE_NAMES[code].split()) == sorted(mask.removeprefix("lung_").split("_"))


def test_cip_codes_by_region_and_not_by_value():
    #        RUL RML RLL LUL LLL  the same with airway inside        airway, stray 1, vessel in RUL, thirds
    codes = [4, 5, 6, 7, 8, 516, 517, 518, 519, 520, 0, 512, 513, 1, 772, 9, 14]
    expected = [3, 4, 5, 1, 2, 3, 4, 5, 1, 2, 0, 0, 0, 0, 3, 0, 0]
    converted = from_cip_codes(np.array(codes, np.uint16))
    assert converted.dtype == np.uint8 and converted.tolist() == expected
    assert from_cip_codes(np.array(codes, np.float32)).tolist() == expected


def test_other_codes_and_shape():
    label = np.array([[0, 10, 11], [12, 13, 14], [20, 21, 22], [1, 255, 266]])
    assert from_totalsegmentator_ids(label).tolist() == [[0, 1, 2], [3, 4, 5], [0, 0, 0], [0, 0, 0]]
    assert from_lola11_codes(label).tolist() == [[0, 1, 2], [0, 0, 0], [3, 4, 5], [0, 0, 0]]


def test_masks_merge_or_complain():
    masks = {code: np.eye(5, dtype=np.uint8)[code - 1] for code in LOBES}
    merged = merge_lobe_masks(masks)
    assert merged.dtype == np.uint8 and merged.tolist() == [1, 2, 3, 4, 5]
    assert present_lobes(merged) == (1, 2, 3, 4, 5) and present_lobes(merged[1:3]) == (2, 3)
    with pytest.raises(UserError, match=r"s0001: lobe masks must not overlap, got 1 voxels that are both RML and LUL"):
        merge_lobe_masks({1: np.array([1, 0]), 4: np.array([1, 1])}, "s0001")
    with pytest.raises(UserError, match="must have one mask per lobe, got none"):
        merge_lobe_masks({})


@needs_tang
@pytest.mark.parametrize("path", TANG, ids=lambda path: path.name[-30:-22])
def test_real_cip_maps_convert_without_holes(path: Path):
    label = itk.array_view_from_image(itk.imread(path))
    converted = from_cip_codes(label, path.name)
    assert converted.dtype == np.uint8 and converted.max() == 5 and present_lobes(converted) == tuple(LOBES)
    airway = np.unique(label[label >= 512]).tolist()
    assert max(airway) >= 516 and set(airway) <= {512, 513, *range(516, 521)}
    lookup = np.zeros(1024, np.uint8)
    for region, lobe in CIP_REGIONS.items():
        lookup[[region, 512 + region]] = lobe
    assert all(np.array_equal(lookup[plane], found) for plane, found in zip(label, converted, strict=True))
