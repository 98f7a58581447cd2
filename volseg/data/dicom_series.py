# SPDX-License-Identifier: Apache-2.0
"""Prove from the headers that a folder of DICOM slices is one regular volume.

Readers sort slices and divide the way from the first to the last by their number. That is a geometry only if no slice
is missing, doubled or from elsewhere, so this module proves it before a voxel is read.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from volseg.data.volume_formats.base import optional_module
from volseg.errors import UserError

if TYPE_CHECKING:  # a run on other formats does without the package
    from pydicom import Dataset

__all__ = ["check_multi_frame", "is_scout", "is_slice", "regular_slices"]

logger = logging.getLogger(__name__)

# Positions are often rounded to 0.1 mm; a missing or moved slice is off by half a spacing or more.
ROUNDING_MM = 0.06
JITTER = 0.05  # of the spacing
SAME_POSITION_MM = 1e-3
SAME_DIRECTION = 1e-3  # of a direction cosine
TILT = 0.01  # sideways per step forwards: 0.6 degrees
# what tells several volumes under one series UID apart: tag and what it is called
SPLITTERS = {
    "AcquisitionNumber": "acquisition",
    "EchoTime": "echo time",
    "DiffusionBValue": "b-value",
    "TemporalPositionIdentifier": "time point",
    "AcquisitionTime": "acquisition time",
    "ContentTime": "content time",
}
# of these a volume has one value; an acquisition may be a turn of the gantry, and times differ from slice to slice
UNIQUE = ("EchoTime", "DiffusionBValue", "TemporalPositionIdentifier")
OVERLAP = 0.7  # of the slice thickness: slices of two acquisitions that lie closer were not taken as one volume
DERIVED = ("SEG", "RTDOSE")  # modalities of what lies on a scan
# at byte 128 of every DICOM file
MAGIC = b"DICM"
SEQUENCE_END = b"\xfe\xff\xdd\xe0\0\0\0\0"

# of damaged files, besides those of pydicom
READ_ERRORS = (OSError, ValueError, KeyError, NotImplementedError, EOFError)


@dataclass(frozen=True)
class _File:
    path: Path
    header: Dataset
    pixels_at: int  # byte at which the element of the pixels begins


@dataclass(frozen=True)
class _Slice(_File):
    position: np.ndarray  # (3,), mm
    directions: np.ndarray  # (6,): of a row, of a column

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.directions[:3], self.directions[3:])


def regular_slices(folder: Path) -> list[Path]:
    """The slices of the one volume in a folder, in order along their normal.

    Localizers, screenshots and slices of another orientation are left out, and of slices that were exported twice one
    is used; the log says so. Files that are not DICOM are passed over.

    Raises:
        UserError: the slices are not one volume at equal distances, at right angles and whole.
    """
    files = [found for path in sorted(folder.iterdir()) if (found := _read(path)) is not None]
    if not files:
        raise UserError(f"{folder}: no DICOM slices found. Give a folder with one DICOM series.")
    files = _without_other_series(folder, files)
    for file in files:
        _check_content(file)
    if len(files) == 1 and int(files[0].header.get("NumberOfFrames") or 1) > 1:
        check_multi_frame(files[0].path)
        return [files[0].path]
    slices = [_Slice(f.path, f.header, f.pixels_at, *_geometry(f.path, f.header)) for f in files]
    slices = _without_localizers(folder, slices)
    sizes = {(s.header.get("Rows"), s.header.get("Columns")) for s in slices}
    if len(sizes) > 1:
        raise UserError(f"{folder}: slices of different sizes, {sorted(sizes, key=str)}. Keep one volume.")
    slices = _without_doubles(folder, slices)
    slices = _in_order(slices)
    if len(slices) > 1:
        _check_one_volume(folder, slices)
        _check_distances(folder, slices)
    return [s.path for s in slices]


def check_multi_frame(path: Path) -> None:
    """See that the frames of an enhanced DICOM file are one regular volume; other files pass.

    Raises:
        UserError: frames without positions, not at equal distances, or without grey values.
    """
    pydicom = optional_module("pydicom")
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
    except (pydicom.errors.InvalidDicomError, pydicom.errors.BytesLengthException, OSError, ValueError):
        return  # the reader says what is wrong with it
    _check_grey(path, header)
    count = int(header.get("NumberOfFrames") or 1)
    if count == 1:
        return
    shared = _first(header, "SharedFunctionalGroupsSequence")
    slices = []
    for frame in header.get("PerFrameFunctionalGroupsSequence") or [None] * count:
        place = _first(frame, "PlanePositionSequence") or _first(shared, "PlanePositionSequence")
        plane = _first(frame, "PlaneOrientationSequence") or _first(shared, "PlaneOrientationSequence")
        position, directions = _geometry(path, {**_values(place), **_values(plane)})
        slices.append(_Slice(path, header, 0, position, directions))
    if any(np.abs(s.directions - slices[0].directions).max() > SAME_DIRECTION for s in slices):
        raise UserError(f"{path}: frames of different orientations. Export one volume.")
    along = np.array([s.position @ slices[0].normal for s in slices])
    if len(np.unique(np.round(along / SAME_POSITION_MM))) < len(slices):
        raise UserError(f"{path}: several frames at one position, such as time points. Export one volume.")
    steps = np.diff(along)
    if steps.min() < 0 < steps.max():  # readers take them as they are stored
        raise UserError(f"{path}: frames must be stored in the order of their positions, got another; export them so")
    _check_distances(path, _in_order(slices))


def is_slice(path: Path) -> bool:
    """Whether a file is an image in DICOM, and no result on one, judged by its header."""
    with path.open("rb") as file:
        if file.read(128 + len(MAGIC))[128:] != MAGIC:
            return False
    pydicom = optional_module("pydicom")
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Rows", "Modality"])
        return "Rows" in header and header.get("Modality") not in DERIVED
    except (pydicom.errors.BytesLengthException, *READ_ERRORS):
        return True  # damaged, which is said when it is read


def is_scout(paths: Sequence[Path]) -> bool:
    """Whether a few DICOM files are localizers or screenshots: no frames of a volume."""
    pydicom = optional_module("pydicom")
    try:
        headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in paths if is_slice(path)]
    except (pydicom.errors.InvalidDicomError, pydicom.errors.BytesLengthException, *READ_ERRORS):
        return False
    return all(int(header.get("NumberOfFrames") or 1) == 1 for header in headers)


def _read(path: Path) -> _File | None:
    """A slice's header, or None for what is no image in DICOM."""
    if not path.is_file() or path.name.startswith("."):
        return None
    pydicom = optional_module("pydicom")
    try:
        with path.open("rb") as file:
            header = pydicom.dcmread(file, stop_before_pixels=True)
            pixels_at = file.tell()
    except pydicom.errors.InvalidDicomError:
        return None
    except (pydicom.errors.BytesLengthException, *READ_ERRORS) as error:
        raise UserError(f"{path}: damaged DICOM header ({error}). Copy it again.") from error
    if "Rows" not in header:  # DICOMDIR, reports, presentation states
        return None
    return _File(path, header, pixels_at)


