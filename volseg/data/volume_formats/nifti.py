# SPDX-License-Identifier: Apache-2.0
"""Volumes in NIfTI files."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from volseg.data.stored_volume import open_nifti, unreadable
from volseg.data.volume_formats.base import Block, ChunkedVolume
from volseg.data.volume_formats.voxel_size import voxel_size_in_nm
from volseg.errors import UserError

__all__ = ["NIFTI_SUFFIXES", "NiftiVolume"]

NIFTI_SUFFIXES = (".nii.gz", ".nii")


class NiftiVolume(ChunkedVolume):
    """A NIfTI file, its axes x, y, z reversed to z, y, x; nothing is turned to an orientation.

    Blocks of a ``.nii.gz`` file are cheap in the order of z only: going back decompresses it from its start.

    Args:
        path: ends in ``.nii`` or ``.nii.gz``.

    Attributes:
        header: nibabel's header of the file: its geometry, for what is written on the same grid.

    Raises:
        UserError: the file cannot be read or is not one volume.
    """

    _READ_ERRORS = (OSError, EOFError, ValueError, zlib.error, ImageFileError)

    def __init__(self, path: Path) -> None:
        image = open_nifti(path)
        shape = tuple(image.shape)
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        try:
            self.header = image.header.copy()
            dtype = self.header.get_data_dtype()
            is_scaled = image.dataobj.slope != 1 or image.dataobj.inter != 0
            sizes = np.linalg.norm(image.affine[:3, :3], axis=0)[::-1]
            unit = self.header.get_xyzt_units()[0]
        except (AttributeError, KeyError, ValueError) as error:  # another format under this name, or odd units
            raise unreadable(path, error) from error
        if len(shape) != 3:
            received = "x".join(str(n) for n in shape)
            raise UserError(f"{path}: one 3-D volume is needed. Received: {received}. Extract one volume first.")
        self._trailing = (0,) * (len(image.shape) - 3)
        dtype = np.dtype(np.float32) if is_scaled else dtype
        super().__init__(path, shape[::-1], dtype, (1, shape[1], shape[0]), voxel_size_in_nm(sizes, [unit] * 3))
        if path.name.lower().endswith(".nii"):
            n_bytes = image.dataobj.offset + int(np.prod(image.shape)) * self.header.get_data_dtype().itemsize
            if path.stat().st_size < n_bytes:
                raise UserError(
                    f"{path}: the file ends early. Received: {path.stat().st_size} bytes of {n_bytes}. Copy it again."
                )

    def _open(self) -> Any:
        # An open .nii.gz file goes on where it stands, instead of from its start.
        image: Any = nib.load(self.path, keep_file_open=True)
        return image.dataobj

    def _read(self, block: Block) -> NDArray[Any]:
        return self._handle()[(*block[::-1], *self._trailing)].transpose()
