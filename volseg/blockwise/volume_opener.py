# SPDX-License-Identifier: Apache-2.0
"""A volume that travels to workers as its path and is opened once in each: sections replaced, and resampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import numpy as np
from distributed import Client
from numpy.typing import DTypeLike, NDArray

from volseg.blockwise.block_grid import Block, BlockGrid
from volseg.blockwise.finished_blocks import BlockArray, FinishedBlocks
from volseg.blockwise.stages import run_stage
from volseg.blockwise.worker_network import WorkerNetwork
from volseg.blockwise.zarr_array import VoxelArray, open_array, open_or_create_array, read_region, write_region
from volseg.data.open_volume import ChunkedVolume, open_chunked_volume
from volseg.data.resampling import ResampledVolume
from volseg.data.volume_formats.zarr_volume import ZarrVolume

__all__ = ["RESTORATION", "ReplacedSections", "Replacements", "VolumeOpener", "replace_sections"]

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
        location: path in any format of :func:`volseg.data.open_volume.open_chunked_volume`, or URL of a Zarr array
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


def replace_sections(
    open_volume: VolumeOpener,
    plan: Sequence[tuple[int, int, int]],
    output: str | Path,
    network: WorkerNetwork,
    function: str,
    arguments: Mapping[str, Any],
    client: Client | None = None,
    progress: bool = True,
) -> VolumeOpener:
    """Make some sections of a volume again, each from two others, and store only these.

    A section is one block: memory is that of three sections.

    Args:
        open_volume: of the volume.
        plan: of each section its index along z, and those of the two it is made from; at least one.
        output: folder, path or URL.
        network: that makes them.
        function: dotted name of a function that is called with the network, the two sections (H, W) and ``arguments``
            and returns a section.
        arguments: further ones, by name.
        client: of a Dask cluster; None works in this process.
        progress: show a bar of the sections.

    Returns:
        what opens the volume with its new sections.

    Raises:
        UserError: another run is at work there or had other parameters, or a section fails: one line that names it.
    """
    volume = open_volume.source()
    replacements = Replacements(tuple((int(a), int(b), int(c)) for a, b, c in plan), f"{output}/sections.zarr")
    grid = BlockGrid((len(replacements.plan), *volume.shape[1:]), (1, *volume.shape[1:]))
    finished = replacements.finished
    parameters = {
        **open_volume.parameters(),
        "plan": replacements.plan,
        "function": function,
        "arguments": dict(arguments),
        **network.parameters(),
    }
    with finished.lock(parameters):
        array = replacements.open_or_create(volume, bool(finished.numbers(RESTORATION)))
        stage = _SectionStage(open_volume, network, function, dict(arguments), replacements, array)
        run_stage(client, RESTORATION, stage, grid, finished, progress)
    return replace(open_volume, replacements=replacements)


@dataclass(frozen=True)
class _SectionStage:
    """Makes one section."""

    open_volume: VolumeOpener
    network: WorkerNetwork
    function: str
    arguments: dict[str, Any]
    replacements: Replacements
    array: Any

    def __call__(self, block: Block) -> dict[str, np.ndarray]:
        network, _ = self.network.build()
        volume = self.open_volume.source()
        _, *neighbours = self.replacements.plan[block.number]
        before, after = (volume[z : z + 1][0] for z in neighbours)
        module, _, name = self.function.rpartition(".")
        section = getattr(import_module(module), name)(network, before, after, **self.arguments)
        write_region(self.array, block.core, section[None])
        return {}
