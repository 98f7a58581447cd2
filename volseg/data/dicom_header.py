# SPDX-License-Identifier: Apache-2.0
"""What one DICOM file says of itself: whether it is an image and whole, and its place in space."""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from volseg.data.volume_formats.base import optional_module
from volseg.errors import UserError

if TYPE_CHECKING:  # a run on other formats does without the package
    from pydicom import Dataset

__all__ = ["DERIVED", "DicomFile", "check_content", "geometry", "is_scout", "is_slice", "read_header", "series_uid"]

RIGHT_ANGLES = 0.01  # what headers may round of a direction's length and of the cosine between two
DERIVED = ("SEG", "RTDOSE")  # modalities of what lies on a scan
# at byte 128 of every DICOM file but those of old archives, which begin with an element of group 2 or 8
MAGIC = b"DICM"
FIRST_ELEMENT = re.compile(rb"[\x02\x08]\0[\0-\x20]\0")
# what is read of a header, to see that it can be
NUMBERS = (
    "AcquisitionNumber", "BitsAllocated", "BitsStored", "Columns", "DiffusionBValue", "EchoTime", "HighBit",
    "ImageOrientationPatient", "ImagePositionPatient", "NumberOfFrames", "PixelRepresentation", "PixelSpacing",
    "RescaleIntercept", "RescaleSlope", "Rows", "SamplesPerPixel", "SliceThickness", "TemporalPositionIdentifier",
)  # fmt: skip
SEQUENCE_END = b"\xfe\xff\xdd\xe0\0\0\0\0"
# of damaged files, besides those of pydicom, which decodes values where they are asked for
READ_ERRORS = (OSError, ValueError, TypeError, KeyError, NotImplementedError, EOFError, struct.error)


@dataclass(frozen=True)
class DicomFile:
    """A file and its header; the element of the pixels begins at byte ``pixels_at``."""

    path: Path
    header: Dataset
    pixels_at: int


def is_slice(path: Path) -> bool:
    """Whether a file is an image in DICOM, and no result on one, judged by its header."""
    pydicom = optional_module("pydicom")
    try:
        with path.open("rb") as file:
            if not _begins_like_dicom(file.read(128 + len(MAGIC))):
                return False
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Rows", "Modality"], force=True)
        return "Rows" in header and header.get("Modality") not in DERIVED
    except (pydicom.errors.BytesLengthException, *READ_ERRORS):
        return True  # damaged, which is said when it is read


def is_scout(paths: Sequence[Path]) -> bool:
    """Whether a few DICOM files are localizers or screenshots: no frames of a volume."""
    pydicom = optional_module("pydicom")
    try:
        headers = [pydicom.dcmread(path, stop_before_pixels=True, force=True) for path in paths if is_slice(path)]
    except (pydicom.errors.BytesLengthException, *READ_ERRORS):
        return False
    return all(int(header.get("NumberOfFrames") or 1) == 1 for header in headers)


def series_uid(paths: Sequence[Path]) -> str | None:
    """The SeriesInstanceUID of the first slice among files; None where it does not say one."""
    pydicom = optional_module("pydicom")
    try:
        path = next(path for path in paths if is_slice(path))
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"], force=True)
    except (StopIteration, pydicom.errors.BytesLengthException, *READ_ERRORS):
        return None
    return str(header.get("SeriesInstanceUID") or "") or None


def _begins_like_dicom(start: bytes) -> bool:
    return start[128:] == MAGIC or FIRST_ELEMENT.match(start) is not None


def read_header(path: Path) -> DicomFile | None:
    """A file's header, or None for what is not DICOM.

    Raises:
        UserError: the header is damaged.
    """
    if not path.is_file():
        return None
    pydicom = optional_module("pydicom")
    try:
        with path.open("rb") as file:
            if not _begins_like_dicom(file.read(128 + len(MAGIC))):
                return None
            file.seek(0)
            header = pydicom.dcmread(file, stop_before_pixels=True, force=True)
            for keyword in NUMBERS:  # pydicom decodes them when asked
                header.get(keyword)
            return DicomFile(path, header, file.tell())
    except (pydicom.errors.BytesLengthException, *READ_ERRORS) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: damaged DICOM header ({reason}). Copy it again.") from error


