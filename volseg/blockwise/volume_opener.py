# SPDX-License-Identifier: Apache-2.0
"""A volume that travels to workers as its path and is opened once in each: sections replaced, and resampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import DTypeLike, NDArray

from volseg.blockwise.block_array import BlockArray
from volseg.blockwise.block_grid import BlockGrid
from volseg.blockwise.finished_blocks import FinishedBlocks
from volseg.blockwise.zarr_array import VoxelArray, open_array, open_or_create_array, read_region
from volseg.data.chunked_volume import ChunkedVolume, open_chunked_volume
from volseg.data.resampling import ResampledVolume
from volseg.data.volume_formats.zarr_volume import ZarrVolume

__all__ = ["RESTORATION", "ReplacedSections", "Replacements", "VolumeOpener"]

RESTORATION = "restoration"  # the stage that makes the sections, each of them a block

_CHUNK = (1, 512, 512)


@dataclass(frozen=True)
class Replacements:
    """Sections to replace, and where the new ones are stored.

    Attributes:
        plan: of each its index along z and those of the two sections that it is made from.
        location: Zarr array (number of sections, H, W); the manifest is ``finished`` beside it.
    """

    plan: tuple[tuple[int, int, int], ...]
    location: str

    @property
    def finished(self) -> FinishedBlocks:
        """The manifest of the new sections."""
        return FinishedBlocks(f"{self.location.rpartition('/')[0]}/finished")

    def open(self) -> BlockArray:
        """The new sections, for reading."""
        array = open_array(self.location)
        return BlockArray(array, BlockGrid(array.shape, (1, *array.shape[1:])), self.finished, RESTORATION)

    def open_or_create(self, volume: VoxelArray, is_begun: bool) -> Any:
        """The array, for writing; ``is_begun``: sections of it are finished already."""
        shape = (len(self.plan), *volume.shape[1:])
        chunks = tuple(min(chunk, n) for chunk, n in zip(_CHUNK, shape, strict=True))
        return open_or_create_array(self.location, shape, volume.dtype, chunks, is_begun)


class ReplacedSections:
    """A volume (D, H, W) that is read by slices, with sections from another array in place of its own.

    Args:
        volume: the original.
        sections: indices of the replaced ones along z.
        replaced: array (number of sections, H, W) of the new ones.
    """

    def __init__(self, volume: VoxelArray, sections: Sequence[int], replaced: VoxelArray) -> None:
        self._volume, self._sections, self._replaced = volume, sections, replaced
        self.shape: tuple[int, ...] = tuple(volume.shape)
        self.dtype: DTypeLike = volume.dtype

    def __getitem__(self, region: tuple[slice, slice, slice]) -> NDArray[Any]:
        z, y, x = region
        voxels = np.array(self._volume[region])
        for number, section in enumerate(self._sections):
            if z.start <= section < z.stop:
                voxels[section - z.start] = read_region(self._replaced, (slice(number, number + 1), y, x))[0]
        return voxels


@dataclass(frozen=True)
class VolumeOpener:
    """Opens a volume for reading; sections that were decoded for one block serve the next.

    Attributes:
        location: path in any format of :func:`volseg.data.chunked_volume.open_chunked_volume`, or URL of a Zarr array
            or OME-Zarr image on a storage that fsspec knows.
        replacements: sections in place of its own, if there are any.
        network_shape: (D, H, W) that the network sees it at; None is the volume's own grid.

    Raises:
        UserError: it cannot be opened.
    """

    location: str
    replacements: Replacements | None = None
    network_shape: tuple[int, int, int] | None = None

    @classmethod
    def of(cls, location: str | Path) -> VolumeOpener:
        """Of a volume; a relative path is made absolute, as workers may work elsewhere."""
        text = str(location)
        return cls(text if _is_url(text) else str(Path(text).absolute()))

    def source(self) -> ChunkedVolume:
        """The volume without replacements, on its own grid."""
        return _opened(self.location)

    def __call__(self) -> ChunkedVolume | ReplacedSections:
        """The volume (D, H, W), as the network sees it."""
        if self.network_shape is None:
            return self.on_own_grid()
        return ResampledVolume(self.source(), self.network_shape, self.on_own_grid())

    def on_own_grid(self) -> ChunkedVolume | ReplacedSections:
        """The volume (D, H, W) on its own grid."""
        if self.replacements is None:
            return self.source()
        sections = [section for section, _, _ in self.replacements.plan]
        return ReplacedSections(self.source(), sections, self.replacements.open())

    def parameters(self) -> dict[str, Any]:
        """What tells the volume from others."""
        volume = self.source()
        plan = [] if self.replacements is None else self.replacements.plan
        return {
            "volume": self.location,
            "shape": volume.shape,
            "dtype": volume.dtype.name,
            "replaced": plan,
            "network_shape": self.network_shape,
        }


@lru_cache(maxsize=1)
def _opened(location: str) -> ChunkedVolume:
    if _is_url(location):
        return ZarrVolume(cast(Path, location))  # Zarr takes URLs as text; a Path would lose one of their slashes
    return open_chunked_volume(location)


def _is_url(location: str) -> bool:
    return "://" in location
