# SPDX-License-Identifier: Apache-2.0
"""Read a volume in any format that the bundles accept: NIfTI, NRRD, MHD/MHA, DICOM files and series folders."""

from __future__ import annotations

import gzip
import json
import logging
import math
import re
import zlib
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
import torch
from monai.data import ITKReader, MetaTensor, NibabelReader
from monai.data.image_reader import ImageReader
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling
from nibabel.wrapstruct import WrapStructError

from volseg.data.dicom_header import READ_ERRORS as DICOM_ERRORS
from volseg.data.dicom_header import is_slice
from volseg.data.dicom_series import Series, check_multi_frame, regular_slices
from volseg.data.image_file import (
    LONGEST_HEADER,
    check_stored_voxels,
    check_voxels_follow_header,
    itk_pixel_type,
    quiet_itk,
    readable,
    unreadable,
)
from volseg.errors import UserError
from volseg.storage.files import GZIP

logger = logging.getLogger(__name__)

__all__ = ["VOLUME_SUFFIXES", "load_volume", "volume_name"]

NIFTI_SUFFIXES = (".nii.gz", ".nii", ".hdr")
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, *ITK_SUFFIXES)
MM_PER_UNIT = {1: 1e3, 3: 1e-3}  # NIfTI's codes of metres and micrometres
SHEAR = 0.01  # of the cosine between two axes: 0.6 degrees
# what a header says where it gives spacings, directions, and units other than mm
SAYS_AXES = re.compile(rb"^NDims *= *(\S*)", re.MULTILINE)
NUMBERS_OF_AXES = [b"%d" % number for number in range(1, 11)]
SAYS_SPACING = re.compile(rb"^(space directions|spacings|ElementSpacing|ElementSize) *[:=]", re.MULTILINE)
SAYS_DIRECTION = re.compile(rb"^(space directions|TransformMatrix|Rotation|Orientation) *[:=]", re.MULTILINE)
SAYS_UNITS = re.compile(rb"^space units:(.*)$", re.MULTILINE)
MILLIMETRES = {b"", b"mm", b"millimeter", b"millimeters"}
HEADER_END = re.compile(rb"\r?\n\r?\n|^ElementDataFile", re.MULTILINE)
DICOM_SUFFIX = ".dcm"
# voxels per copy along the first and last axis: with 512 along the other one, 1 MB of a CT
BLOCK = 32
SAME_PLACE = 0.5  # of a voxel: sform and qform are rounded
# bytes decompressed at a time, and the most bytes that one compressed byte can yield
PIECE = 2**20
DEFLATE_RATIO = 1032
NIFTI_2_HEADER = 540  # bytes, as the first number of the file says
READ_ERRORS = (
    ImageFileError,
    HeaderDataError,
    WrapStructError,
    OSError,
    EOFError,
    MemoryError,
    OverflowError,
    zlib.error,
    RuntimeError,
    ValueError,
    TypeError,  # ITK's wrapping, of a header that is no UTF-8
    UnboundLocalError,  # ITK's, of a file that it has no reader for
)


def load_volume(path: str | Path) -> MetaTensor:
    """Load one volume.

    Args:
        path: a NIfTI, NRRD, MHD/MHA or DICOM file, or a folder with one DICOM series.

    Returns:
        float32 ``(1, X, Y, Z)`` in the file's own axis order, with the affine voxel to RAS in mm.

    Raises:
        UserError: the file is missing, unreadable, truncated, or not one 3-D volume, or its affine is invalid.
    """
    path = Path(path)
    if not path.exists():
        to = f", a link to {path.readlink()}" if path.is_symlink() else ""
        raise UserError(f"{path}: no such file or folder{to}. Check the path.")
    if not path.is_dir() and not path.is_file():
        raise UserError(f"{path} must be a file or folder, got a device or pipe; copy its content to a file first")
    voxels, meta = _read(path)
    affine = np.asarray(meta["affine"])
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise UserError(f"{path}: the affine is not invertible: {affine.tolist()}; repair the header")
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if (cosine := np.abs(np.triu(axes.T @ axes, 1)).max()) > SHEAR:
        raise UserError(
            f"{path}: axes must be at right angles, got {np.degrees(np.arccos(cosine)):.1f} degrees, as of a tilted "
            "gantry; resample it to a right-angled grid"
        )
    # like MONAI's LoadImage, without trying all of MONAI's readers
    volume = MetaTensor.ensure_torch_and_prune_meta(_in_c_order(voxels)[None], meta)  # (1, X, Y, Z)
    volume.meta["filename_or_obj"] = str(path)
    volume.meta["original_channel_dim"] = float("nan")
    return volume


