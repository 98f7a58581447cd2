# SPDX-License-Identifier: Apache-2.0
"""The manifest of a run by blocks: which are finished, what later stages need of each, and the arrays they wrote."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from volseg.blockwise.block_grid import Block, BlockGrid, Region
from volseg.blockwise.zarr_array import local_folder
from volseg.data.volume_formats.zarr_volume import ZARR_ERRORS
from volseg.errors import UserError
from volseg.storage.file_systems import open_storage
from volseg.storage.files import atomic_path, only_process, remove_leftovers, writing

__all__ = ["BlockArray", "FinishedBlocks"]

PARAMETERS = "run.json"
LOCK = ".lock"
SUFFIX = ".npz"


class FinishedBlocks:
    """A folder with one small file for every finished block of every stage, and the parameters of the run.

    A block's file, ``STAGE/NUMBER.npz``, is written once the block's chunks are, in one piece: after a kill at any
    moment a block either counts as finished and is, or is done again. The files carry checksums.

    Can be pickled: every worker opens the storage for itself.

    Args:
        folder: path, or URL of a storage that fsspec knows.

    Raises:
        UserError: a URL that nothing here can open.
    """

    def __init__(self, folder: str | Path) -> None:
        self.local = local_folder(folder)
        self.folder = str(self.local or folder).rstrip("/")

    @contextmanager
    def lock(self, parameters: Mapping[str, Any]) -> Iterator[None]:
        """Lock the folder for a run, and check that it holds no run with other parameters.

        On a local folder the lock refuses a second run, and is released when the process ends, however it does. Other
        storages have no locks: whoever starts runs must avoid two on one folder. (They would write the same bytes.)

        Args:
            parameters: all that the results depend on, as JSON holds it.

        Raises:
            UserError: another run is at work, or parameters differ; the folder cannot be read or written.
        """
        with ExitStack() as held:
            if self.local is not None:
                with writing(self.folder):
                    self.local.mkdir(parents=True, exist_ok=True)
                    used = f"{self.folder}: another run is using this folder; wait for it to end, or choose another"
                    held.enter_context(only_process(self.local / LOCK, used))
                    remove_leftovers(self.local)
            self._check_parameters(parameters)
            yield

    def numbers(self, stage: str) -> set[int]:
        """The numbers of the stage's finished blocks.

        Raises:
            UserError: the folder cannot be read.
        """
        file_system, folder = open_storage(self.folder)
        file_system.invalidate_cache()
        try:
            names = [Path(path).name for path in file_system.ls(f"{folder}/{stage}", detail=False)]
        except FileNotFoundError:
            return set()
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be read ({error.strerror or error}); check permissions") from error
        stems = (name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX))
        return {int(stem) for stem in stems if stem.isdecimal()}

    def has(self, stage: str, block: Block) -> bool:
        """Whether a block of a stage is finished."""
        file_system, folder = open_storage(self.folder)
        return file_system.isfile(f"{folder}/{_file(stage, block)}")

    def write(self, stage: str, block: Block, arrays: Mapping[str, np.ndarray]) -> None:
        """Count a block as finished, with arrays for later stages; its chunks must be written by now.

        Raises:
            UserError: the disk is full, or the storage fails.
        """
        packed = io.BytesIO()
        np.savez_compressed(packed, allow_pickle=False, **arrays)
        self._put(_file(stage, block), packed.getvalue())

    def read(self, stage: str, block: Block, *names: str) -> tuple[np.ndarray, ...]:
        """Arrays of a finished block by their names.

        Raises:
            UserError: the block's file is missing or damaged.
        """
        file = _file(stage, block)
        try:
            with np.load(io.BytesIO(self._get(file)), allow_pickle=False) as arrays:
                return tuple(arrays[name] for name in names)
        except FileNotFoundError as error:
            raise self._damaged(file, block, "no such file") from error
        except (OSError, EOFError, ValueError, KeyError, zlib.error, zipfile.BadZipFile, NotImplementedError) as error:
            raise self._damaged(file, block, " ".join(str(error).split()) or type(error).__name__) from error

    def read_json(self, name: str) -> dict[str, Any] | None:
        """The object of a JSON file beside the blocks; None where there is no such file.

        Raises:
            UserError: the file is damaged.
        """
        try:
            found = json.loads(self._get(name))
            if not isinstance(found, dict):
                raise ValueError("not a JSON object")
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(
                f"{self.folder}/{name}: damaged ({error}); remove the folder {self.folder} and run again"
            ) from error
        return found

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write an object as a JSON file beside the blocks.

        Raises:
            UserError: the disk is full, or the storage fails.
        """
        self._put(name, (json.dumps(content, indent=4) + "\n").encode())

    def file(self, stage: str, block: Block) -> str:
        """Path or URL of the file that counts a block as finished."""
        return f"{self.folder}/{_file(stage, block)}"

    def _check_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Write the run's parameters, or compare them with those that are there."""
        wanted = json.loads(json.dumps(parameters))  # tuples come back as lists
        found = self.read_json(PARAMETERS)
        if found is None:
            self.write_json(PARAMETERS, wanted)
            return
        for key in dict.fromkeys((*wanted, *found)):
            if found.get(key) != wanted.get(key):
                raise UserError(
                    f"{self.folder}/{PARAMETERS}: another run with {key} {found.get(key)!r} is stored here, got "
                    f"{wanted.get(key)!r}; remove the folder, or choose another"
                )

    def _get(self, file: str) -> bytes:
        file_system, folder = open_storage(self.folder)
        return file_system.cat_file(f"{folder}/{file}")

    def _put(self, file: str, content: bytes) -> None:
        """Write a file whole or not at all."""
        with writing(f"{self.folder}/{file}"):
            if self.local is None:  # object stores take an object whole
                file_system, folder = open_storage(self.folder)
                file_system.makedirs(f"{folder}/{file}".rpartition("/")[0], exist_ok=True)
                file_system.pipe_file(f"{folder}/{file}", content)
                return
            with atomic_path(self.local / file) as temporary:
                temporary.write_bytes(content)

    def _damaged(self, file: str, block: Block, found: str) -> UserError:
        return UserError(
            f"{self.folder}/{file}: damaged file of {block} ({found}); remove this file and run again to process the "
            "block again"
        )


