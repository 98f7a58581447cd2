# SPDX-License-Identifier: Apache-2.0
"""Write instance labels in the format of the volume that they belong to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.openers import Opener
from numpy.typing import DTypeLike, NDArray
from PIL import Image

from volseg.data.ome_zarr import DEFAULT_CHUNKS, create_ome_zarr, is_one_level
from volseg.data.open_volume import ChunkedVolume
from volseg.data.volume_formats.base import VoxelArray, optional_module
from volseg.data.volume_formats.hdf5 import Hdf5Volume
from volseg.data.volume_formats.mrc import MrcVolume
from volseg.data.volume_formats.nifti import NIFTI_SUFFIXES, NiftiVolume
from volseg.data.volume_formats.section_volume import SectionVolume
from volseg.data.volume_formats.tiff_stack import TiffStack
from volseg.data.volume_formats.zarr_volume import ZarrVolume
from volseg.errors import UserError
from volseg.storage.files import atomic_folder, atomic_path, check_replaceable

__all__ = ["instances_path", "write_instances"]

SLAB_BYTES = 2**28  # of labels in memory at once

_MAX_PNG = np.iinfo(np.uint16).max
_MAX_TIFF = np.iinfo(np.uint32).max
_CLASSIC_TIFF_BYTES = 2**32 - 2**25  # above it, offsets may not fit
_GZIP_LEVEL = 4


def write_instances(
    path_stem: str | Path,
    labels: VoxelArray,
    like: ChunkedVolume,
    voxel_size_nm: Sequence[float] | None = None,
) -> Path:
    """Write instance labels in the format of their image, compressed, whole or not at all.

    ==================  =======================================================================================
    image               labels
    ==================  =======================================================================================
    sections, index     a folder of sections with the names of the image's, PNG of 16 bits; TIFF of 32 bits where
                        ids exceed 65535
    TIFF                ``.tif`` as OME-TIFF with voxel size
    HDF5                ``.h5`` with the data set ``main``
    Zarr, OME-Zarr, MRC ``.ome.zarr``, OME-Zarr 0.5
    NIfTI               ``.nii.gz`` or ``.nii`` with the image's geometry
    ==================  =======================================================================================

    Ids are kept as they are, in the smallest unsigned type of the format that holds them. Labels are read twice, some
    sections at a time.

    Args:
        path_stem: where to write; the format's suffix is added. A file that is there is replaced, as is an OME-Zarr
            image of one level; a folder of sections is not.
        labels: (D, H, W) of an integer type, 0 = background.
        like: the image.
        voxel_size_nm: along z, y, x; None: what the image says.

    Returns:
        the file or folder.

    Raises:
        UserError: what :func:`instances_path` raises; labels that are not integers, negative, too large for the
            format, or not of the image's shape; the result cannot be written.
    """
    path = instances_path(path_stem, like)
    _, write, max_id = _format(Path(path_stem), like)
    if tuple(labels.shape) != like.shape:
        raise UserError(f"{path}: labels must have the shape of {like.path}, {like.shape}, got {tuple(labels.shape)}")
    if np.dtype(labels.dtype).kind not in "biu":
        raise UserError(f"{path}: ids must be integers, got {labels.dtype}; round or label them first")
    extremes = [(int(slab.min()), int(slab.max())) for _, slab in _slabs(labels)]
    lowest, highest = min(low for low, _ in extremes), max(high for _, high in extremes)
    if lowest < 0 or highest > max_id:
        raise UserError(
            f"{path}: ids must be from 0 to {max_id}, got {lowest if lowest < 0 else highest}; renumber them"
        )
    write(path, labels, like, highest, voxel_size_nm or like.voxel_size_nm)
    return path


def instances_path(path_stem: str | Path, like: ChunkedVolume) -> Path:
    """Where :func:`write_instances` will write; to be asked before hours of work.

    Args:
        path_stem: as for :func:`write_instances`.
        like: the image.

    Raises:
        UserError: the result would replace the image or something that it does not replace.
    """
    path, write, _ = _format(Path(path_stem), like)
    image, target = like.file_path.resolve(), path.resolve()
    if image == target or target in image.parents:
        raise UserError(f"{path}: this is the image itself; choose another name")
    if write is _write_sections:
        check_replaceable(path)  # nothing tells a folder of results from one of images
    elif write is _write_ome_zarr:
        check_replaceable(path, is_one_level)
    return path


def _format(stem: Path, like: ChunkedVolume) -> tuple[Path, Any, int]:
    """Where to write, the function that does, and the largest id that it can store."""
    max_id = np.iinfo(np.uint64).max
    if isinstance(like, SectionVolume):
        return stem, _write_sections, _MAX_TIFF
    if isinstance(like, TiffStack):
        return _with_suffix(stem, ".tif"), _write_tiff, _MAX_TIFF
    if isinstance(like, Hdf5Volume):
        return _with_suffix(stem, ".h5"), _write_hdf5, max_id
    if isinstance(like, ZarrVolume | MrcVolume):
        return _with_suffix(stem, ".ome.zarr"), _write_ome_zarr, max_id
    assert isinstance(like, NiftiVolume)
    suffix = next(suffix for suffix in NIFTI_SUFFIXES if like.path.name.lower().endswith(suffix))
    return _with_suffix(stem, suffix), _write_nifti, max_id


def _with_suffix(stem: Path, suffix: str) -> Path:
    return stem if stem.name.lower().endswith(suffix) else stem.with_name(stem.name + suffix)


def _slabs(labels: VoxelArray, dtype: DTypeLike | None = None) -> Iterator[tuple[int, NDArray[Any]]]:
    """Labels a slab at a time, with the number of the slab's first section."""
    depth = labels.shape[0]
    step = _slab_depth(labels)
    for start in range(0, depth, step):
        yield start, np.asarray(labels[start : min(start + step, depth)], dtype=dtype)


