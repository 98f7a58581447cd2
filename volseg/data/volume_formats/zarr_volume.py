# SPDX-License-Identifier: Apache-2.0
"""Read Zarr arrays of format 2 and 3, and OME-Zarr images and labels of version 0.4 and 0.5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from volseg.data.image_file import readable
from volseg.data.volume_formats.base import Block, ChunkedVolume
from volseg.data.volume_formats.optional_module import optional_module
from volseg.data.volume_formats.voxel_size import VoxelSize, voxel_size_from_attributes, voxel_size_in_nm
from volseg.errors import UserError

__all__ = ["ZARR_METADATA_FILES", "ZarrVolume", "open_zarr", "read_multiscale"]

ZARR_METADATA_FILES = ("zarr.json", ".zarray", ".zgroup")
# Zarr does not validate its JSON metadata, and its codecs raise RuntimeError
ZARR_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError)


def open_zarr(path: Path) -> Any:
    """Open a Zarr array or group for reading.

    Raises:
        UserError: it cannot be read.
    """
    with readable(path, ZARR_ERRORS):
        return optional_module("zarr").open(str(path), mode="r")


def read_multiscale(path: Path, node: Any) -> dict[str, Any] | None:
    """Return the first multiscale image in a group's OME metadata, or None.

    Raises:
        UserError: the metadata lack what OME-Zarr requires.
    """
    attributes = node.attrs.asdict()
    multiscales = attributes.get("ome", attributes).get("multiscales")
    if multiscales is None:
        return None
    try:
        multiscale = multiscales[0]
        if not all(isinstance(axis["name"], str) for axis in multiscale["axes"]):
            raise TypeError("a name for each axis")
        if not isinstance(multiscale["datasets"][0]["path"], str):
            raise TypeError("a path for each level")
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(f"{path}: not OME-Zarr 0.4 or 0.5, got metadata without {error}; write it again") from error
    return multiscale


class ZarrVolume(ChunkedVolume):
    """A Zarr array, the only 3-D array of a group, or the full-resolution level of an OME-Zarr image or label.

    Axes before z, y, x (time, channel) must have one element.

    Args:
        path: folder of the array or group.

    Raises:
        UserError: it cannot be read or does not hold one volume.
    """

    _READ_ERRORS = ZARR_ERRORS

    def __init__(self, path: Path) -> None:
        node = open_zarr(path)
        with readable(path, self._READ_ERRORS):
            self._array_path, voxel_size_nm = self._find_array(path, node)
            array = node if not self._array_path else node[self._array_path]
            n_leading = max(0, array.ndim - 3)
            if any(n != 1 for n in array.shape[:n_leading]):
                n_leading = 0  # several volumes, refused for their number of axes
            self._leading = (0,) * n_leading
            chunks = array.shards or array.chunks
            super().__init__(path, array.shape[n_leading:], array.dtype, chunks[n_leading:], voxel_size_nm)

    @staticmethod
    def _find_array(path: Path, node: Any) -> tuple[str, VoxelSize | None]:
        """Return the path of the array in the group, empty if there is no group, and the voxel size."""
        if hasattr(node, "shape"):
            return "", voxel_size_from_attributes(node.attrs.asdict())
        multiscale = read_multiscale(path, node)
        if multiscale is not None:
            return _full_resolution(path, multiscale)
        arrays = [name for name, item in node.members(max_depth=None) if getattr(item, "ndim", 0) == 3]
        if len(arrays) != 1:
            listed = f" ({', '.join(sorted(arrays))})" if arrays else ""
            raise UserError(
                f"{path}: a group must hold one 3-D array, got {len(arrays)}{listed}; give the path of one, or an "
                "OME-Zarr image"
            )
        return arrays[0], voxel_size_from_attributes(node[arrays[0]].attrs.asdict())

    def _open(self) -> Any:
        node = open_zarr(self.path)
        return node[self._array_path] if self._array_path else node

    def _read(self, block: Block) -> NDArray[Any]:
        return self._handle()[(*self._leading, *block)]


def _full_resolution(path: Path, multiscale: dict[str, Any]) -> tuple[str, VoxelSize | None]:
    """Return the path of level 0 and the voxel size, the product of the level's scale and the common scale."""
    names = [axis["name"] for axis in multiscale["axes"]]
    if names[-3:] != ["z", "y", "x"]:
        raise UserError(f"{path}: the last axes must be z, y, x, got {', '.join(names)}; convert the image")
    level = multiscale["datasets"][0]
    scale = [1.0] * len(names)
    for transformation in (
        *level.get("coordinateTransformations", ()),
        *multiscale.get("coordinateTransformations", ()),
    ):
        if transformation.get("type") == "scale":
            scale = [a * b for a, b in zip(scale, transformation["scale"], strict=True)]
    return level["path"], voxel_size_in_nm(scale[-3:], [axis.get("unit") for axis in multiscale["axes"][-3:]])
