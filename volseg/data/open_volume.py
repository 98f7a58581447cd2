# SPDX-License-Identifier: Apache-2.0
"""Open volumes that are larger than memory, in the formats of electron microscopy."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from volseg.data.volume_formats.base import ChunkedVolume
from volseg.data.volume_formats.hdf5 import HDF5_SUFFIXES, Hdf5Volume
from volseg.data.volume_formats.mrc import MRC_SUFFIXES, MrcVolume
from volseg.data.volume_formats.nifti import NIFTI_SUFFIXES, NiftiVolume
from volseg.data.volume_formats.section_file import PNG_SUFFIX
from volseg.data.volume_formats.section_volume import SectionVolume, open_section_folder, open_section_index
from volseg.data.volume_formats.tiff_stack import TIFF_SUFFIXES, TiffStack
from volseg.data.volume_formats.zarr_volume import ZARR_METADATA_FILES, ZarrVolume
from volseg.errors import UserError

__all__ = ["SECTION_CACHE_BYTES", "ChunkedVolume", "open_chunked_volume"]

SECTION_CACHE_BYTES = 2**28  # 16 sections of MitoEM, in each process that reads

_JSON_SUFFIX = ".json"
_HDF5_DATASET = re.compile(rf"(.+?(?:{'|'.join(re.escape(suffix) for suffix in HDF5_SUFFIXES)})):(.+)", re.IGNORECASE)


def open_chunked_volume(path: str | Path, cache_bytes: int = SECTION_CACHE_BYTES) -> ChunkedVolume:
    """Open a volume for block-wise reading; only headers are read.

    Args:
        path: one of

            - a folder of sections, one PNG or TIFF file each, numbered; 8 or 16 bits, or ids as RGB;
            - a JSON index of sections as in MitoEM;
            - a multi-page TIFF file, or a single section as TIFF or PNG (D = 1);
            - an HDF5 file, ``file.h5:dataset`` where it has several 3-D data sets;
            - a Zarr array, or an OME-Zarr image: ``a.ome.zarr``; its label: ``a.ome.zarr/labels/NAME``;
            - a NIfTI file;
            - an MRC file.
        cache_bytes: size of the cache of recently decoded sections, for formats that store whole sections.

    Returns:
        the volume, axes (D, H, W) = z, y, x.

    Raises:
        UserError: the file is missing, damaged, empty, of another format, or not one 3-D volume; or a package of the
            extra ``em`` is missing.
    """
    path = Path(path)
    dataset = None
    if not path.exists() and (named := _HDF5_DATASET.fullmatch(str(path))):
        path, dataset = Path(named[1]), named[2]
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; check the path")
    if path.is_dir():
        if any((path / name).is_file() for name in ZARR_METADATA_FILES):
            return ZarrVolume(path)
        return open_section_folder(path, cache_bytes)
    formats: dict[tuple[str, ...], Callable[[], ChunkedVolume]] = {
        HDF5_SUFFIXES: lambda: Hdf5Volume(path, dataset),
        TIFF_SUFFIXES: lambda: TiffStack(path, cache_bytes),
        NIFTI_SUFFIXES: lambda: NiftiVolume(path),
        MRC_SUFFIXES: lambda: MrcVolume(path),
        (PNG_SUFFIX,): lambda: SectionVolume(path, [[path]], cache_bytes),
        (_JSON_SUFFIX,): lambda: open_section_index(path, cache_bytes),
    }
    for suffixes, open_file in formats.items():
        if path.name.lower().endswith(suffixes):
            return open_file()
    raise UserError(
        f"{path}: not a supported volume format; use a folder of sections, .json, .tif, .h5, "
        ".zarr, .ome.zarr, .nii, .nii.gz, .mrc or .png"
    )
