# SPDX-License-Identifier: Apache-2.0
"""Read voxels in their stored type, and grids from headers alone; compare two grids.

Use it to prepare data sets of thousands of files; :mod:`volseg.data.volume_reader` reads a network's input.
"""

from __future__ import annotations

import logging
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from volseg.errors import UserError
from volseg.storage.files import GZIP

logger = logging.getLogger(__name__)

# Grid corners of label and image may differ by this fraction of the smallest voxel edge: headers are rounded to about
# six digits, while a label of another image is off by whole voxels.
_TOLERANCE_VOXELS = 0.1
NRRD = b"NRRD"
# the directions of three axes take 250
NRRD_FIELD_BYTES = 400
# in headers of NRRD and MHD/MHA: where voxels are, and that they are not stored as they are
_SAYS_FILE = re.compile(rb"^(?:ElementDataFile *=|data ?file:) *(.+?) *(?:\r?\n|\Z)", re.MULTILINE)
_PACKED = re.compile(
    rb"^(?:CompressedData *= *True|BinaryData *= *False|encoding:(?! *raw))", re.MULTILINE | re.IGNORECASE
)
LONGEST_HEADER = 2**16
NIFTI_ERRORS = (OSError, EOFError, ValueError, zlib.error, ImageFileError, HeaderDataError, WrapStructError)


@dataclass(frozen=True)
class VoxelGrid:
    """The positions of a volume's voxels.

    Attributes:
        shape: voxels along x, y, z.
        affine: (4, 4), voxel index to millimetres in RAS+, as in NIfTI.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]


def grid_from_itk(
    shape: Sequence[int], direction: NDArray[np.float64], spacing_mm: Sequence[float], origin_mm: Sequence[float]
) -> VoxelGrid:
    """Return the grid of an ITK image: ITK's axes point left and posterior, those of NIfTI right and anterior."""
    affine = np.eye(len(shape) + 1)
    affine[:-1, :-1] = direction * np.asarray(spacing_mm)
    affine[:-1, -1] = origin_mm
    affine[:2] *= -1
    return VoxelGrid(tuple(int(size) for size in shape), affine)


def check_same_grid(label_file: Path, label: VoxelGrid, image_file: Path, image: VoxelGrid) -> None:
    """Check that a label lies on the grid of its image.

    Raises:
        UserError: names the label's file and the first property that differs.
    """
    difference = grid_difference(label, image)
    if difference:
        raise UserError(
            f"{label_file}: not on the grid of its image: {difference} of {image_file}; "
            "remove the case or repair the header"
        )


def grid_difference(label: VoxelGrid, image: VoxelGrid) -> str | None:
    """Return the first property that differs, in words, or None if both are the same 3-D grid."""
    if label.shape != image.shape or len(image.shape) != 3:
        return f"shape {_row(label.shape)} against {_row(image.shape)}"
    spacings = [np.linalg.norm(grid.affine[:3, :3], axis=0) for grid in (label, image)]
    corners = np.stack(np.meshgrid(*((0, size - 1) for size in image.shape), [1], indexing="ij"), -1).reshape(-1, 4)
    offsets_mm = np.linalg.norm(corners @ (label.affine - image.affine).T, axis=1)
    if math.isfinite(offsets_mm.max()) and offsets_mm.max() <= _TOLERANCE_VOXELS * spacings[1].min():
        return None
    if not np.allclose(spacings[0], spacings[1], rtol=1e-3, atol=0):
        return f"spacing {_row(spacings[0])} mm against {_row(spacings[1])} mm"
    directions = [grid.affine[:3, :3] / spacing for grid, spacing in zip((label, image), spacings, strict=True)]
    if not np.allclose(directions[0], directions[1], atol=1e-3):
        return f"direction {_row(directions[0])} against {_row(directions[1])}, in RAS,"
    origins = [_row(grid.affine[:3, 3]) for grid in (label, image)]
    return f"origin {origins[0]} mm against {origins[1]} mm, in RAS,"


def _row(values: Any) -> str:
    # Adding zero turns -0.0 into 0.
    return "(" + ", ".join(f"{value + 0.0:.6g}" for value in np.ravel(values)) + ")"


@lru_cache(maxsize=1)
def quiet_itk() -> Any:
    """Return ITK's package with its warnings switched off.

    ITK writes warnings straight to the terminal, such as slice distances that differ by a micrometre. Switching them
    off loads ITK's libraries, half a second that a reader of NIfTI does not need.
    """
    itk.ProcessObject.SetGlobalWarningDisplay(False)
    return itk


