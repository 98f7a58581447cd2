# SPDX-License-Identifier: Apache-2.0
"""Volumes in NIfTI files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from volseg.data.image_file import NIFTI_ERRORS, open_nifti, readable
from volseg.data.volume_formats.base import Block, ChunkedVolume
from volseg.data.volume_formats.voxel_size import voxel_size_in_nm
from volseg.errors import UserError

__all__ = ["NIFTI_SUFFIXES", "NiftiVolume"]

NIFTI_SUFFIXES = (".nii.gz", ".nii")


class NiftiVolume(ChunkedVolume):
    """A NIfTI file with its axes x, y, z reversed to z, y, x and not reoriented.

    Blocks of a ``.nii.gz`` file are cheap only in ascending z: going back decompresses the file from its start.

    Args:
        path: file ending in ``.nii`` or ``.nii.gz``.

    Attributes:
        header: nibabel's header, for output on the same grid.

    Raises:
        UserError: the file cannot be read or does not hold one volume.
    """

    _READ_ERRORS = NIFTI_ERRORS

    def __init__(self, path: Path) -> None:
        image = open_nifti(path)
        shape = tuple(image.shape)
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        # another format with this suffix, or unknown units
        with readable(path, (AttributeError, KeyError, ValueError)):
            self.header = image.header.copy()
            dtype = self.header.get_data_dtype()
            is_scaled = image.dataobj.slope != 1 or image.dataobj.inter != 0
            sizes = np.linalg.norm(image.affine[:3, :3], axis=0)[::-1]
            unit = self.header.get_xyzt_units()[0]
        if len(shape) != 3 or min(shape) < 1:
            found = "x".join(str(n) for n in shape)
            raise UserError(f"{path}: must hold one 3-D volume, got {found}; extract one volume")
        self._trailing = (0,) * (len(image.shape) - 3)
        dtype = np.dtype(np.float32) if is_scaled else dtype
        super().__init__(path, shape[::-1], dtype, (1, shape[1], shape[0]), voxel_size_in_nm(sizes, [unit] * 3))
        if path.name.lower().endswith(".nii"):
            n_bytes = image.dataobj.offset + int(np.prod(image.shape)) * self.header.get_data_dtype().itemsize
            if path.stat().st_size < n_bytes:
                raise UserError(f"{path}: truncated, got {path.stat().st_size} of {n_bytes} bytes; copy it again")

    def _open(self) -> Any:
        # an open .nii.gz file continues from its position instead of its start
        image: Any = nib.load(self.path, keep_file_open=True)
        return image.dataobj

    def _read(self, block: Block) -> NDArray[Any]:
        return self._handle()[(*block[::-1], *self._trailing)].transpose()
