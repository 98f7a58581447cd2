# SPDX-License-Identifier: Apache-2.0
"""What labels are called in files for viewers: names, codes of SNOMED CT, and colours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from volseg.data.volume_formats.base import optional_module
from volseg.label_maps.picture import LABEL_COLOURS

if TYPE_CHECKING:  # a run that writes NIfTI alone does without the package
    from pydicom.sr.codedict import Code

__all__ = ["Segment", "coded_segments"]


class Segment(NamedTuple):
    """One label.

    Attributes:
        number: its value in the label map.
        name: its name in all results.
        category: of structures.
        structure: what it is, such as the upper lobe of a lung.
        side: of which side, where there are two.
        rgb: its colour in the pictures, 0 to 255.
    """

    number: int
    name: str
    category: Code
    structure: Code
    side: Code | None
    rgb: tuple[int, int, int]


def coded_segments(names: Mapping[int, str], anatomy: Mapping[str, Sequence[str]]) -> list[Segment]:
    """The segments of a label map.

    Args:
        names: label to name.
        anatomy: label to pydicom's keywords of SNOMED CT concepts, the structure and its side where there are two.
    """
    codes = optional_module("pydicom.sr.codedict").codes
    category, segments = codes.cid7150.AnatomicalStructure, []
    for number, name in names.items():
        structure, *side = (getattr(codes.SCT, keyword) for keyword in anatomy[str(number)])
        red, green, blue = bytes.fromhex(LABEL_COLOURS[number - 1].removeprefix("#"))
        segments.append(Segment(number, name, category, structure, side[0] if side else None, (red, green, blue)))
    return segments