def _geometry(path: Path, header: Any) -> tuple[np.ndarray, np.ndarray]:
    position, directions = header.get("ImagePositionPatient"), header.get("ImageOrientationPatient")
    if not position or not directions or len(position) != 3 or len(directions) != 6:
        raise UserError(
            f"{path}: no ImagePositionPatient or ImageOrientationPatient, so the slice has no place in space. "
            "Export it with its geometry."
        )
    return np.array(position, float), np.array(directions, float)


def _check_grey(path: Path, header: Dataset) -> None:
    if header.get("Modality") in DERIVED:
        raise UserError(f"{path} must be a scan, got a result on one (modality {header.Modality}); give the scan")
    photometric = header.get("PhotometricInterpretation") or "MONOCHROME2"
    if photometric != "MONOCHROME2":
        raise UserError(f"{path} must hold grey values as MONOCHROME2, got {photometric}; export it so")


def _check_content(file: _File) -> None:
    path, header, pixels_at = file.path, file.header, file.pixels_at
    _check_grey(path, header)
    syntax = getattr(header.file_meta, "TransferSyntaxUID", None)
    size = path.stat().st_size
    if syntax is not None and syntax.is_encapsulated:
        with path.open("rb") as stored, mmap.mmap(stored.fileno(), 0, access=mmap.ACCESS_READ) as content:
            is_complete = content.find(SEQUENCE_END, pixels_at) >= 0
    elif syntax is not None and syntax.is_deflated:
        return  # no size to compare with; the reader finds the end
    else:
        samples = int(header.get("SamplesPerPixel") or 1) * int(header.get("NumberOfFrames") or 1)
        bits = header.Rows * header.Columns * samples * int(header.get("BitsAllocated") or 16)
        element_header = 8 if syntax is not None and syntax.is_implicit_VR else 12
        is_complete = size >= pixels_at + element_header + bits // 8
    if not is_complete:
        raise UserError(f"{path}: truncated DICOM file, {size} bytes. Copy it again.")