def _slab_depth(labels: VoxelArray) -> int:
    """Sections of a slab: whole chunks of those labels that have some, as far as memory goes."""
    _, height, width = labels.shape
    fitting = max(1, SLAB_BYTES // (height * width * np.dtype(labels.dtype).itemsize))
    chunk = (getattr(labels, "chunks", None) or (1,))[0]
    return max(1, fitting // chunk) * chunk if chunk <= fitting else fitting


def _write_sections(path: Path, labels: VoxelArray, like: SectionVolume, highest: int, _: object) -> None:
    is_png = highest <= _MAX_PNG
    names = like.section_names
    if len(set(names)) != len(names):  # files of one name from several folders, or tiles of one name
        names = [f"{z:0{len(str(len(names) - 1))}d}" for z in range(len(names))]
    with atomic_folder(path) as folder:
        for start, slab in _slabs(labels, np.uint16 if is_png else np.uint32):
            for name, section in zip(names[start:], slab, strict=False):
                if is_png:
                    Image.fromarray(section).save(folder / f"{name}.png")
                else:
                    optional_module("tifffile").imwrite(folder / f"{name}.tif", section, compression="zlib")


def _write_tiff(
    path: Path, labels: VoxelArray, like: ChunkedVolume, highest: int, voxel_size_nm: Sequence[float] | None
) -> None:
    dtype = np.min_scalar_type(highest)
    metadata: dict[str, Any] = {"axes": "ZYX"}
    resolution: dict[str, Any] = {}
    if voxel_size_nm is not None:
        for axis, edge_nm in zip("ZYX", voxel_size_nm, strict=True):
            metadata |= {f"PhysicalSize{axis}": edge_nm, f"PhysicalSize{axis}Unit": "nm"}
        _, y_nm, x_nm = voxel_size_nm
        resolution = {"resolution": (1e7 / x_nm, 1e7 / y_nm), "resolutionunit": "CENTIMETER"}  # pixels per cm
    is_big = int(np.prod(like.shape)) * dtype.itemsize > _CLASSIC_TIFF_BYTES
    sections = (section for _, slab in _slabs(labels, dtype) for section in slab)
    with (
        atomic_path(path) as temporary,
        optional_module("tifffile").TiffWriter(temporary, bigtiff=is_big, ome=True) as file,
    ):
        file.write(
            sections,
            shape=like.shape,
            dtype=dtype,
            compression="zlib",
            photometric="minisblack",
            metadata=metadata,
            **resolution,
        )


def _write_hdf5(
    path: Path, labels: VoxelArray, like: ChunkedVolume, highest: int, voxel_size_nm: Sequence[float] | None
) -> None:
    dtype = np.min_scalar_type(highest)
    chunks = tuple(min(chunk, n) for chunk, n in zip(DEFAULT_CHUNKS, like.shape, strict=True))
    with atomic_path(path) as temporary, optional_module("h5py").File(temporary, "w") as file:
        main = file.create_dataset(
            "main", shape=like.shape, dtype=dtype, chunks=chunks, compression="gzip", compression_opts=_GZIP_LEVEL
        )
        if voxel_size_nm is not None:
            main.attrs["element_size_um"] = [edge_nm / 1e3 for edge_nm in voxel_size_nm]
        for start, slab in _slabs(labels, dtype):
            main[start : start + len(slab)] = slab


def _write_ome_zarr(
    path: Path, labels: VoxelArray, like: ChunkedVolume, highest: int, voxel_size_nm: Sequence[float] | None
) -> None:
    dtype = np.min_scalar_type(highest)
    chunks = (min(DEFAULT_CHUNKS[0], _slab_depth(labels)), *DEFAULT_CHUNKS[1:])
    with create_ome_zarr(path, like.shape, dtype, voxel_size_nm, chunks, like.origin_nm) as voxels:
        for start, slab in _slabs(labels, dtype):
            voxels[start : start + len(slab)] = slab


def _write_nifti(path: Path, labels: VoxelArray, like: NiftiVolume, highest: int, _: object) -> None:
    dtype = np.min_scalar_type(highest)
    header = like.header.copy()
    header.set_data_dtype(dtype)
    header.set_data_shape(like.shape[::-1])
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0
    header.extensions.clear()
    header.set_data_offset(header.single_vox_offset)
    with atomic_path(path) as temporary, Opener(str(temporary), "wb") as file:
        header.write_to(file)
        # On disk x runs fastest, so sections in the order of z are the file's own order.
        for _, slab in _slabs(labels, dtype.newbyteorder(header.endianness)):
            file.write(slab.tobytes())
