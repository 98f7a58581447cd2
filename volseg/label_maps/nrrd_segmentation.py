# SPDX-License-Identifier: Apache-2.0
"""Label maps as NRRD that 3D Slicer opens as a segmentation, with names, codes and colours."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from volseg.label_maps.anatomy import Segment
from volseg.storage.files import atomic_path

if TYPE_CHECKING:
    from pydicom.sr.codedict import Code

__all__ = ["write_nrrd_segmentation"]

TO_LPS = np.array([-1, -1, 1])


def write_nrrd_segmentation(
    path: str | Path, labels: np.ndarray, affine: np.ndarray, segments: Sequence[Segment]
) -> None:
    """Write a label map ``(X, Y, Z)`` as uint8 NRRD, whole or not at all.

    Args:
        path: ends in ``.seg.nrrd``, by which 3D Slicer knows a segmentation.
        labels: label map.
        affine: voxel to RAS in mm.
        segments: of the label map.
    """
    *axes, origin = (_vector(TO_LPS * column + 0.0) for column in affine[:3].T)
    header = [
        "NRRD0004",
        "type: uint8",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(str(n) for n in labels.shape)}",
        f"space directions: {' '.join(axes)}",
        "kinds: domain domain domain",
        "encoding: gzip",
        f"space origin: {origin}",
        "Segmentation_ContainedRepresentationNames:=Binary labelmap|",
        "Segmentation_MasterRepresentation:=Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset:=0 0 0",
    ]
    # one extent for all, as segments of one layer share their voxels
    extent = " ".join(f"0 {n - 1}" for n in labels.shape)
    for index, segment in enumerate(segments):
        fields = {
            "ID": f"Segment_{segment.number}",
            "Name": segment.name,
            "LabelValue": segment.number,
            "Layer": 0,
            "Extent": extent,
            "Color": " ".join(f"{shade / 255:.6f}" for shade in segment.rgb),
            "Tags": f"TerminologyEntry:{_terminology(segment)}|",
        }
        header += [f"Segment{index}_{key}:={value}" for key, value in fields.items()]
    content = gzip.compress(labels.astype(np.uint8).tobytes(order="F"), compresslevel=1, mtime=0)
    with atomic_path(path) as temporary:
        temporary.write_bytes("\n".join([*header, "", ""]).encode() + content)


def _vector(values: Iterable[float]) -> str:
    return f"({','.join(repr(float(value)) for value in values)})"


def _terminology(segment: Segment) -> str:
    """Category, type and side in the order in which 3D Slicer writes them; no anatomic region."""
    coded = "~".join(_code(code) for code in (segment.category, segment.structure, segment.side))
    return f"Segmentation category and type - DICOM master list~{coded}~Anatomic codes - DICOM master list~^^~^^"


def _code(code: Code | None) -> str:
    return "^^" if code is None else f"{code.scheme_designator}^{code.value}^{code.meaning}"
