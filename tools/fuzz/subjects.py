# SPDX-License-Identifier: Apache-2.0
"""Small valid files of every format that is read, and their readers."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import itk
import nibabel as nib
import numpy as np
import pydicom
import tifffile
import torch
import zarr
from PIL import Image
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from volseg.data.datalist import load_datalist
from volseg.data.find_volumes import find_volumes
from volseg.data.open_volume import open_chunked_volume
from volseg.data.volume_reader import load_volume
from volseg.registry.bundle_zip import unpack
from volseg.registry.index import INDEX, Entry, as_index, read_index
from volseg.registry.large_files import LARGE_FILES, large_files
from volseg.registry.location import locate
from volseg.registry.manifest import MANIFEST, Manifest
from volseg.registry.release import Release
from volseg.weights import load_weights, recorded_values

__all__ = ["SUBJECTS", "Subject"]

SHAPE = (4, 6, 8)
VOXELS = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)


@dataclass(frozen=True)
class Subject:
    """A format.

    Args:
        write: writes a valid file or folder into a folder.
        read: reads all of it.
    """

    write: Callable[[Path], None]
    read: Callable[[Path], object]


def _volume(name: str) -> Callable[[Path], object]:
    return lambda folder: load_volume(folder / name)


def _chunked(name: str) -> Callable[[Path], object]:
    return lambda folder: open_chunked_volume(folder / name)[: 2**31, : 2**31, : 2**31]


def _nifti(folder: Path, name: str) -> None:
    nib.save(nib.Nifti1Image(VOXELS, np.diag([0.5, 0.7, 2, 1])), folder / name)


def _itk(folder: Path, name: str) -> None:
    image = itk.image_from_array(VOXELS)
    image.SetSpacing([0.5, 0.7, 2])
    itk.imwrite(image, str(folder / name), compression=name.startswith("packed"))


def _dicom(folder: Path, slices: int) -> None:
    series = generate_uid(entropy_srcs=["series"])
    for z in range(slices):
        meta = pydicom.dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(z)])
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset = pydicom.Dataset()
        dataset.file_meta = meta
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        dataset.SeriesInstanceUID = dataset.StudyInstanceUID = dataset.FrameOfReferenceUID = series
        dataset.Modality, dataset.PatientID, dataset.InstanceNumber = "CT", "1", z + 1
        dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 2 * z], [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing, dataset.SliceThickness = [0.5, 0.7], 2
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.Rows, dataset.Columns = SHAPE[1:]
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 1
        dataset.PixelData = VOXELS[z].tobytes()
        dataset.save_as(folder / f"{z}.dcm", enforce_file_format=True)


def _tiff(folder: Path, name: str, **options: Any) -> None:
    tifffile.imwrite(folder / name, VOXELS.astype(np.uint8), photometric="minisblack", **options)


def _zarr(folder: Path, zarr_format: Any) -> None:
    zarr.create_array(folder / "a.zarr", data=VOXELS, chunks=(2, 6, 4), zarr_format=zarr_format)


def _ome_zarr(folder: Path) -> None:
    group = zarr.create_group(folder / "a.ome.zarr", zarr_format=3)
    group.create_array("0", data=VOXELS, chunks=SHAPE)
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    scale = [{"type": "scale", "scale": [30.0, 8.0, 8.0]}]
    image: Any = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}
    group.attrs["ome"] = {"version": "0.5", "multiscales": [image]}


def _hdf5(folder: Path) -> None:
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("raw", data=VOXELS, chunks=(2, 6, 4), compression="gzip")
        file["raw"].attrs["element_size_um"] = [0.03, 0.008, 0.008]


def _mrc(folder: Path) -> None:
    header = np.zeros(256, "<i4")
    header[:3] = header[7:10] = SHAPE[::-1]
    header[3] = 1  # int16
    header[10:13] = np.array(SHAPE[::-1], "<f4").view("<i4")
    header[16:19] = 1, 2, 3
    header[52:54] = np.frombuffer(b"MAP DD\0\0", "<i4")
    (folder / "a.mrc").write_bytes(header.tobytes() + VOXELS.tobytes())


def _sections(folder: Path) -> None:
    (folder / "a").mkdir()
    for z, section in enumerate(VOXELS.astype(np.uint8)):
        Image.fromarray(section).save(folder / "a" / f"{z}.png")


def _section_index(folder: Path) -> None:
    _sections(folder)
    names = [f"a/{z}.png" for z in range(SHAPE[0])]
    facts = {"depth": SHAPE[0], "height": SHAPE[1], "width": SHAPE[2], "dtype": "uint8"}
    (folder / "a.json").write_text(json.dumps({**facts, "image": names}))


def _datalist(folder: Path) -> None:
    _nifti(folder, "image.nii")
    _nifti(folder, "label.nii")
    case = {"image": "image.nii", "label": "label.nii"}
    (folder / "dataset.json").write_text(json.dumps({"name": "tiny", "training": [case], "validation": [], "test": []}))


def _manifest(files: dict[str, bytes]) -> str:
    facts = {path: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for path, data in files.items()}
    manifest = Manifest(Release("tiny", "0.1.0"), "0" * 40, {"code": "Apache-2.0"}, {"torch": "2.13.0"}, facts)
    return json.dumps(manifest.as_json())


def _archive(folder: Path) -> None:
    files = {"LICENSE": b"Text.", "configs/metadata.json": b"{}"}
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for path, data in (files | {MANIFEST: _manifest(files).encode()}).items():
            archive.writestr(f"tiny/{path}", data)


def _unpack(folder: Path) -> object:
    (folder / "unpacked").mkdir()
    return unpack(folder / "a.zip", folder / "unpacked")


def _index(folder: Path) -> None:
    entry = Entry(Release("tiny", "0.1.0"), "tiny_v0.1.0.zip", "0" * 40, "ab" * 32, 9, 9, "2026-01-02", "Apache-2.0")
    (folder / INDEX).write_text(json.dumps(as_index([entry])))


def _large(folder: Path) -> None:
    entry = f"path: models/a.pt\n    url: https://example.org/a.pt\n    hash_val: {'ab' * 32}"
    (folder / LARGE_FILES).write_text(f"large_files:\n  - {entry}\n")


def _weights(folder: Path) -> None:
    torch.save(torch.nn.Linear(2, 3).state_dict(), folder / "model.pt")
    (folder / "model.json").write_text(json.dumps({"threshold": 0.5}))


def _read_weights(folder: Path) -> object:
    load_weights(folder / "model.pt", torch.nn.Linear(2, 3))
    return recorded_values(folder / "model.pt", {"threshold": 0.1})


def _text(name: str, content: Callable[[], str]) -> Callable[[Path], None]:
    return lambda folder: _none((folder / name).write_text(content()))


def _none(_: object) -> None:
    """Forget what a function returned."""


SUBJECTS: dict[str, Subject] = {
    "NIfTI": Subject(lambda folder: _nifti(folder, "a.nii"), _volume("a.nii")),
    "NIfTI, compressed": Subject(lambda folder: _nifti(folder, "a.nii.gz"), _volume("a.nii.gz")),
    "NIfTI, by blocks": Subject(lambda folder: _nifti(folder, "a.nii"), _chunked("a.nii")),
    "NRRD": Subject(lambda folder: _itk(folder, "a.nrrd"), _volume("a.nrrd")),
    "NRRD, compressed": Subject(lambda folder: _itk(folder, "packed.nrrd"), _volume("packed.nrrd")),
    "MHA": Subject(lambda folder: _itk(folder, "a.mha"), _volume("a.mha")),
    "MHD": Subject(lambda folder: _itk(folder, "a.mhd"), _volume("a.mhd")),
    "DICOM file": Subject(lambda folder: _dicom(folder, 1), _volume("0.dcm")),
    "DICOM series": Subject(lambda folder: _dicom(folder, 3), load_volume),
    "folder of studies": Subject(lambda folder: _dicom(folder, 3), find_volumes),
    "TIFF": Subject(lambda folder: _tiff(folder, "a.tif", compression="zlib"), _chunked("a.tif")),
    "OME-TIFF": Subject(lambda folder: _tiff(folder, "a.ome.tif", metadata={"axes": "ZYX"}), _chunked("a.ome.tif")),
    "Zarr 2": Subject(lambda folder: _zarr(folder, 2), _chunked("a.zarr")),
    "Zarr 3": Subject(lambda folder: _zarr(folder, 3), _chunked("a.zarr")),
    "OME-Zarr": Subject(_ome_zarr, _chunked("a.ome.zarr")),
    "HDF5": Subject(_hdf5, _chunked("a.h5")),
    "MRC": Subject(_mrc, _chunked("a.mrc")),
    "PNG sections": Subject(_sections, _chunked("a")),
    "index of sections": Subject(_section_index, _chunked("a.json")),
    "data list": Subject(_datalist, lambda folder: load_datalist(folder, "training")),
    "weights and record": Subject(_weights, _read_weights),
    "bundle zip": Subject(_archive, _unpack),
    "manifest": Subject(_text(MANIFEST, lambda: _manifest({"LICENSE": b"Text."})), Manifest.read),
    "registry index": Subject(_index, lambda folder: read_index(locate(folder))),
    "large files": Subject(_large, large_files),
}