def _without_other_series(folder: Path, files: Sequence[_File]) -> list[_File]:
    """The files of one series; series of localizers, screenshots or results alone are left out."""
    series = defaultdict(list)
    for found in files:
        series[found.header.get("SeriesInstanceUID")].append(found)
    others = {uid for uid, group in series.items() if not any(_is_of_a_scan(f) for f in group)}
    if others and len(others) < len(series):
        left = [f.path.name for uid in others for f in series.pop(uid)]
        logger.warning("%s: %d file(s) of no scan left out: %s", folder, len(left), ", ".join(left[:5]))
    if len(series) > 1:
        described = ", ".join(
            f"{s[0].header.get('SeriesDescription') or 'without description'} ({len(s)} slices)"
            for s in series.values()
        )
        raise UserError(f"{folder}: {len(series)} DICOM series: {described}. Give each its own folder.")
    return next(iter(series.values()))


def _is_of_a_scan(file: _File) -> bool:
    """Whether a file has a place in space and is neither a localizer nor a result on a scan."""
    header = file.header
    is_placed = header.get("ImagePositionPatient") or int(header.get("NumberOfFrames") or 1) > 1
    return bool(is_placed) and not _is_localizer(file) and header.get("Modality") not in DERIVED


def _is_localizer(file: _File) -> bool:
    return "LOCALIZER" in (file.header.get("ImageType") or ())


def _without_localizers(folder: Path, slices: Sequence[_Slice]) -> list[_Slice]:
    """The slices of the most frequent orientation that are no localizers."""
    images = [s for s in slices if not _is_localizer(s)] or list(slices)
    orientations: list[list[_Slice]] = []
    for found in images:
        for group in orientations:
            if np.abs(found.directions - group[0].directions).max() <= SAME_DIRECTION:
                group.append(found)
                break
        else:
            orientations.append([found])
    orientations.sort(key=len, reverse=True)
    if len(orientations) > 1 and 4 * len(orientations[1]) > len(orientations[0]):
        counts = ", ".join(str(len(group)) for group in orientations)
        raise UserError(f"{folder}: slices of {len(orientations)} orientations ({counts}). Keep one volume.")
    kept = orientations[0]
    if len(kept) < len(slices):
        left = [s.path.name for s in slices if not any(s is k for k in kept)]
        logger.warning("%s: %d localizer(s) left out: %s", folder, len(left), ", ".join(left[:5]))
    return kept


def _without_doubles(folder: Path, slices: Sequence[_Slice]) -> list[_Slice]:
    """One slice per position, if those that share one are equal."""
    normal = slices[0].normal
    places: dict[int, list[_Slice]] = defaultdict(list)
    for found in slices:
        places[round(float(found.position @ normal) / SAME_POSITION_MM)].append(found)
    doubled = [group for group in places.values() if len(group) > 1]
    differing = [group for group in doubled if len({_content(s) for s in group}) > 1]
    if differing:
        raise UserError(
            f"{folder}: {_how_they_differ(differing[0])} at {_place(differing[0][0])} mm under one series UID. "
            "Give each volume its own folder."
        )
    if doubled:
        spare = sum(len(group) - 1 for group in doubled)
        logger.warning("%s: %d slice(s) are there twice with the same content; one of each is used", folder, spare)
    return [group[0] for group in places.values()]


