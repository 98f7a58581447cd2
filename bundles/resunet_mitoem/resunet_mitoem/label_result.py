# SPDX-License-Identifier: Apache-2.0
"""Instances as MONAI Label hands them on: in the axis order and geometry of the file, in a type they fit into."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import itk
import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from numpy.typing import NDArray

from volseg.data.volume_formats.nifti import NIFTI_SUFFIXES
from volseg.errors import UserError

__all__ = ["RESULTS", "LabelResultd", "file_affine"]

RESULTS = ("instances", "mask")
# from ITK's axes, left and posterior, to NIfTI's, right and anterior
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


class LabelResultd(MapTransform):
    """Turn instance ids along z, y, x into what MONAI Label writes, along x, y, z with the file's affine.

    Args:
        keys: ids ``(1, D, H, W)``; each becomes ``(1, X, Y, Z)`` of the smallest integer type it fits into.
        result: ``"instances"`` or ``"mask"``, which is 1 in every instance.
        orig_key: image, whose meta data name the file.
        dtype_key: entry with the type that the client asks for, if it does: 3D Slicer wants 8 bits.

    Raises:
        ValueError: no such result.
        UserError: more instances than fit into what the client asks for; they would wrap around.
    """

    def __init__(
        self,
        keys: KeysCollection,
        result: str = "instances",
        orig_key: str = "image",
        dtype_key: str = "result_dtype",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        if result not in RESULTS:
            raise ValueError(f"result must be one of {', '.join(RESULTS)}, got {result!r}")
        self.result = result
        self.orig_key = orig_key
        self.dtype_key = dtype_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        d = dict(data)
        name = str(d[self.orig_key].meta["filename_or_obj"])
        for key in self.key_iterator(d):
            ids = np.asarray(d[key].cpu())[0]
            if self.result == "mask":
                ids = (ids > 0).astype(np.uint8)
            largest = int(ids.max(initial=0))
            wanted = d.get(self.dtype_key)
            if wanted and np.issubdtype(wanted, np.integer) and largest > np.iinfo(wanted).max:
                raise UserError(
                    f"{name}: {largest} instances are too many for the viewer, whose {wanted} holds "
                    f"{np.iinfo(wanted).max}; choose mask for label_as, a larger min_size or a smaller volume"
                )
            fitting = next(t for t in (np.uint8, np.int16, np.int32) if largest <= np.iinfo(t).max)
            voxels = torch.from_numpy(np.ascontiguousarray(ids.transpose(2, 1, 0).astype(fitting)))
            d[key] = MetaTensor(voxels[None], affine=torch.from_numpy(file_affine(name)))
        return d


def file_affine(path: str) -> NDArray[np.float64]:
    """Affine (4, 4) from voxels x, y, z to RAS as viewers read it from a file; without a geometry, that of ITK."""
    if path.lower().endswith(NIFTI_SUFFIXES):
        return np.asarray(nib.load(path).affine, dtype=np.float64)  # type: ignore[attr-defined]
    affine = np.eye(4)
    reader = itk.ImageIOFactory.CreateImageIO(path, itk.CommonEnums.IOFileMode_ReadMode)
    if reader is not None:
        reader.SetFileName(path)
        reader.ReadImageInformation()
        for axis in range(min(3, reader.GetNumberOfDimensions())):
            affine[axis, axis] = reader.GetSpacing(axis)
    return LPS_TO_RAS @ affine
