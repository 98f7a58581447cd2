# SPDX-License-Identifier: Apache-2.0
"""Label codes of this bundle, and translation of the codes of other data sets and tools.

All functions are pure and accept label arrays of any shape and axis order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volseg.errors import UserError
from volseg.label_maps.label_file import round_labels

# left before right, upper before lower, as in lungmask and lungct; 0 is background
LOBES = {1: "LUL", 2: "LLL", 3: "RUL", 4: "RML", 5: "RLL"}
LEFT, RIGHT = (1, 2), (3, 4, 5)

LOBE_NAMES = {
    1: "left upper lobe",
    2: "left lower lobe",
    3: "right upper lobe",
    4: "right middle lobe",
    5: "right lower lobe",
}

# foreign code to code of this bundle. Labels of the Chest Imaging Platform are packed: region = v & 255, type = v >> 8
CIP_REGIONS = {7: 1, 8: 2, 4: 3, 5: 4, 6: 5}
TOTALSEGMENTATOR_IDS = {10: 1, 11: 2, 12: 3, 13: 4, 14: 5}
LOLA11_CODES = {10: 1, 11: 2, 20: 3, 21: 4, 22: 5}

# name of TotalSegmentator's mask file (without .nii.gz) to code of this bundle
TOTALSEGMENTATOR_MASKS = {
    "lung_upper_lobe_left": 1,
    "lung_lower_lobe_left": 2,
    "lung_upper_lobe_right": 3,
    "lung_middle_lobe_right": 4,
    "lung_lower_lobe_right": 5,
}


def from_cip_codes(label: NDArray[Any], name: str = "label") -> NDArray[np.uint8]:
    """Translate packed codes of the Chest Imaging Platform, as in the LUNA16 lobe maps of Tang et al.

    Only the region decides: 516 to 520 are airways inside a lobe (type 2) and belong to it, where comparing
    ``label == 4`` would leave holes. Airways elsewhere (512, 513) and stray 1s become background.
    """
    return _translate((round_labels(label, name) & 255).astype(np.uint8), CIP_REGIONS)


def from_totalsegmentator_ids(label: NDArray[Any], name: str = "label") -> NDArray[np.uint8]:
    """Translate a multi-label map of TotalSegmentator v2 (task ``total``); other organs become background."""
    return _translate(round_labels(label, name), TOTALSEGMENTATOR_IDS)


def from_lola11_codes(label: NDArray[Any], name: str = "label") -> NDArray[np.uint8]:
    """Translate codes of the LOLA11 challenge."""
    return _translate(round_labels(label, name), LOLA11_CODES)


def merge_lobe_masks(masks: Mapping[int, NDArray[Any]], name: str = "masks") -> NDArray[np.uint8]:
    """Merge one mask per lobe into a label map.

    Args:
        masks: code to mask; all masks of one shape, non-zero inside.
        name: name in errors, preferably the folder.

    Raises:
        UserError: there are no masks, two masks overlap, or a mask does not hold integers.
    """
    if not masks:
        raise UserError(f"{name}: must have one mask per lobe, got none")
    merged = np.zeros_like(next(iter(masks.values())), dtype=np.uint8)
    for code, mask in masks.items():
        inside = round_labels(mask, f"{name} ({LOBES[code]})") != 0
        overlap = merged[inside]
        if overlap.any():
            other = LOBES[int(overlap[overlap != 0][0])]
            raise UserError(
                f"{name}: lobe masks must not overlap, got {np.count_nonzero(overlap)} voxels that are both "
                f"{LOBES[code]} and {other}; download the case again or remove it"
            )
        merged[inside] = code
    return merged


def present_lobes(label: NDArray[Any]) -> tuple[int, ...]:
    """Return the lobes in a label map of this bundle, in order."""
    return tuple(code for code in LOBES if (label == code).any())


def _translate(label: NDArray[Any], table: Mapping[int, int]) -> NDArray[np.uint8]:
    # One comparison per lobe, because indexing a lookup table would convert 150 million voxels to int64.
    # zeros_like keeps the memory order of a transposed map; otherwise this takes ten times as long
    translated = np.zeros_like(label, dtype=np.uint8)
    for code, lobe in table.items():
        translated[label == code] = lobe
    return translated
