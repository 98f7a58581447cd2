# SPDX-License-Identifier: Apache-2.0
"""A volume on disk that is read a block at a time: what all formats share."""

from __future__ import annotations

import importlib
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from volseg.data.image_file import readable
from volseg.data.volume_formats.stored_axes import StoredAxes
from volseg.data.volume_formats.voxel_size import VoxelSize
from volseg.errors import UserError

__all__ = ["ChunkedVolume", "GreyKind", "VoxelArray", "kind_of_palette", "optional_module", "why_not_grey"]

GreyKind: TypeAlias = Literal["grey values", "inverted grey values", "RGB", "a palette of colours"]
Block = tuple[slice, slice, slice]


def optional_module(name: str) -> Any:
    """Return a module of the extra ``em``, imported at its first use.

    Raises:
        UserError: the package is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"{name}: not installed, got {error}; run pip install {name}") from error


def kind_of_palette(colors: NDArray[Any]) -> GreyKind:
    """What a palette (N, 3) does to indices: shades of grey may rise or fall with them."""
    grey = colors[:, 0].astype(int)
    if (colors != colors[:, :1]).any():
        return "a palette of colours"
    if (np.diff(grey) >= 0).all():
        return "grey values"
    return "inverted grey values" if (np.diff(grey) <= 0).all() else "a palette of colours"


def why_not_grey(files: Mapping[Path, tuple[np.dtype[Any], GreyKind]]) -> str:
    """Why sections have no common scale of grey values, and what to do; empty where they have.

    Args:
        files: type and kind of each.
    """
    counts = Counter(files.values())
    (usual, _), *others = counts.most_common()
    if others:
        rare = others[-1][0]
        odd, like = (next(file for file, kind in files.items() if kind == wanted) for wanted in (rare, usual))
        return (
            f"sections must have one scale of grey values, got {odd.name} of {_text(rare)} and {like.name} of "
            f"{_text(usual)}; convert them to one type"
        )
    if usual[1] == "a palette of colours":
        return "pixels must be grey values, got a palette of colours; convert the image to grey values"
    return ""


def _text(kind: tuple[np.dtype[Any], GreyKind]) -> str:
    return "RGB" if kind[1] == "RGB" else f"{kind[0]} {kind[1]}"


class VoxelArray(Protocol):
    """Voxels that are read by slices: a Zarr array, a ChunkedVolume, an HDF5 data set, a NumPy array."""

    @property
    def shape(self) -> Any: ...

    @property
    def dtype(self) -> Any: ...

    def __getitem__(self, region: Any, /) -> Any: ...


class ChunkedVolume(ABC):
    """A 3-D volume on disk: ``volume[z0:z1, y0:y1, x0:x1]`` reads that block and no more than its chunks.

    A volume can be pickled and used after a fork: each process opens the file anew at its first read.

    Attributes:
        path: as given, with the name of the data set where the format has one.
        file_path: the file or folder on disk.
        shape: (D, H, W).
        dtype: of the arrays that reading returns, in the machine's byte order.
        chunks: (D, H, W) of what is decoded at once; blocks aligned to it are the cheapest.
        voxel_size_nm: (z, y, x), or None where the file does not say.
        origin_nm: where the first voxel lies (z, y, x), or None where the file does not say.
        is_inverted: whether larger values are darker, as images; ids are taken as they are.
        is_colored: whether voxels are colours, R * 65536 + G * 256 + B: ids or, as images, shades of grey.
        not_grey: why the voxels are no grey values on one scale, and what to do; empty if they are.

    Raises:
        UserError: from reading, if the file is damaged.
    """

    _READ_ERRORS: tuple[type[Exception], ...] = (OSError, ValueError)
    _axes: StoredAxes

    def __init__(
        self,
        path: Path,
        shape: Sequence[int],
        dtype: Any,
        chunks: Sequence[int],
        voxel_size_nm: VoxelSize | None = None,
        file_path: Path | None = None,
    ) -> None:
        if len(shape) != 3:
            found = "x".join(str(n) for n in shape) or "a single value"
            raise UserError(f"{path}: must be one 3-D volume, got {found}; extract one volume first")
        if 0 in shape:
            raise UserError(f"{path}: the volume is empty, its shape is {tuple(shape)}; write it again")
        if np.dtype(dtype).kind not in "buif":
            raise UserError(f"{path}: voxels must be numbers, got type {dtype}; convert the volume")
        self.path = path
        self.file_path = path if file_path is None else file_path
        self.shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.dtype = np.dtype(dtype).newbyteorder("=")
        depth, height, width = (min(int(chunk), n) for chunk, n in zip(chunks, self.shape, strict=True))
        self.chunks = (depth, height, width)
        self.voxel_size_nm = voxel_size_nm
        self.origin_nm: VoxelSize | None = None
        self.is_inverted = self.is_colored = False
        self.not_grey = ""
        self._opened: tuple[int, Any] | None = None

    def __getitem__(self, block: slice | tuple[slice, ...]) -> NDArray[Any]:
        """Read a block.

        Args:
            block: up to three slices without a step, along z, y, x; what is left out is read whole.

        Returns:
            a new array (D, H, W) of ``dtype``.

        Raises:
            TypeError: not slices, or slices with a step.
            UserError: the file is damaged.
        """
        z, y, x = self._bounds(block if isinstance(block, tuple) else (block,))
        with readable(self.path, self._READ_ERRORS):
            voxels = self._read((z, y, x))
        return np.array(voxels, dtype=self.dtype, order="C")

    def __len__(self) -> int:
        return self.shape[0]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def _bounds(self, block: tuple[slice, ...]) -> Block:
        if len(block) > 3 or not all(isinstance(along, slice) and along.step in (None, 1) for along in block):
            raise TypeError(f"a block must be up to three slices without a step, got {block}")
        padded = (*block, *(slice(None) for _ in range(3 - len(block))))
        bounds = [along.indices(n)[:2] for along, n in zip(padded, self.shape, strict=True)]
        z, y, x = (slice(start, max(start, stop)) for start, stop in bounds)
        return z, y, x

    def _handle(self) -> Any:
        """What :meth:`_open` returned in this process: file positions and locks are not shared over a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), self._open())
        return self._opened[1]

    @abstractmethod
    def _open(self) -> Any:
        """Open the file for reading."""

    def _read(self, block: Block) -> NDArray[Any]:
        """Read a block, whose slices lie inside the volume: of what is read by slices along its own axes."""
        return self._axes.arrange(self._handle()[self._axes.index(block)])