def open_nifti(path: Path) -> Any:
    """Open a NIfTI file as nibabel's image without reading its voxels.

    Raises:
        UserError: it cannot be read.
    """
    with readable(path, NIFTI_ERRORS):
        with path.open("rb") as file:
            is_compressed = file.read(len(GZIP)) == GZIP
        if is_compressed != path.name.lower().endswith(".gz"):
            name, is_it = (f"{path.name}.gz", "is") if is_compressed else (path.name[: -len(".gz")], "is not")
            raise UserError(
                f"{path}: the content {is_it} compressed by gzip, which the name denies; rename it to {name}"
            )
        image = nib.load(path)
    check_voxels_follow_header(path, image)
    return image


def check_voxels_follow_header(path: Path, image: Any) -> None:
    """See that nibabel does not take the header of a single file for its first voxels.

    Raises:
        UserError: the header says that voxels begin inside it.
    """
    first = image.header.single_vox_offset if getattr(image.header, "is_single", False) else 0
    if image.dataobj.offset < first:
        raise UserError(f"{path}: vox_offset must be >= {first}, got {image.dataobj.offset}; repair the header")
    voxels = Path(image.file_map["image"].filename or "")
    if voxels.is_file() and voxels.suffix.lower() != ".gz" and len(image.shape) >= 3:
        n_bytes = math.prod(image.shape) * image.header.get_data_dtype().itemsize
        _warn_of_more(path, voxels.stat().st_size - image.dataobj.offset - n_bytes, n_bytes, image.shape[-1])


def check_stored_voxels(path: Path) -> None:
    """See that an NRRD or MHD/MHA file has the voxels that its header tells of; warn where they go on behind these.

    Raises:
        UserError: the header cannot be read, or voxels are missing.
    """
    reader = _read_header(path)
    with path.open("rb") as file:
        header = file.read(LONGEST_HEADER)
    said = _SAYS_FILE.search(header)
    data = path if said is None or said[1].upper() == b"LOCAL" else path.parent / said[1].decode("latin-1")
    is_several = said is not None and (b"%" in said[1] or said[1].upper().startswith(b"LIST"))
    if not data.is_file() and not is_several:
        raise UserError(f"{path}: cannot be read: its voxels are not there, no file {data.name}; copy that too")
    if _PACKED.search(header) or not data.is_file():
        return
    n_bytes, n_slices = reader.GetImageSizeInBytes(), reader.GetDimensions(reader.GetNumberOfDimensions() - 1)
    beyond = data.stat().st_size - n_bytes
    if data == path:
        end = said.end() if said else header.find(b"\n\n") + 2
        beyond -= end
    if beyond < 0:
        raise UserError(
            f"{path}: cannot be read, damaged or truncated: {-beyond} of {n_bytes} bytes of voxels are missing; copy "
            "the file again"
        )
    _warn_of_more(path, beyond, n_bytes, n_slices)


