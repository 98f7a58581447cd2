# SPDX-License-Identifier: Apache-2.0
"""The label table of this bundle, and the codes of other data sets and tools translated to it.

All functions are pure and take label arrays of any shape and axis order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from volseg.errors import UserError
from volseg.label_maps.codes import round_labels

# Left before right and upper before lower, as lungmask and lungct number them; 0 is background.
LOBES = {1: "LUL", 2: "LLL", 3: "RUL", 4: "RML", 5: "RLL"}

LOBE_NAMES = {
    1: "left upper lobe",
    2: "left lower lobe",
    3: "right upper lobe",
    4: "right middle lobe",
    5: "right lower lobe",
}

# Code there to code here. A Chest Imaging Platform label is packed: region = v & 255, type = v >> 8.
CIP_REGIONS = {7: 1, 8: 2, 4: 3, 5: 4, 6: 5}
TOTALSEGMENTATOR_IDS = {10: 1, 11: 2, 12: 3, 13: 4, 14: 5}
LOLA11_CODES = {10: 1, 11: 2, 20: 3, 21: 4, 22: 5}

# Name of the mask file of TotalSegmentator (without .nii.gz) to code here.
TOTALSEGMENTATOR_MASKS = {
    "lung_upper_lobe_left": 1,
    "lung_lower_lobe_left": 2,
    "lung_upper_lobe_right": 3,
    "lung_middle_lobe_right": 4,
    "lung_lower_lobe_right": 5,
}


def from_cip_codes(label: NDArray[Any], name: str = "label") -> NDArray[np.uint8]:
    """Packed codes of the Chest Imaging Platform, as in the LUNA16 lobe maps of Tang et al., to codes here.

    The region alone decides: 516 to 520 are airway inside a lobe (type 2) and belong to that lobe, where comparing
    ``label == 4`` would leave holes. Airway elsewhere (512, 513) and stray 1s become background.
    """
    return _translate((round_labels(label, name) & 255).astype(np.uint8), CIP_REGIONS)


def from_totalsegmentator_ids(label: NDArray[Any], name: str = "label") -> NDArray[np.uint8]:
    """Multi-label map of TotalSegmentator v2 (task ``total``) to codes here; other organs become background."""
    return _translate(round_labels(label, name), TOTALSEGMENTATOR_IDS)


def from_lola11_codes(label: NDArray[Any], name: str = "label") -> NDArray[np.uint8]:
    """Codes of the LOLA11 challenge to codes here."""
    return _translate(round_labels(label, name), LOLA11_CODES)


def merge_lobe_masks(masks: Mapping[int, NDArray[Any]], name: str = "masks") -> NDArray[np.uint8]:
    """One label map of one mask per lobe.

    Args:
        masks: code here to mask; all of one shape, non-zero is inside.
        name: what an error calls them, best their folder.

    Raises:
        UserError: two masks overlap, or a mask is not of whole numbers.
    """
    merged: NDArray[np.uint8] | None = None
    for code, mask in masks.items():
        inside = round_labels(mask, f"{name} ({LOBES[code]})") != 0
        if merged is None:
            merged = np.zeros_like(inside, dtype=np.uint8)
        overlap = merged[inside]
        if overlap.any():
            other = LOBES[int(overlap[overlap != 0][0])]
            raise UserError(
                f"{name}: lobe masks overlap. Received: {np.count_nonzero(overlap)} voxels of {LOBES[code]} that are "
                f"{other} too. Expected: disjoint masks; download the case again or take it out"
            )
        merged[inside] = code
    if merged is None:
        raise UserError(f"{name}: no lobe mask. Received: none. Expected: one per lobe")
    return merged


def present_lobes(label: NDArray[Any]) -> tuple[int, ...]:
    """Codes of the lobes that a label map in the codes of this bundle holds, in order."""
    return tuple(code for code in LOBES if (label == code).any())


def _translate(label: NDArray[Any], table: Mapping[int, int]) -> NDArray[np.uint8]:
    # One comparison per lobe instead of a lookup table: indexing would widen 150 million voxels to int64.
    # zeros_like keeps the memory order of a transposed map, without which this takes ten times as long.
    translated = np.zeros_like(label, dtype=np.uint8)
    for code, lobe in table.items():
        translated[label == code] = lobe
    return translated
