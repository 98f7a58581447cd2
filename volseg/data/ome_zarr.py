# SPDX-License-Identifier: Apache-2.0
"""Write OME-Zarr 0.5 (Zarr format 3): images, their labels, and the metadata of both.

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

from volseg.data.volume_formats.base import optional_module
from volseg.data.volume_formats.zarr_volume import open_zarr, read_multiscale
from volseg.errors import UserError
from volseg.storage.files import atomic_folder

DEFAULT_CHUNKS = (16, 256, 256)  # 1 MiB of 8-bit voxels

_VERSION = "0.5"
AXES = ("z", "y", "x")
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

    Blocks that are never written are zero and take no space. Blocks aligned to ``chunks`` are the cheapest, and only
    these may be written by several threads or processes at once.

    Args:
        path: the folder to write; an OME-Zarr image there with one level and no labels is replaced.
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
        metadata = axes_and_levels(voxel_size_nm, origin_nm=origin_nm)
        yield _create_multiscale(temporary, Path(path).name, shape, dtype, metadata, chunks)


@contextmanager
def create_ome_zarr_label(
    image_path: str | Path, name: str, dtype: DTypeLike, chunks: Sequence[int] | None = None
) -> Iterator[Any]:
    """Write a label of an OME-Zarr image as ``labels/NAME`` inside it, whole or not at all.

    Shape, axes, voxel size and position are those of the image's full-resolution level.

    Args:
        image_path: an OME-Zarr 0.5 image with axes z, y, x.
        name: of the label: letters, digits, ``_``, ``-`` and ``.``; a label of this name is replaced.
        dtype: an integer type.
        chunks: (D, H, W); None takes those of the image.

    Yields:
        the writable Zarr array of level 0, as :func:`create_ome_zarr`.

    Raises:
        ValueError: ``dtype`` is not an integer type.
        UserError: the image or the name is unsuitable, or the label cannot be written.
    """
    if np.dtype(dtype).kind not in "iu":
        raise ValueError(f"dtype must be an integer type, got {dtype}")
    image_path = Path(image_path)
    if not _LABEL_NAME.fullmatch(name):
        raise UserError(f"{image_path}: label names consist of letters, digits, '_', '-' and '.', got {name!r}")
    image = open_zarr(image_path)
    multiscale = read_multiscale(image_path, image)
    version = image.attrs.asdict().get("ome", {}).get("version")
    names = [axis["name"] for axis in multiscale["axes"]] if multiscale else []
    if multiscale is None or version != _VERSION or names != list(AXES):
        raise UserError(
            f"{image_path}: labels need an OME-Zarr {_VERSION} image with axes z, y, x, got version {version}, axes "
            f"{', '.join(names) or 'none'}; convert the image or write the label separately"
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
        source = {"image": "../../"}
        yield _create_multiscale(temporary, name, array.shape, dtype, metadata, chunks or array.chunks, source)
    labels = optional_module("zarr").open_group(str(labels_path), mode="a", zarr_format=3)
    listed = labels.attrs.asdict().get("ome", {}).get(_LABELS, [])
    if name not in listed:
        labels.attrs.put({"ome": {"version": _VERSION, _LABELS: [*listed, name]}})


def is_one_level(path: Path) -> bool:
    """Whether a folder holds what this module writes and no more: a group of one level."""
    return sorted(entry.name for entry in path.iterdir()) == ["0", "zarr.json"]


def axes_and_levels(
    voxel_size_nm: Sequence[float] | None,
    level_scales: Sequence[Sequence[int]] = ((1, 1, 1),),
    origin_nm: Sequence[float] | None = None,
) -> dict[str, Any]:
    """The axes of a multiscale image and its levels, named 0, 1, 2 and so on.

    Args:
        voxel_size_nm: (z, y, x) at full resolution; None writes scales without a unit, and no origin.
        level_scales: voxels of the full resolution per voxel of each level, (z, y, x).
        origin_nm: where the first voxel, of each level, lies (z, y, x).
    """
    edges = [1.0] * 3 if voxel_size_nm is None else [float(edge) for edge in voxel_size_nm]
    unit = {} if voxel_size_nm is None else {"unit": "nanometer"}
    scales = [[edge * by for edge, by in zip(edges, level, strict=True)] for level in level_scales]
    translation: list[dict[str, Any]] = []
    if voxel_size_nm is not None and origin_nm is not None and any(origin_nm):
        translation = [{"type": "translation", "translation": [float(at) for at in origin_nm]}]
    return {
        "axes": [{"name": name, "type": "space", **unit} for name in AXES],
        "datasets": [
            {"path": str(number), "coordinateTransformations": [{"type": "scale", "scale": scale}, *translation]}
            for number, scale in enumerate(scales)
        ],
    }


def create_multiscale_group(
    store: Path | str,
    name: str,
    multiscale: dict[str, Any],
    is_label: bool = False,
    label_source: dict[str, Any] | None = None,
) -> Any:
    """Create, or complete, the Zarr group of a multiscale image with its metadata.

    Args:
        store: path or URL of the group.
        name: of the image.
        multiscale: see :func:`axes_and_levels`.
        is_label: the voxels are ids, which viewers then colour individually.
        label_source: the image that a label belongs to.
    """
    ome: dict[str, Any] = {"version": _VERSION, "multiscales": [{"name": name, **multiscale}]}
    if is_label:
        ome["image-label"] = {"source": label_source} if label_source else {"version": _VERSION}
    return optional_module("zarr").open_group(store, mode="a", zarr_format=3, attributes={"ome": ome})


def _create_multiscale(
    folder: Path,
    name: str,
    shape: Sequence[int],
    dtype: DTypeLike,
    metadata: dict[str, Any],
    chunks: Sequence[int],
    label_source: dict[str, Any] | None = None,
) -> Any:
    """A group with OME metadata and its array of level 0."""
    group = create_multiscale_group(str(folder), name, metadata, label_source is not None, label_source)
    return group.create_array(
        "0",
        shape=tuple(shape),
        dtype=np.dtype(dtype),
        chunks=tuple(min(chunk, n) for chunk, n in zip(chunks, shape, strict=True)),
        dimension_names=AXES,
    )