def _warn_of_more(path: Path, beyond: int, n_bytes: int, n_slices: int) -> None:
    """Warn of a whole slice, or more, behind the voxels."""
    if n_slices and n_bytes and beyond >= n_bytes / n_slices:
        logger.warning(
            "%s: the file goes on for %d slices behind the %d that its header tells of; see whether the header is that "
            "of this file",
            *(path, beyond * n_slices // n_bytes, n_slices),
        )


def read_nifti(path: Path) -> tuple[NDArray[Any], VoxelGrid]:
    """Return voxels (x, y, z) and grid of a NIfTI file.

    Raises:
        UserError: it cannot be read.
    """
    image = open_nifti(path)
    with readable(path, NIFTI_ERRORS):
        voxels = np.asanyarray(image.dataobj)
    return voxels, VoxelGrid(voxels.shape, image.affine)


def nifti_channel(path: Path, channel: int) -> Any:
    """Return one channel of a NIfTI file (x, y, z, channel) as a 3-D image with the same header and type.

    Raises:
        UserError: it cannot be read.
    """
    image = open_nifti(path)
    with readable(path, NIFTI_ERRORS):
        return image.slicer[..., channel]


def read_itk(path: Path) -> tuple[NDArray[Any], VoxelGrid]:
    """Return voxels (x, y, z) and grid of a file that ITK reads: NRRD, MetaImage and others.

    Raises:
        UserError: it cannot be read.
    """
    with readable(path, (RuntimeError,)):  # what ITK's wrapping raises for every failure of reading
        image = quiet_itk().imread(path, itk_pixel_type(path))
    axes, origin_mm = np.asarray(itk.array_from_matrix(image.GetDirection())), list(image.GetOrigin())
    voxels = itk.array_view_from_image(image).transpose()  # (z, y, x) to (x, y, z)
    return voxels, grid_from_itk(voxels.shape, axes, list(image.GetSpacing()), origin_mm)


def itk_pixel_type(path: Path) -> Any:
    """Return the pixel type to read a file with in ITK, or None for the stored type.

    ITK's Python package has no images of signed bytes (``MET_CHAR``), so they are read as shorts, and none of vectors
    of length 1, which are read as floats.

    Raises:
        UserError: the header cannot be read, or a voxel has several values.
    """
    header = _read_header(path)
    if header.GetNumberOfComponents() > 1:
        raise UserError(
            f"{path}: must hold one value per voxel, got {header.GetNumberOfComponents()}; export one channel"
        )
    if header.GetPixelType() != itk.CommonEnums.IOPixel_SCALAR:
        return itk.F
    return itk.SS if header.GetComponentType() == itk.CommonEnums.IOComponent_CHAR else None


def read_metaimage_grid(path: Path) -> VoxelGrid:
    """Return the grid of a MetaImage (``.mhd``) from its header; of the voxel file only the size is checked.

    Raises:
        UserError: the header cannot be read, or the voxel file is absent or too short.
    """
    reader = _read_header(path)
    header = path.read_text(encoding="latin-1")
    data_name = re.search(r"^ElementDataFile\s*=\s*(.+?)\s*$", header, re.MULTILINE)
    data = path.parent / data_name[1] if data_name else path
    compressed = re.search(r"^CompressedData\s*=\s*True", header, re.MULTILINE | re.IGNORECASE)
    n_bytes = data.stat().st_size if data.is_file() else 0
    n_expected = 1 if compressed else reader.GetImageSizeInBytes()
    if n_bytes < n_expected:
        raise UserError(
            f"{path}: voxels are missing: {data.name} has {n_bytes} bytes, needs at least {n_expected}; "
            "unpack or download it again"
        )
    n_axes = range(reader.GetNumberOfDimensions())
    return grid_from_itk(
        [reader.GetDimensions(axis) for axis in n_axes],
        np.array([list(reader.GetDirection(axis)) for axis in n_axes]).T,  # one call per axis gives one column
        [reader.GetSpacing(axis) for axis in n_axes],
        [reader.GetOrigin(axis) for axis in n_axes],
    )


def check_nrrd_header(path: Path) -> None:
    """Refuse fields of an NRRD header so long that ITK's library ends the process when it reports them.

    Raises:
        UserError: a field is longer than any valid one.
    """
    with path.open("rb") as file:
        if file.read(len(NRRD)) != NRRD:
            return
        file.readline()
        while line := file.readline(NRRD_FIELD_BYTES + 1).rstrip(b"\r\n"):
            is_text = line.startswith(b"#") or b":=" in line
            if len(line) > NRRD_FIELD_BYTES and not is_text:
                raise UserError(
                    f"{path}: cannot be read, damaged or truncated: a header field of more than {NRRD_FIELD_BYTES} "
                    f"bytes, {line[:20]!r}...; copy the file again"
                )
            while is_text and len(line) > NRRD_FIELD_BYTES:
                line = file.readline(NRRD_FIELD_BYTES + 1).rstrip(b"\r\n")


def _read_header(path: Path) -> Any:
    """Return ITK's reader of a file after reading its header."""
    check_nrrd_header(path)
    reader = quiet_itk().ImageIOFactory.CreateImageIO(str(path), itk.CommonEnums.IOFileMode_ReadMode)
    with readable(path, (RuntimeError,)):
        if reader is None:
            raise UserError(
                f"{path}: cannot be read, damaged or truncated: no header of NIfTI, NRRD, MHD/MHA or DICOM found; copy "
                "the file again, or convert it"
            )
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
    return reader


@contextmanager
def readable(path: Path, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turn a library's errors into the ``UserError`` of :func:`unreadable`."""
    try:
        yield
    except UserError:  # a ValueError, too
        raise
    except errors as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> UserError:
    """Return the error of one line for a file that cannot be read."""
    reason = " ".join(str(error).split())[-160:] or type(error).__name__
    remedy = "repair the header" if "affine" in reason else "copy the file again, or give it the suffix of its format"
    return UserError(f"{path}: cannot be read, damaged or truncated: {reason}; {remedy}")
