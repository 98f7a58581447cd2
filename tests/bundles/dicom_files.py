# SPDX-License-Identifier: Apache-2.0
"""Phantoms as scanners write them: a DICOM series of slices, or one enhanced file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, generate_uid

from tests.bundles.users_files import Files

__all__ = ["TO_LPS", "enhanced", "position", "series"]

TO_LPS = np.diag([-1, -1, 1])


def template(files: Files) -> pydicom.Dataset:
    """What slices of the phantom share."""
    spacing = np.linalg.norm(files.affine[:3, :3], axis=0)
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = "1.2.3", "1.2", "1.2.4"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Columns, dataset.Rows = files.voxels.shape[:2]
    dataset.PixelSpacing, dataset.SliceThickness = [spacing[1], spacing[0]], spacing[2]
    dataset.ImageOrientationPatient = [float(n) for n in (TO_LPS @ files.affine[:3, :2] / spacing[:2]).T.ravel()]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    return dataset


def position(files: Files, k: float) -> list[float]:
    """Of the first pixel of slice k, along L, P, S in mm."""
    return [float(n) for n in TO_LPS @ (files.affine @ (0, 0, k, 1))[:3]]


def series(files: Files, folder: str = "series", **changes: Callable[[int], Any]) -> Path:
    """The phantom as one file per slice, with tags that depend on the slice; None leaves the tag out."""
    target = files.folder / folder
    target.mkdir(parents=True)
    count = files.voxels.shape[2]
    for k in range(count):
        dataset = template(files)
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
        dataset.ImagePositionPatient = position(files, k)
        dataset.PixelData = files.voxels[:, :, k].T.astype("<i2").tobytes()
        for keyword, value in changes.items():
            if (content := value(k)) is None:
                del dataset[keyword]
            else:
                setattr(dataset, keyword, content)
        # names in another order than the slices
        dataset.save_as(target / f"{count - k:03d}.dcm", enforce_file_format=True)
    return target


def enhanced(files: Files, places: Callable[[int], float | None] = float, in_folder: bool = False) -> Path:
    """The phantom as frames of one file, frame k where slice ``places(k)`` is."""
    dataset = template(files)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = EnhancedCTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.NumberOfFrames = files.voxels.shape[2]
    dataset.PixelData = files.voxels.transpose(2, 1, 0).astype("<i2").tobytes()  # (Z, Y, X)
    shared, plane, measures = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    plane.ImageOrientationPatient = dataset.ImageOrientationPatient
    measures.PixelSpacing, measures.SliceThickness = dataset.PixelSpacing, dataset.SliceThickness
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [plane], [measures]
    del dataset.ImageOrientationPatient, dataset.PixelSpacing, dataset.SliceThickness
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = []
    for k in range(files.voxels.shape[2]):
        frame = pydicom.Dataset()
        if places(k) is not None:
            place = pydicom.Dataset()
            place.ImagePositionPatient = position(files, places(k))
            frame.PlanePositionSequence = [place]
        dataset.PerFrameFunctionalGroupsSequence.append(frame)
    path = files.folder / "enhanced" / "1.dcm"
    path.parent.mkdir()
    dataset.save_as(path, enforce_file_format=True)
    return path.parent if in_folder else path
