# SPDX-License-Identifier: Apache-2.0
"""Read a volume in any format that the bundles accept: NIfTI, NRRD, MHD/MHA, DICOM files and series folders."""

from __future__ import annotations

import gzip
import logging
import math
import zlib
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import ITKReader, MetaTensor, NibabelReader
from monai.data.image_reader import ImageReader
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling
from nibabel.wrapstruct import WrapStructError

from volseg.data.dicom_series import check_multi_frame, regular_slices
from volseg.data.image_file import itk_pixel_type, quiet_itk, readable
from volseg.errors import UserError

logger = logging.getLogger(__name__)

__all__ = ["VOLUME_SUFFIXES", "load_volume", "volume_name"]

NIFTI_SUFFIXES = (".nii.gz", ".nii", ".hdr")
VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, ".nrrd", ".nhdr", ".mha", ".mhd")
MM_PER_UNIT = {1: 1e3, 3: 1e-3}  # NIfTI's codes of metres and micrometres
DICOM_SUFFIX = ".dcm"
# voxels per copy along the first and last axis: with 512 along the other one, 1 MB of a CT
BLOCK = 32
# bytes decompressed at a time, and the most bytes that one compressed byte can yield
PIECE = 2**20
DEFLATE_RATIO = 1032
GZIP = b"\x1f\x8b"
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
        raise UserError(f"{path}: no such file or folder. Check the path.")
    if not path.is_dir() and not path.is_file():
        raise UserError(f"{path} must be a file or folder, got a device or pipe; copy its content to a file first")
    voxels, meta = _read(path)
    affine = np.asarray(meta["affine"])
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise UserError(f"{path}: the affine is not invertible: {affine.tolist()}; repair the header")
    # like MONAI's LoadImage, without trying all of MONAI's readers
    volume = MetaTensor.ensure_torch_and_prune_meta(_in_c_order(voxels)[None], meta)  # (1, X, Y, Z)
    volume.meta["filename_or_obj"] = str(path)
    volume.meta["original_channel_dim"] = float("nan")
    return volume


def _read(path: Path) -> tuple[np.ndarray, dict[str, Any]]:
    """Real numbers ``(X, Y, Z)`` and what MONAI's readers say of them."""
    slices = [str(name) for name in regular_slices(path)] if path.is_dir() else []
    is_nifti = path.name.lower().endswith((*NIFTI_SUFFIXES, ".img"))
    if not slices and not path.name.lower().endswith(VOLUME_SUFFIXES):
        check_multi_frame(path)
    with readable(path, READ_ERRORS):
        reader: ImageReader
        image: Any
        if slices:  # proven regular, so ITK has nothing to warn of
            reader = ITKReader()
            image = quiet_itk().imread(slices if len(slices) > 1 else slices[0])
        elif is_nifti:
            reader = _NiftiReader()
            image = reader.read(str(path))
        else:
            quiet_itk()
            pixel_type = itk_pixel_type(path)
            reader = ITKReader(**({"pixel_type": pixel_type} if pixel_type else {}))
            image = reader.read(str(path))
        if path.name.lower().endswith(".nii.gz") and image.file_map["image"].filename and find_spec("isal"):
            image = _decompressed(path, image)
        voxels, meta = reader.get_data(image)
        if slices:
            meta["slices"] = "\0".join(slices)  # as text, which collates in batches of different volumes
    if voxels.dtype.fields:
        voxels = _grey(path, voxels)
    if voxels.ndim == 4 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim != 3 or not voxels.size:
        received = "x".join(str(n) for n in voxels.shape)
        raise UserError(f"{path} must be one 3-D volume, got {received}; extract one volume first")
    if voxels.dtype.kind not in "biuf":
        raise UserError(f"{path} must hold real numbers, got {voxels.dtype}; export its magnitude")
    return voxels, meta


class _NiftiReader(NibabelReader):
    """MONAI's reader with the geometry that the NIfTI standard gives: the sform where its code is not 0, in mm.

    MONAI replaces a valid sform by the qform, or the identity, where the spacings beside it are stale.
    """

    def read(self, data: Any, **kwargs: Any) -> Any:
        self.filenames = (data,)
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
        return image

    def _get_affine(self, img: Any) -> np.ndarray:
        affine = np.array(img.affine, float)
        if "xyzt_units" in img.header:
            affine[:3] *= MM_PER_UNIT.get(int(img.header["xyzt_units"]) & 7, 1.0)
        return affine


def _open_nifti(path: Path) -> Any:
    """Open a NIfTI file with nibabel, compressed or not, whatever its name says."""
    with path.open("rb") as file:
        is_compressed = file.read(len(GZIP)) == GZIP
    if is_compressed == path.name.lower().endswith(".gz"):
        return nib.load(path)
    content = gzip.decompress(path.read_bytes()) if is_compressed else path.read_bytes()
    is_nifti_2 = NIFTI_2_HEADER in (int.from_bytes(content[:4], order) for order in ("little", "big"))
    return (nib.Nifti2Image if is_nifti_2 else nib.Nifti1Image).from_bytes(content)


def _grey(path: Path, voxels: np.ndarray) -> np.ndarray:
    """One channel of a colour volume whose red, green and blue are the same."""
    red, *others = (voxels[name] for name in ("R", "G", "B"))
    if any((red != other).any() for other in others):
        raise UserError(f"{path} must hold one grey value per voxel, got colours; export one channel")
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