def _check_one_volume(folder: Path, slices: Sequence[_Slice]) -> None:
    """Refuse volumes whose slices, sorted, lie between one another."""
    spacing = (slices[-1].position - slices[0].position) @ slices[0].normal / (len(slices) - 1)
    thickness = float(slices[0].header.get("SliceThickness") or 0)
    for keyword in UNIQUE if spacing >= OVERLAP * thickness else ("AcquisitionNumber", *UNIQUE):
        values = [s.header.get(keyword) for s in slices]
        changes = sum(before != after for before, after in pairwise(values))
        if changes >= len(set(values)):  # more often than once from each value to the next
            listed = ", ".join(str(value) for value in dict.fromkeys(values))
            raise UserError(
                f"{folder}: slices that differ in {SPLITTERS[keyword]} ({listed}) lie between one another under one "
                "series UID. Give each volume its own folder."
            )


def _how_they_differ(group: Sequence[_Slice]) -> str:
    for keyword, name in SPLITTERS.items():
        values = list(dict.fromkeys(str(s.header.get(keyword)) for s in group))
        if len(values) > 1:
            return f"{len(group)} slices that differ in {name} ({', '.join(values[:5])})"
    return f"{len(group)} different slices ({', '.join(s.path.name for s in group[:5])})"


def _in_order(slices: Sequence[_Slice]) -> list[_Slice]:
    normal = slices[0].normal
    return sorted(slices, key=lambda s: float(s.position @ normal))


def _check_distances(name: Path, slices: Sequence[_Slice]) -> None:
    """See that sorted slices follow one another straight and at equal distances."""
    normal = slices[0].normal
    positions = np.stack([s.position for s in slices])  # (N, 3)
    along = positions @ normal
    steps = np.diff(along)
    spacing = float(np.median(steps))
    tolerance = ROUNDING_MM + JITTER * spacing
    for step, (before, after) in zip(steps, pairwise(slices), strict=True):
        if abs(step - spacing) > 2 * tolerance:
            where = f"between {_place(before)} and {_place(after)} mm"
            missing = round(float(step) / spacing) - 1
            if missing > 0 and abs(step - (missing + 1) * spacing) <= 2 * tolerance * (missing + 1):
                raise UserError(f"{name}: {missing} slice(s) missing {where}. Copy the series again.")
            raise UserError(
                f"{name}: slices {step:.2f} mm apart {where}, {spacing:.2f} mm elsewhere. "
                "Resample it to equal distances."
            )
    ideal = along[0] + np.arange(len(along)) * (along[-1] - along[0]) / (len(along) - 1)
    if np.abs(along - ideal).max() > 2 * tolerance:
        raise UserError(f"{name}: the distance of slices changes along the volume. Resample it to equal distances.")
    sideways = np.linalg.norm(positions[-1] - positions[0] - (along[-1] - along[0]) * normal)
    if sideways > TILT * (along[-1] - along[0]) + ROUNDING_MM:
        angle = np.degrees(np.arctan2(sideways, along[-1] - along[0]))
        raise UserError(
            f"{name}: gantry tilt, slices are stacked at {angle:.1f} degrees to their normal. "
            "Resample it to a right-angled grid."
        )


def _content(found: _Slice) -> str:
    with found.path.open("rb") as file:
        file.seek(found.pixels_at)
        return hashlib.sha256(file.read()).hexdigest()


def _place(found: _Slice) -> str:
    return f"{float(found.position @ found.normal):.2f}"


def _first(header: Dataset | None, keyword: str) -> Dataset | None:
    items: Iterable[Dataset] = (None if header is None else header.get(keyword)) or ()
    return next(iter(items), None)


def _values(item: Dataset | None) -> dict[str, Any]:
    return {} if item is None else {element.keyword: element.value for element in item}
