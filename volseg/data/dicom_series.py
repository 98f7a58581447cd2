# SPDX-License-Identifier: Apache-2.0
"""Prove from the headers that a folder of DICOM slices is one regular volume.

Readers sort slices and divide the way from the first to the last by their number. That is a geometry only if no slice
is missing, doubled or from elsewhere, so this module proves it before a voxel is read.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from volseg.data.dicom_header import DERIVED, DicomFile, check_content, geometry, read_header
from volseg.errors import UserError

if TYPE_CHECKING:  # a run on other formats does without the package
    from pydicom import Dataset

__all__ = ["Series", "check_multi_frame", "regular_slices"]

logger = logging.getLogger(__name__)

# Positions are often rounded to 0.1 mm; a missing or moved slice is off by half a spacing or more.
ROUNDING_MM = 0.06
JITTER = 0.05  # of the spacing
SAME_POSITION_MM = 1e-3
SAME_DIRECTION = 1e-3  # of a direction cosine
SAME_SPACING = 1e-3  # of the distance of pixels
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
# what the grey values of a stored number depend on
SCALE = ("RescaleSlope", "RescaleIntercept", "PixelRepresentation", "BitsAllocated", "BitsStored")
TO_RAS = np.array([-1, -1, 1])


@dataclass(frozen=True)
class _Slice(DicomFile):
    position: np.ndarray  # (3,), mm
    directions: np.ndarray  # (6,): of a row, of a column
    spacing: np.ndarray  # (2,): of rows, of columns, mm

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.directions[:3], self.directions[3:])


@dataclass(frozen=True)
class Series:
    """One volume in DICOM.

    Attributes:
        paths: of its slices along their normal, or of the one file that holds all.
        affine: (4, 4), voxel (column, row, slice) to RAS in mm.
        is_mixed: whether slices differ in how grey values are stored, so that no integer type holds all.
    """

    paths: list[Path]
    affine: np.ndarray
    is_mixed: bool = False


def regular_slices(folder: Path) -> Series:
    """The slices of the one volume in a folder, in order along their normal.

    Localizers, screenshots and slices of another orientation are left out, and of slices that were exported twice one
    is used; the log says so. Files that are neither DICOM nor named like the slices are passed over.

    Raises:
        UserError: the slices are not one volume at equal distances, at right angles and whole.
    """
    found = {path: read_header(path) for path in sorted(folder.iterdir()) if not path.name.startswith(".")}
    files = _images(found)
    if not files:
        raise UserError(f"{folder}: no DICOM slices found. Give a folder with one DICOM series.")
    files = _without_other_series(folder, files)
    for file in files:
        check_content(file)
    if several := [f for f in files if int(f.header.get("NumberOfFrames") or 1) > 1]:
        if len(files) > 1:
            raise UserError(f"{folder}: {several[0].path.name} holds a volume, got {len(files)} files. Give it alone.")
        return Series([files[0].path], _frames_grid(files[0]))
    slices = [_Slice(f.path, f.header, f.pixels_at, *geometry(f.path, f.header)) for f in files]
    slices = _without_localizers(folder, slices)
    sizes = {(s.header.get("Rows"), s.header.get("Columns")) for s in slices}
    if len(sizes) > 1:
        raise UserError(f"{folder}: slices of different sizes, {sorted(sizes, key=str)}. Keep one volume.")
    slices = _without_doubles(folder, slices)
    slices = _in_order(slices)
    if (frames := len({s.header.get("FrameOfReferenceUID") for s in slices})) > 1:
        logger.warning("%s: positions of slices refer to %d frames of reference, taken as one", folder, frames)
    if len(slices) > 1:
        _check_one_volume(folder, slices)
        _check_distances(folder, slices)
    scales = {tuple(str(s.header.get(keyword)) for keyword in SCALE) for s in slices}
    return Series([s.path for s in slices], _grid(folder, slices), len(scales) > 1)


def check_multi_frame(path: Path) -> np.ndarray | None:
    """See that the frames of an enhanced DICOM file are one regular volume; other files pass.

    Returns:
        (4, 4), voxel (column, row, frame) to RAS in mm; None for other files.

    Raises:
        UserError: frames without positions, not at equal distances, or without grey values.
    """
    found = read_header(path)
    if found is None or "Rows" not in found.header:  # the reader says what is wrong with it
        return None
    check_content(found)
    return _frames_grid(found) if int(found.header.get("NumberOfFrames") or 1) > 1 else None


def _frames_grid(file: DicomFile) -> np.ndarray:
    path, header = file.path, file.header
    count = int(header.NumberOfFrames)
    shared = _first(header, "SharedFunctionalGroupsSequence")
    frames = header.get("PerFrameFunctionalGroupsSequence") or [None] * count
    if len(frames) != count:
        raise UserError(f"{path}: {count} frames, got places of {len(frames)}. Export it again.")
    slices, scales = [], set()
    for frame in frames:
        place, plane, measures, scale = (
            _values(_first(frame, keyword) or _first(shared, keyword))
            for keyword in (
                "PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence",
                "PixelValueTransformationSequence",
            )
        )  # fmt: skip
        slices.append(_Slice(path, header, 0, *geometry(path, {**place, **plane, **measures})))
        scales.add((scale.get("RescaleSlope"), scale.get("RescaleIntercept")))
    if len(scales) > 1:
        raise UserError(f"{path}: frames must have one RescaleSlope and RescaleIntercept, got {len(scales)} pairs. "
                        "Export it as one file per slice.")  # fmt: skip
    if any(np.abs(s.directions - slices[0].directions).max() > SAME_DIRECTION for s in slices):
        raise UserError(f"{path}: frames of different orientations. Export one volume.")
    along = np.array([s.position @ slices[0].normal for s in slices])
    if len(np.unique(np.round(along / SAME_POSITION_MM))) < len(slices):
        raise UserError(f"{path}: several frames at one position, such as time points. Export one volume.")
    steps = np.diff(along)
    if steps.min() < 0 < steps.max():  # readers take them as they are stored
        raise UserError(f"{path}: frames must be stored in the order of their positions, got another; export them so")
    _check_distances(path, _in_order(slices))
    return _grid(path, slices)


def _grid(name: Path, slices: Sequence[_Slice]) -> np.ndarray:
    """The affine (4, 4) of regular slices in the order of their voxels, RAS in mm.

    Raises:
        UserError: the distance of pixels changes.
    """
    first, last = slices[0], slices[-1]
    if any((np.abs(s.spacing / first.spacing - 1) > SAME_SPACING).any() for s in slices):
        raise UserError(f"{name}: slices must have one PixelSpacing, got several. Resample them to one.")
    rows, columns = first.directions.reshape(2, 3)
    along = float((last.position - first.position) @ first.normal) / max(1, len(slices) - 1)
    affine = np.eye(4)
    affine[:3] = np.stack(
        [rows * first.spacing[1], columns * first.spacing[0], first.normal * (along or 1.0), first.position], axis=1
    ) * TO_RAS[:, None]  # fmt: skip
    return affine


def _images(found: Mapping[Path, DicomFile | None]) -> list[DicomFile]:
    """The files of a folder that are images.

    Reports and the like are none; a file of the name or class of the slices has to be one, or a slice may be lost.
    """
    images = [file for file in found.values() if file is not None and "Rows" in file.header]
    kinds, classes = {_kind_of_name(file.path) for file in images}, {_class(file) for file in images}
    for path, file in found.items():
        if path.is_dir() or file in images:
            continue
        if _class(file) in classes if file and _class(file) else _kind_of_name(path) in kinds:
            size = path.stat().st_size if path.exists() else 0
            raise UserError(f"{path}: damaged, got {size} bytes without a DICOM image. Copy it again, or remove it.")
    return images


def _kind_of_name(path: Path) -> str:
    """What names of slices share: their suffix, or what is left without their numbers."""
    return path.suffix.lower() if path.suffix[1:].isalpha() else re.sub(r"\d+(\.\d+)*", "0", path.name)


def _class(file: DicomFile) -> Any:
    return file.header.get("SOPClassUID") or file.header.file_meta.get("MediaStorageSOPClassUID")


def _without_other_series(folder: Path, files: Sequence[DicomFile]) -> list[DicomFile]:
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


def _is_of_a_scan(file: DicomFile) -> bool:
    """Whether a file has a place in space and is neither a localizer nor a result on a scan."""
    header = file.header
    is_placed = header.get("ImagePositionPatient") or int(header.get("NumberOfFrames") or 1) > 1
    return bool(is_placed) and not _is_localizer(file) and header.get("Modality") not in DERIVED


def _is_localizer(file: DicomFile) -> bool:
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