def _file(stage: str, block: Block) -> str:
    """Path of a block's file in the folder."""
    return f"{stage}/{block.number:08d}{SUFFIX}"


class BlockArray:
    """A Zarr array that is read and written as usual, and knows how to mend a damaged chunk.

    Can be pickled.

    Args:
        array: Zarr array (D, H, W).
        grid: the blocks that it was written by, aligned to its chunks.
        finished: the manifest.
        stage: that wrote it.
    """

    def __init__(self, array: Any, grid: BlockGrid, finished: FinishedBlocks, stage: str) -> None:
        self.array, self.grid, self.finished, self.stage = array, grid, finished, stage
        self.shape, self.dtype, self.store_path = tuple(array.shape), array.dtype, array.store_path

    def __getitem__(self, region: Any) -> Any:
        return self.array[region]

    def __setitem__(self, region: Any, voxels: Any) -> None:
        self.array[region] = voxels

    def how_to_mend(self, region: Region) -> str:
        """What to do about chunks of a region that cannot be read, in one sentence."""
        damaged = [block for block in self.grid.intersecting(region) if not self._is_readable(block.core)]
        files = ", ".join(self.finished.file(self.stage, block) for block in damaged)
        return (
            f"remove {files or f'{self.finished.folder}/{self.stage}'} and run again to process the block again; do "
            "not remove only the chunk: a missing chunk reads as zero"
        )

    def _is_readable(self, region: Region) -> bool:
        try:
            self.array[region]
        except ZARR_ERRORS:
            return False
        return True