def geometry(path: Path, header: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Position (3,) in mm, directions (6,) of a row and of a column, and spacing (2,) in mm of a slice.

    Raises:
        UserError: the slice has no place in space, no spacing, or axes that are not at right angles.
    """
    position, directions = header.get("ImagePositionPatient"), header.get("ImageOrientationPatient")
    if not position or not directions or len(position) != 3 or len(directions) != 6:
        raise UserError(
            f"{path}: no ImagePositionPatient or ImageOrientationPatient, so the slice has no place in space. "
            "Export it with its geometry."
        )
    cosines = np.array(directions, float)
    products = cosines.reshape(2, 3) @ cosines.reshape(2, 3).T
    if not np.isfinite([*position]).all() or not np.abs(products - np.eye(2)).max() <= RIGHT_ANGLES:
        raise UserError(
            f"{path}: ImageOrientationPatient must be two directions at right angles and ImagePositionPatient finite, "
            f"got {list(directions)} and {list(position)}. Export it with its geometry."
        )
    spacing = header.get("PixelSpacing")
    if not spacing or len(spacing) != 2 or not all(0 < length < np.inf for length in spacing):
        raise UserError(f"{path}: PixelSpacing must be two lengths > 0, got {spacing}. Export it with its geometry.")
    return np.array(position, float), cosines, np.array(spacing, float)


def _check_grey(path: Path, header: Dataset) -> None:
    if header.get("Modality") in DERIVED:
        raise UserError(f"{path} must be a scan, got a result on one (modality {header.Modality}); give the scan")
    photometric = header.get("PhotometricInterpretation") or "MONOCHROME2"
    if photometric != "MONOCHROME2":
        raise UserError(f"{path} must hold grey values as MONOCHROME2, got {photometric}; export it so")
    if header.get("RescaleSlope", 1) == 0 or header.get("ModalityLUTSequence"):
        raise UserError(f"{path} must have a RescaleSlope that is not 0, and no table in its place; export it so")
    if "HighBit" in header and header.HighBit != header.get("BitsStored", 0) - 1:
        raise UserError(
            f"{path} must have a HighBit one below BitsStored, got {header.HighBit} and {header.get('BitsStored')}; "
            "export it so"
        )


def check_content(file: DicomFile) -> None:
    """See that a file holds grey values, and all of them.

    Raises:
        UserError: a result on a scan, colours, a table of grey values, or a truncated file.
    """
    path, header, pixels_at = file.path, file.header, file.pixels_at
    _check_grey(path, header)
    syntax = getattr(header.file_meta, "TransferSyntaxUID", None)
    size = path.stat().st_size
    if syntax is not None and not syntax.is_transfer_syntax:
        raise UserError(f"{path} must have a transfer syntax of the standard, got {syntax}; export it as uncompressed")
    if "Columns" not in header:
        raise UserError(f"{path}: truncated DICOM header, {size} bytes. Copy it again.")
    if syntax is not None and syntax.is_encapsulated:
        with path.open("rb") as stored, mmap.mmap(stored.fileno(), 0, access=mmap.ACCESS_READ) as content:
            is_complete = content.find(SEQUENCE_END, pixels_at) >= 0
    elif syntax is not None and syntax.is_deflated:
        return  # no size to compare with; the reader finds the end
    else:
        samples = int(header.get("SamplesPerPixel") or 1) * int(header.get("NumberOfFrames") or 1)
        bits = header.Rows * header.Columns * samples * int(header.get("BitsAllocated") or 16)
        element_header = 8 if header.original_encoding[0] else 12
        is_complete = size >= pixels_at + element_header + bits // 8
    if not is_complete:
        raise UserError(f"{path}: truncated DICOM file, {size} bytes. Copy it again.")
