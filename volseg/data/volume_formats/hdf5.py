# SPDX-License-Identifier: Apache-2.0
"""Volumes in HDF5 files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from volseg.data.image_file import readable
from volseg.data.volume_formats.base import ChunkedVolume, optional_module
from volseg.data.volume_formats.stored_axes import find_axes
from volseg.data.volume_formats.voxel_size import voxel_size_from_attributes
from volseg.errors import UserError

__all__ = ["HDF5_SUFFIXES", "Hdf5Volume"]

HDF5_SUFFIXES = (".h5", ".hdf5", ".hdf")


class Hdf5Volume(ChunkedVolume):
    """A data set of an HDF5 file; labels of its dimensions, or ilastik's axis tags, say which axes are z, y, x.

    Args:
        file_path: the file.
        dataset: name of the data set; None for the only 3-D one.

    Raises:
        UserError: the file cannot be read, lacks the data set, or has several and none is named.
    """

    _READ_ERRORS = (OSError, RuntimeError, ValueError, KeyError, TypeError)

    def __init__(self, file_path: Path, dataset: str | None = None) -> None:
        with readable(file_path, self._READ_ERRORS), optional_module("h5py").File(file_path, "r") as file:
            self._dataset = _chosen(file_path, file, dataset)
            stored = file[self._dataset]
            path = file_path if dataset is None else Path(f"{file_path}:{dataset}")
            self._axes = axes = find_axes(path, stored.shape, _axis_names(stored))
            shape = axes.of(stored.shape)
            chunks = axes.of(stored.chunks) if stored.chunks else (1, *shape[1:])
            size_nm = voxel_size_from_attributes(stored.attrs, axes)
            super().__init__(path, shape, stored.dtype, chunks, size_nm, file_path)

    def _open(self) -> Any:
        return optional_module("h5py").File(self.file_path, "r")[self._dataset]


def _axis_names(stored: Any) -> list[str]:
    """Names of the axes, empty where the file does not say."""
    labels = [dimension.label for dimension in stored.dims]
    if not any(labels) and "axistags" in stored.attrs:
        labels = [axis["key"] for axis in json.loads(stored.attrs["axistags"])["axes"]]
    return labels


def _chosen(path: Path, file: Any, name: str | None) -> str:
    name = name and name.strip("/")
    shapes: dict[str, tuple[int, ...]] = {}
    file.visititems(lambda found, item: shapes.update({found: item.shape}) if hasattr(item, "shape") else None)
    volumes = [found for found, shape in shapes.items() if shape and len(shape) == 3]
    if not volumes:  # with axes of one element
        volumes = [found for found, shape in shapes.items() if shape and len(shape) > 3 > sum(n > 1 for n in shape) - 1]
    if name is None and len(volumes) == 1:
        return volumes[0]
    # a link is not visited
    if name is not None and (name in shapes or hasattr(file.get(name), "shape")):
        return name
    what = "must hold one 3-D data set" if name is None else f"no data set {name!r}"
    found = f"{len(volumes)} 3-D data sets" + (f" ({', '.join(volumes)})" if volumes else "")
    remedy = f"name one as {path.name}:NAME" if volumes else "give a file with a 3-D data set"
    raise UserError(f"{path}: {what}, got {found}; {remedy}")
