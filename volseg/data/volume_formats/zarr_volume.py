# SPDX-License-Identifier: Apache-2.0
"""Read Zarr arrays of format 2 and 3, and OME-Zarr images and labels of version 0.4 and 0.5."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from volseg.data.image_file import readable
from volseg.data.volume_formats.base import ChunkedVolume, optional_module
from volseg.data.volume_formats.stored_axes import StoredAxes, find_axes
from volseg.data.volume_formats.voxel_size import VoxelSize, nm_per_unit, voxel_size_from_attributes, voxel_size_in_nm
from volseg.errors import UserError

__all__ = ["CHUNKS_WRITTEN", "ZARR_METADATA_FILES", "ZarrVolume", "open_zarr", "read_multiscale"]

logger = logging.getLogger(__name__)

CHUNKS_WRITTEN = "chunks_written"
"""Attribute of a finished array: the number of chunks in its store, as those of zeros alone are left out."""


# of OME-Zarr's transformations; with another one the size of voxels is not known
KNOWN_STEPS = {"scale", "translation", "identity"}
ZARR_METADATA_FILES = ("zarr.json", ".zarray", ".zgroup")
# Zarr does not validate its JSON metadata, and its codecs raise RuntimeError
ZARR_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError,
               ArithmeticError)  # fmt: skip


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

    Axes that have names are known by them: those of OME-Zarr, the dimension names of format 3, and
    ``_ARRAY_DIMENSIONS``. Axes beside z, y, x (time, channel) must have one element. Of a container as bioformats2raw
    writes it the only image is read.

    Args:
        path: folder of the array or group.

    Raises:
        UserError: it cannot be read or does not hold one volume.
    """

    _READ_ERRORS = ZARR_ERRORS

    def __init__(self, path: Path) -> None:
        node = open_zarr(path)
        with readable(path, self._READ_ERRORS):
            found = _find_array(path, node)
            array = node[found.path] if found.path else node
            self._array_path = found.path
            self._axes = axes = find_axes(path, array.shape, found.axes or _axis_names(array))
            chunks = axes.of(array.shards or array.chunks)
            if 0 in chunks:
                raise UserError(f"{path}: chunks must have a size >= 1, got {chunks}; write the array again")
            if found.multiscale is None:
                size_nm, origin_nm = voxel_size_from_attributes(array.attrs.asdict(), axes), None
            else:
                size_nm, origin_nm = _placement(found.multiscale, axes)
            super().__init__(path, axes.of(array.shape), array.dtype, chunks, size_nm)
            self.origin_nm = origin_nm
            _warn_of_missing_chunks(path, array)

    def _open(self) -> Any:
        node = open_zarr(self.path)
        return node[self._array_path] if self._array_path else node


@dataclass(frozen=True)
class _Found:
    """An array in a group: its path, empty for an array by itself; names of its axes and OME metadata, if there are."""

    path: str
    axes: Sequence[str] = ()
    multiscale: dict[str, Any] | None = None


def _find_array(path: Path, node: Any) -> _Found:
    if hasattr(node, "shape"):
        return _Found("")
    image, prefix = node, ""
    attributes = node.attrs.asdict()
    if "bioformats2raw.layout" in attributes.get("ome", attributes):
        images = sorted(name for name in node if name.isdigit())
        if len(images) != 1:
            raise UserError(
                f"{path}: a container must hold one image, got {len(images)} ({', '.join(images)}); give the path "
                f"of one, such as {path}/{images[0] if images else 0}"
            )
        image, prefix = node[images[0]], f"{images[0]}/"
    multiscale = read_multiscale(path, image)
    if multiscale is not None:
        names = [axis["name"] for axis in multiscale["axes"]]
        level = _finest_level(multiscale)
        return _Found(prefix + level["path"], names, {**multiscale, "datasets": [level]})
    arrays = [name for name, item in node.members(max_depth=None) if getattr(item, "ndim", 0) == 3]
    if len(arrays) != 1:
        listed = f" ({', '.join(sorted(arrays))})" if arrays else ""
        raise UserError(
            f"{path}: a group must hold one 3-D array, got {len(arrays)}{listed}; give the path of one, or an "
            "OME-Zarr image"
        )
    return _Found(arrays[0])


def _finest_level(multiscale: dict[str, Any]) -> dict[str, Any]:
    """The level with the smallest voxels: by the format the first, which some writers reverse."""
    levels = multiscale["datasets"]
    scales = [
        [step["scale"] for step in level.get("coordinateTransformations", ()) if step.get("type") == "scale"]
        for level in levels
    ]
    if not all(scales):
        return levels[0]
    return levels[min(range(len(levels)), key=lambda number: math.prod(scales[number][0]))]


def _axis_names(array: Any) -> Sequence[str]:
    """Names of the axes of an array by itself, empty where it does not say."""
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.asdict().get("_ARRAY_DIMENSIONS")
    return names if isinstance(names, list | tuple) else ()


def _placement(multiscale: dict[str, Any], axes: StoredAxes) -> tuple[VoxelSize | None, VoxelSize | None]:
    """Voxel size and origin (z, y, x) in nm: the transformations of the level, then those of all levels."""
    scale, origin = [1.0] * axes.ndim, [0.0] * axes.ndim
    transformations = [
        *multiscale["datasets"][0].get("coordinateTransformations", ()),
        *multiscale.get("coordinateTransformations", ()),
    ]
    kinds = {transformation.get("type") for transformation in transformations}
    for transformation in transformations:
        if transformation.get("type") == "scale":
            scale = [a * b for a, b in zip(scale, transformation["scale"], strict=True)]
            origin = [a * b for a, b in zip(origin, transformation["scale"], strict=True)]
        elif transformation.get("type") == "translation":
            origin = [a + b for a, b in zip(origin, transformation["translation"], strict=True)]
    units = axes.of([axis.get("unit") for axis in multiscale["axes"]])
    size_nm = voxel_size_in_nm(axes.of(scale), units)
    if size_nm is None or "scale" not in kinds or not kinds <= KNOWN_STEPS:
        return None, None
    z, y, x = (at * (nm_per_unit(unit) or 1.0) for at, unit in zip(axes.of(origin), units, strict=True))
    return size_nm, (z, y, x)


def _warn_of_missing_chunks(path: Path, array: Any) -> None:
    """Chunks that are not there read as the fill value; some writers say how many there were."""
    expected = array.attrs.asdict().get(CHUNKS_WRITTEN)
    if isinstance(expected, int) and (found := array.nchunks_initialized) < expected:
        logger.warning("%s: %d of %d chunks are missing and read as the fill value; copy it again", path,
                       expected - found, expected)  # fmt: skip
