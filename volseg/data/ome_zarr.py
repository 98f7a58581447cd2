# SPDX-License-Identifier: Apache-2.0
"""Write OME-Zarr 0.5 (Zarr format 3): images and their labels, at full resolution.

The format: https://ngff.openmicroscopy.org/0.5/
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from volseg.data.volume_formats.optional_module import optional_module
from volseg.data.volume_formats.zarr_volume import open_zarr, read_multiscale
from volseg.errors import UserError
from volseg.storage.atomic_folder import atomic_folder

__all__ = ["DEFAULT_CHUNKS", "create_ome_zarr", "create_ome_zarr_label", "is_one_level", "transformations"]

DEFAULT_CHUNKS = (16, 256, 256)  # 1 MiB of 8-bit voxels

_VERSION = "0.5"
_AXES = ("z", "y", "x")
_LABELS = "labels"
_LABEL_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@contextmanager
def create_ome_zarr(
    path: str | Path,
    shape: Sequence[int],
    dtype: DTypeLike,
    voxel_size_nm: Sequence[float] | None,
    chunks: Sequence[int] = DEFAULT_CHUNKS,
    origin_nm: Sequence[float] | None = None,
) -> Iterator[Any]:
    """Write an OME-Zarr image, whole or not at all.

    Usage::

        with create_ome_zarr("a.ome.zarr", (100, 4096, 4096), "uint8", (30, 8, 8)) as voxels:
            voxels[0:16, 0:256, 0:256] = block

    Blocks that are never written are zero and take no space. Blocks aligned to ``chunks`` are the cheapest, and those
    alone may be written from several threads or processes at once.

    Args:
        path: the folder to write; an OME-Zarr image of one level and without labels that stands there is replaced.
        shape: (D, H, W).
        dtype: of the voxels.
        voxel_size_nm: (z, y, x); None writes a scale of 1 without a unit.
        chunks: (D, H, W).
        origin_nm: where the first voxel lies (z, y, x), of images with a voxel size.

    Yields:
        the writable Zarr array of level 0; when the block ends without an error, the image stands at ``path``.

    Raises:
        UserError: something else stands at ``path``, it cannot be written, or ``zarr`` is missing.
    """
    with atomic_folder(path, is_one_level) as temporary:
        yield _create_multiscale(temporary, Path(path).name, shape, dtype, _metadata(voxel_size_nm, origin_nm), chunks)


@contextmanager
def create_ome_zarr_label(
    image_path: str | Path, name: str, dtype: DTypeLike, chunks: Sequence[int] | None = None
) -> Iterator[Any]:
    """Write a label of an OME-Zarr image as ``labels/NAME`` inside of it, whole or not at all.

    Shape, axes, voxel size and position are those of the image's full-resolution level.

    Args:
        image_path: an OME-Zarr 0.5 image of the axes z, y, x.
        name: of the label: letters, digits, ``_``, ``-`` and ``.``; a label of this name is replaced.
        dtype: an integer type.
        chunks: (D, H, W); None: those of the image.

    Yields:
        the writable Zarr array of level 0, as :func:`create_ome_zarr`.

    Raises:
        ValueError: ``dtype`` is no integer type.
        UserError: no such image, the name cannot be one, or the label cannot be written.
    """
    if np.dtype(dtype).kind not in "iu":
        raise ValueError(f"dtype must be an integer type. Received: {dtype}")
    image_path = Path(image_path)
    if not _LABEL_NAME.fullmatch(name):
        raise UserError(f"{image_path}: no name of a label. Received: {name!r}. Take letters, digits, _, - and .")
    image = open_zarr(image_path)
    multiscale = read_multiscale(image_path, image)
    version = image.attrs.asdict().get("ome", {}).get("version")
    names = [axis["name"] for axis in multiscale["axes"]] if multiscale else []
    if multiscale is None or version != _VERSION or names != list(_AXES):
        raise UserError(
            f"{image_path}: labels go into OME-Zarr {_VERSION} images of the axes z, y, x. Received: version "
            f"{version}, axes {', '.join(names) or 'none'}. Convert the image, or write the label by itself."
        )
    level = multiscale["datasets"][0]
    array = image[level["path"]]
    # One level is written, so of the image's levels only the first is taken over.
    metadata: dict[str, Any] = {
        key: value for key, value in multiscale.items() if key in ("axes", "coordinateTransformations")
    }
    metadata["datasets"] = [{**level, "path": "0"}]
    labels_path = image_path / _LABELS
    with atomic_folder(labels_path / name, is_one_level) as temporary:
        source = {"image-label": {"source": {"image": "../../"}}}
        yield _create_multiscale(temporary, name, array.shape, dtype, metadata, chunks or array.chunks, source)
    labels = optional_module("zarr").open_group(str(labels_path), mode="a", zarr_format=3)
    listed = labels.attrs.asdict().get("ome", {}).get(_LABELS, [])
    if name not in listed:
        labels.attrs.put({"ome": {"version": _VERSION, _LABELS: [*listed, name]}})


def is_one_level(path: Path) -> bool:
    """Whether a folder holds what this module writes and no more: a group of one level."""
    return sorted(entry.name for entry in path.iterdir()) == ["0", "zarr.json"]


def transformations(
    scale: Sequence[float], voxel_size_nm: Sequence[float] | None, origin_nm: Sequence[float] | None
) -> list[dict[str, Any]]:
    """The coordinate transformations of a level with so large voxels; an origin needs the unit of a voxel size."""
    found: list[dict[str, Any]] = [{"type": "scale", "scale": [float(edge) for edge in scale]}]
    if voxel_size_nm is not None and origin_nm is not None and any(origin_nm):
        found.append({"type": "translation", "translation": [float(at) for at in origin_nm]})
    return found


def _metadata(voxel_size_nm: Sequence[float] | None, origin_nm: Sequence[float] | None) -> dict[str, Any]:
    """Axes and the one level of an image."""
    scale = [1.0] * 3 if voxel_size_nm is None else voxel_size_nm
    unit = {} if voxel_size_nm is None else {"unit": "nanometer"}
    return {
        "axes": [{"name": name, "type": "space", **unit} for name in _AXES],
        "datasets": [{"path": "0", "coordinateTransformations": transformations(scale, voxel_size_nm, origin_nm)}],
    }


def _create_multiscale(
    folder: Path,
    name: str,
    shape: Sequence[int],
    dtype: DTypeLike,
    metadata: dict[str, Any],
    chunks: Sequence[int],
    more: dict[str, Any] | None = None,
) -> Any:
    """A group with OME metadata and its array of level 0."""
    multiscale = {"name": name, **metadata}
    attributes = {"ome": {"version": _VERSION, "multiscales": [multiscale], **(more or {})}}
    group = optional_module("zarr").open_group(str(folder), mode="a", zarr_format=3, attributes=attributes)
    return group.create_array(
        "0",
        shape=tuple(shape),
        dtype=np.dtype(dtype),
        chunks=tuple(min(chunk, n) for chunk, n in zip(chunks, shape, strict=True)),
        dimension_names=_AXES,
    )
