# SPDX-License-Identifier: Apache-2.0
"""Volumes in MRC files (MRC2014): a header of 1024 bytes, an extended header, then the voxels as one array."""

from __future__ import annotations

import logging
import struct
from pathlib import Path
from typing import Any

import numpy as np

from volseg.data.image_file import readable
from volseg.data.volume_formats.base import ChunkedVolume
from volseg.data.volume_formats.stored_axes import StoredAxes
from volseg.data.volume_formats.voxel_size import voxel_size_in_nm
from volseg.errors import UserError

__all__ = ["MRC_SUFFIXES", "MrcVolume"]

logger = logging.getLogger(__name__)

MRC_SUFFIXES = (".mrc", ".rec", ".map")

_HEADER_BYTES = 1024
_TYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
_IMOD, _IMOD_SIGNED = 1146047817, 1  # IMOD's stamp; bytes are signed where its first flag is set
_STACKS = range(401, 631)  # space groups of stacks of volumes
_UNSET_NM = 0.1  # programs write cells of 1 Å per voxel where they do not know it


class MrcVolume(ChunkedVolume):
    """An MRC file of mode 0, 1, 2, 6 or 12, in either byte order; the cell's size in Å gives that of voxels.

    Bytes are signed, as the format says, unless IMOD's stamp or the largest grey value in the header says otherwise.

    Args:
        path: the file.

    Raises:
        UserError: the file cannot be read, ends early, or holds another kind of voxels.
    """

    def __init__(self, path: Path) -> None:
        with readable(path, (OSError,)), path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
        if len(header) < _HEADER_BYTES:
            raise UserError(f"{path}: truncated, got {len(header)} of 1024 bytes of its header; copy it again")
        order = ">" if header[212] == 0x11 else "<"
        words, numbers = (struct.unpack(f"{order}256{kind}", header) for kind in "if")
        columns_rows_sections, mode = words[:3], words[3]
        axes = words[16:19] if sorted(words[16:19]) == [1, 2, 3] else (1, 2, 3)
        if mode not in _TYPES or min(columns_rows_sections) < 1 or words[23] < 0:
            raise UserError(
                f"{path}: must be MRC of mode 0, 1, 2, 6 or 12, got mode {mode}, size {columns_rows_sections}; "
                "convert it"
            )
        if words[22] in _STACKS and 0 < words[9] < words[2]:
            raise UserError(
                f"{path}: must hold one volume, got {words[2] // words[9]}; write them to files of their own"
            )
        is_unsigned = mode == 0 and _are_bytes_unsigned(path, words, numbers)
        dtype = np.dtype(order + ("u1" if is_unsigned else _TYPES[mode]))
        self._stored = columns_rows_sections[::-1], dtype, _HEADER_BYTES + words[23]
        stored_axes = axes[::-1]  # 1, 2, 3 are x, y, z
        self._axes = StoredAxes(tuple(stored_axes.index(axis) for axis in (3, 2, 1)), 3)
        expected = self._stored[2] + int(np.prod(columns_rows_sections, dtype=np.int64)) * dtype.itemsize
        if path.stat().st_size < expected:
            raise UserError(f"{path}: truncated, got {path.stat().st_size} of {expected} bytes; copy it again")
        cell, intervals = numbers[10:13], words[7:10]
        edges = [length / n if n > 0 else 0.0 for length, n in zip(cell, intervals, strict=True)][::-1]
        shape = self._axes.of(self._stored[0])
        size_nm = voxel_size_in_nm(edges, ["angstrom"] * 3)
        if size_nm is not None and np.allclose(size_nm, _UNSET_NM):
            size_nm = None
        super().__init__(path, shape, dtype, (1, *shape[1:]), size_nm)

    def _open(self) -> Any:
        shape, dtype, offset = self._stored
        return np.memmap(self.path, dtype=dtype, mode="r", offset=offset, shape=shape)


def _are_bytes_unsigned(path: Path, words: tuple[int, ...], numbers: tuple[float, ...]) -> bool:
    if words[38] == _IMOD:
        return not words[39] & _IMOD_SIGNED
    low, high = numbers[19:21]
    if not low < high:
        logger.warning("%s: bytes are taken as signed; nothing in the header says whether they are", path)
    return low < high and high > np.iinfo(np.int8).max