def _read(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Real numbers ``(X, Y, Z)`` and what MONAI's readers say of them."""
    series, affine = _dicom_grid(path)
    slices = [str(name) for name in series.paths] if series else []
    is_nifti = path.name.lower().endswith((*NIFTI_SUFFIXES, ".img"))
    with readable(path, READ_ERRORS):
        reader: ImageReader
        image: Any
        if slices:  # proven regular, so ITK has nothing to warn of
            reader = ITKReader()
            # else ITK brings all slices to the integers of the first
            pixel_type = itk.F if series and series.is_mixed else None
            image = quiet_itk().imread(slices if len(slices) > 1 else slices[0], pixel_type)
        elif is_nifti:
            reader = _NiftiReader()
            image = reader.read(str(path))
        else:
            quiet_itk()
            pixel_type = itk_pixel_type(path)
            if path.name.lower().endswith(ITK_SUFFIXES):
                check_stored_voxels(path)
            reader = ITKReader(**({"pixel_type": pixel_type} if pixel_type else {}))
            image = reader.read(str(path))
        if path.name.lower().endswith(".nii.gz") and image.file_map["image"].filename and find_spec("isal"):
            image = _decompressed(path, image)
        voxels, meta = reader.get_data(image)
        qform = reader.qform if isinstance(reader, _NiftiReader) else None
        meta["qform"] = json.dumps(qform)  # as text, as below
        if slices:
            meta["slices"] = "\0".join(slices)  # as text, which collates in batches of different volumes
        if affine is not None:  # ITK turns slices around where SpacingBetweenSlices is negative
            meta["affine"] = meta["original_affine"] = affine
    if voxels.dtype.fields:
        voxels = _grey(path, voxels)
    while voxels.ndim > 3 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim != 3 or not voxels.size:
        received = "x".join(str(n) for n in voxels.shape)
        raise UserError(f"{path}: must be one 3-D volume, got {received}; extract one volume first")
    if voxels.dtype.kind not in "biuf":
        raise UserError(f"{path}: must hold real numbers, got {voxels.dtype}; export its magnitude")
    return voxels, meta


def _dicom_grid(path: Path) -> tuple[Series | None, np.ndarray | None]:
    """The series in a folder, and the affine that DICOM's headers give; None for other formats.

    Raises:
        UserError: a header says that the file or folder is no volume, or not where its voxels are.
    """
    name = path.name.lower()
    if path.is_dir():
        with readable(path, DICOM_ERRORS):
            series = regular_slices(path)
        return series, series.affine
    if name.endswith(ITK_SUFFIXES):
        _check_text_header(path)
    elif not name.endswith((*NIFTI_SUFFIXES, ".img")):
        with readable(path, DICOM_ERRORS):
            affine = check_multi_frame(path)
        if affine is None and not is_slice(path):  # ITK reads pictures, too, at 1 mm
            raise unreadable(path, ValueError("no header of NIfTI, NRRD, MHD/MHA or DICOM found"))
        return None, affine
    return None, None


def _check_text_header(path: Path) -> None:
    """See that the header of NRRD or MHD/MHA says what ITK would take as 1 mm along the patient's axes.

    Raises:
        UserError: no spacing, or another unit than mm.
    """
    with readable(path, (OSError,)), path.open("rb") as file:
        header = HEADER_END.split(file.read(LONGEST_HEADER), 1)[0]
    if (said := SAYS_AXES.search(header)) and said[1] not in NUMBERS_OF_AXES:  # ITK would end the process
        raise UserError(f"{path}: NDims must be from 1 to 10, got {said[1][:20].decode('latin-1')}; copy it again")
    if not header.startswith(b"NRRD") and b"DimSize" not in header:  # no header, which ITK says
        return
    if not SAYS_SPACING.search(header):
        raise UserError(f"{path}: spacing is not in the header; repair it")
    units = set(re.findall(rb'"([^"]*)"', said[1])) if (said := SAYS_UNITS.search(header)) else set()
    if others := units - MILLIMETRES:
        raise UserError(f"{path}: space units must be mm, got {others.pop().decode('latin-1')}; convert it")
    if not SAYS_DIRECTION.search(header):
        logger.warning("%s: the header has no directions, so left and right cannot be known", path)


class _NiftiReader(NibabelReader):
    """MONAI's reader with the geometry that the NIfTI standard gives: the sform where its code is not 0, in mm.

    MONAI replaces a valid sform by the qform, or the identity, where the spacings beside it are stale.
    """

    def read(self, data: Any, **kwargs: Any) -> Any:
        self.filenames = (data,)
        self.qform: tuple[list[list[float]], int, int] | None = None
        image = _open_nifti(Path(data))
        # none in the Analyze format
        codes = {code: int(image.header[code]) for code in ("sform_code", "qform_code") if code in image.header}
        # nibabel reads a length of 0 as 1
        stored = image.file_map.get("header", image.file_map["image"]).get_prepare_fileobj("rb")
        spacing = type(image.header).from_fileobj(stored, check=False)["pixdim"][1:4]
        if not codes.get("sform_code") and not spacing.all():
            raise UserError(f"{data}: spacing is 0 in the header; repair it")
        if not any(codes.values()):
            logger.warning(
                "%s: sform and qform codes are 0, so left and right cannot be known; "
                "the spacing of the header is the geometry",
                data,
            )
            self.qform = [], 0, 0
        elif codes.get("sform_code") and codes["qform_code"]:
            self._compare_qform(data, image)
        return image

    def _compare_qform(self, data: Any, image: Any) -> None:
        """Keep a qform that says something else than the sform: other programs go by it."""
        with suppress(ValueError, HeaderDataError):  # it says nothing
            qform, code = image.get_qform(), int(image.header["qform_code"])
            corners = np.array(np.meshgrid(*[(0, n - 1) for n in image.shape[:3]], [1], indexing="ij")).reshape(4, -1)
            distance_mm = np.linalg.norm(((qform - image.affine) @ corners)[:3], axis=0).max()
            if not distance_mm <= SAME_PLACE * nib.affines.voxel_sizes(image.affine).min():
                logger.warning("%s: sform and qform place voxels up to %.1f mm apart; the sform is taken", data,
                               distance_mm)  # fmt: skip
                qform[:3] *= _mm_per_unit(image)
                self.qform = qform.tolist(), code, int(image.header["sform_code"])

    def _get_affine(self, img: Any) -> np.ndarray:
        affine = np.array(img.affine, float)
        affine[:3] *= _mm_per_unit(img)
        return affine


def _mm_per_unit(image: Any) -> float:
    return MM_PER_UNIT.get(int(image.header["xyzt_units"]) & 7, 1.0) if "xyzt_units" in image.header else 1.0


def _open_nifti(path: Path) -> Any:
    """Open a NIfTI file with nibabel, compressed or not, whatever its name says."""
    with path.open("rb") as file:
        is_compressed = file.read(len(GZIP)) == GZIP
    # nibabel knows suffixes in small letters or in capitals
    is_named_well = path.name.endswith(tuple(name for suffix in (*NIFTI_SUFFIXES, ".img", ".img.gz", ".hdr.gz")
                                             for name in (suffix, suffix.upper())))  # fmt: skip
    if is_named_well and is_compressed == path.name.lower().endswith(".gz"):
        image = nib.load(path)
    else:
        content = gzip.decompress(path.read_bytes()) if is_compressed else path.read_bytes()
        is_nifti_2 = NIFTI_2_HEADER in (int.from_bytes(content[:4], order) for order in ("little", "big"))
        image = (nib.Nifti2Image if is_nifti_2 else nib.Nifti1Image).from_bytes(content)
    check_voxels_follow_header(path, image)
    return image


def _grey(path: Path, voxels: np.ndarray) -> np.ndarray:
    """One channel of a colour volume whose red, green and blue are the same."""
    red, *others = (voxels[name] for name in ("R", "G", "B"))
    if any((red != other).any() for other in others):
        raise UserError(f"{path}: must hold one grey value per voxel, got colours; export one channel")
    return red


def volume_name(path: str | Path) -> str:
    """Return the name without suffix: ``case_1`` for ``case_1.nii.gz`` and for the series folder ``case_1``."""
    name = Path(path).name
    for suffix in (*VOLUME_SUFFIXES, DICOM_SUFFIX):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def _decompressed(path: Path, image: Any) -> Any:
    """Return nibabel's image of a compressed file, its voxels decompressed by ISA-L in half the time of zlib."""
    stored = image.dataobj
    igzip, isal_zlib = import_module("isal.igzip"), import_module("isal.isal_zlib")
    size = stored.offset + math.prod(stored.shape) * stored.dtype.itemsize
    if size > DEFLATE_RATIO * path.stat().st_size:
        raise OSError(f"a header of {size} bytes of voxels, more than the file can hold")
    content = memoryview(bytearray(size))
    filled = 0
    try:
        with igzip.open(path) as file:
            while filled < size and (count := file.readinto(content[filled : filled + PIECE])):
                filled += count
            while file.read(PIECE):  # read to the end, where the checksum is
                pass
    except isal_zlib.error as error:  # not a zlib.error
        raise OSError(str(error)) from error
    if filled < size:
        raise OSError(f"{filled} bytes in place of {size}")
    voxels = np.frombuffer(content, stored.dtype, offset=stored.offset).reshape(stored.shape, order="F")
    return type(image)(apply_read_scaling(voxels, stored.slope, stored.inter), image.affine, image.header)


def _in_c_order(voxels: np.ndarray) -> torch.Tensor:
    """Copy ``(X, Y, Z)`` to float32 in C order, the last axis fastest.

    In NIfTI the first axis is fastest. For a CT, copying along either order takes twice (PyTorch) to six times (NumPy)
    as long as copying block by block.
    """
    known = voxels.dtype.isnative and voxels.dtype.kind in "iuf" and voxels.dtype.itemsize <= 8
    source = torch.from_numpy(voxels if known else voxels.astype(np.float32))
    copy = torch.empty(voxels.shape)
    for x in range(0, voxels.shape[0], BLOCK):
        for z in range(0, voxels.shape[2], BLOCK):
            copy[x : x + BLOCK, :, z : z + BLOCK] = source[x : x + BLOCK, :, z : z + BLOCK]
    return copy
