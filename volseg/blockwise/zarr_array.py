# SPDX-License-Identifier: Apache-2.0
"""Zarr arrays whose blocks are written by several processes: on a disk, or on any storage that fsspec knows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import DTypeLike

from volseg.data.volume_formats.base import VoxelArray, optional_module
from volseg.data.volume_formats.zarr_volume import ZARR_ERRORS
from volseg.errors import UserError
from volseg.storage.file_systems import open_storage
from volseg.storage.files import writing

LARGEST_CHUNK = (16, 256, 256)
COMPRESSION_LEVEL = 1


def block_chunks(block_shape: Sequence[int], largest: Sequence[int] = LARGEST_CHUNK) -> tuple[int, ...]:
    """The chunk nearest to a size that divides a block, so that no two blocks write into one chunk.

    Args:
        block_shape: voxels along each axis.
        largest: what the chunk is to come near to.

    Returns:
        voxels along each axis.
    """
    chunks = []
    for block, wanted in zip(block_shape, largest, strict=True):
        divisors = [chunk for chunk in range(1, block + 1) if block % chunk == 0]
        # 509 is cut into nothing but single voxels: one chunk of 509 is nearer to 256 by ratio
        chunks.append(min(divisors, key=lambda chunk: max(chunk / wanted, wanted / chunk)))
    return tuple(chunks)


def local_folder(location: str | Path) -> Path | None:
    """The absolute path of a path or ``file://`` URL; None for another storage.

    Raises:
        UserError: a URL that nothing here can open.
    """
    file_system, folder = open_storage(str(location))
    return Path(folder).absolute() if isinstance(file_system, LocalFileSystem) else None


def node_store(location: str | Path) -> Path | str:
    """What Zarr is to be given for a path or URL: a path wherever there is one, with its atomic writes."""
    return local_folder(location) or str(location)


def open_array(location: str | Path) -> Any:
    """A Zarr array that exists, for reading.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    try:
        return optional_module("zarr").open_array(node_store(location), mode="r")
    except ZARR_ERRORS as error:
        raise UserError(f"{location}: cannot be read as a Zarr array ({_said(error)})") from error


def open_or_create_array(
    location: str | Path,
    shape: Sequence[int],
    dtype: DTypeLike,
    chunks: Sequence[int],
    is_begun: bool = False,
    **metadata: Any,
) -> Any:
    """A Zarr array for writing by blocks; one that exists is continued.

    Chunks carry a checksum, are compressed by Zstandard, and are written whole or not at all. What is not written is
    zero.

    Args:
        location: path or URL.
        shape: of the array.
        dtype: of the voxels.
        chunks: of the array; blocks that are written at once must be aligned to it.
        is_begun: blocks of it are finished already, so that it must exist.
        metadata: more that :func:`zarr.create_array` takes.

    Raises:
        UserError: another array exists there, it is missing though begun, or it cannot be written.
    """
    zarr = optional_module("zarr")
    store = node_store(location)
    try:
        array = zarr.open_array(store, mode="r+")
    except FileNotFoundError as error:
        if is_begun:
            raise UserError(
                f"{location}: is missing, though its manifest says that blocks are finished; remove the folder of "
                "the manifest, too, and run again"
            ) from error
        try:
            return zarr.create_array(
                store,
                shape=tuple(shape),
                dtype=np.dtype(dtype),
                chunks=tuple(chunks),
                compressors=zarr.codecs.ZstdCodec(level=COMPRESSION_LEVEL, checksum=True),
                **metadata,
            )
        except ZARR_ERRORS as reason:
            raise UserError(
                f"{location}: cannot be written: {_said(reason)}; check the free space and permissions"
            ) from reason
    except ZARR_ERRORS as error:
        raise UserError(
            f"{location}: cannot be read as a Zarr array ({_said(error)}); remove it and run again"
        ) from error
    found, wanted = (array.shape, array.dtype, array.chunks), (tuple(shape), np.dtype(dtype), tuple(chunks))
    if found != wanted:
        raise UserError(
            f"{location}: already holds another array, of shape {found[0]}, {found[1]}, chunks {found[2]}; expected "
            f"shape {wanted[0]}, {wanted[1]}, chunks {wanted[2]}; remove it, or choose another folder"
        )
    return array


def read_region(array: VoxelArray, region: tuple[slice, ...]) -> np.ndarray:
    """Voxels of a region.

    Raises:
        UserError: a chunk is damaged, or the storage fails; of a :class:`~volseg.blockwise.finished_blocks.BlockArray`
            it says which file of the manifest is to be removed.
    """
    try:
        return np.asarray(array[region])
    except UserError:
        raise
    except ZARR_ERRORS as error:
        how_to_mend = getattr(array, "how_to_mend", None)
        advice = (
            how_to_mend(region)
            if how_to_mend
            else "restore the chunk from a copy, do not remove it: a missing chunk reads as zero"
        )
        raise UserError(f"{array_name(array)}: a chunk cannot be read ({_said(error)}); {advice}") from error


def write_region(array: Any, region: tuple[slice, ...], voxels: np.ndarray) -> None:
    """Write the voxels of a region that is aligned to the chunks.

    Raises:
        UserError: the disk is full, or the storage fails.
    """
    with writing(array_name(array)):
        array[region] = voxels


def array_name(array: Any) -> str:
    """Where an array is stored; for one in memory its type and shape."""
    store = getattr(array, "store_path", None)
    if store is not None:
        return str(store).removeprefix("file://")
    return str(getattr(array, "path", None) or f"{type(array).__name__} of shape {tuple(array.shape)}")


def remove_partial_chunks(location: str) -> None:
    """Remove what processes that were killed while they wrote have left in a local folder of Zarr arrays.

    No process may be writing there.
    """
    if folder := local_folder(location):
        for partial in folder.rglob("*.partial"):
            partial.unlink(missing_ok=True)


def _said(error: Exception) -> str:
    """What an exception says, in one line."""
    return " ".join((getattr(error, "strerror", None) or str(error)).split())[-200:] or type(error).__name__
